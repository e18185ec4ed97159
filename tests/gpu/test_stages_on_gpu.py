"""Every stage on a real GPU gives nearly the CPU's numbers. Skipped, and so not passed, on a machine without one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from calib.distillation.distiller import Distiller, Streamed
from calib.distillation.student import load_student
from calib.quantization import Quantized, quantize
from calib.settings import Basis, Calibration, Distillation, Rounding, Training
from inversion.confidence import target_confidence
from inversion.images import SparseImages
from inversion.inverter import Inverter, invert_shard
from inversion.job import Inversion
from inversion.leaves import dead_leaves
from inversion.machine import choose_device, free_memory, settle_sums
from inversion.teacher import Teacher, load_teacher
from pipeline.run.build import NAMES
from tests.shell import run

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
JOB = Inversion(images=16, batch=16, iterations=12, learning_rate=0.05, precision="float32")
BUILD = "--quiet --set inversion.images=32 --set inversion.batch=16 --set inversion.iterations=200 --effort quick"


@pytest.fixture(scope="module")
def teachers() -> tuple[Teacher, Teacher]:
    """The same, here and there; convolutions keep float32, as in a run."""
    settle_sums()
    return load_teacher("digits_vit"), load_teacher("digits_vit", device=str(choose_device("cuda")))


@pytest.fixture(scope="module")
def images(teachers: tuple[Teacher, Teacher]) -> SparseImages:
    return invert_shard(teachers[0], JOB, 0)


def test_the_teacher_answers_alike(teachers: tuple[Teacher, Teacher], images: SparseImages) -> None:
    """On whole pictures and on patches, but for the order of float32's sums."""
    pictures = dead_leaves(teachers[0].spec, 8, 0)
    here, there = (teacher.logits(pictures) for teacher in teachers)
    assert torch.allclose(here, there, atol=1e-3)
    sure, also = (target_confidence(teacher, images) for teacher in teachers)
    assert torch.allclose(sure, also, atol=1e-4)


@pytest.mark.parametrize(("bits", "method", "optimizer"), [("w4a4", "auto", "adam"), ("w8a8", "percentile", "sgd")])
def test_quantization_is_nearly_the_cpus(
    teachers: tuple[Teacher, Teacher], images: SparseImages, bits: str, method: str, optimizer: str
) -> None:
    """Basis, ranges by every method, saliency, GPTQ and training: the same range method, nearly all integers alike,
    fidelity within a tenth."""

    def quantized(teacher: Teacher) -> Quantized:
        training = Training(updates=2, batch=4, checks=1, precision="float32", optimizer=optimizer)  # type: ignore[arg-type]
        calibration = Calibration(leaves=8, method=method)  # type: ignore[arg-type]
        return quantize(teacher, images, bits, Basis(updates=3), calibration, Rounding(), training)

    here, there = (quantized(teacher) for teacher in teachers)
    assert here.tried.keys() == there.tried.keys()
    for tried, fidelity in here.tried.items():
        assert there.tried[tried].kl == pytest.approx(fidelity.kl, rel=0.1)
    assert there.training.best.kl == pytest.approx(here.training.best.kl, rel=0.1)
    alike, total = 0, 0
    for name in here.weights.layers:
        one, other = (found.weights.tensors[f"{name}.weight"] for found in (here, there))
        alike, total = alike + int((one == other).sum()), total + one.numel()
    assert alike > 0.97 * total


def test_a_student_learns_alike(teachers: tuple[Teacher, Teacher]) -> None:
    """Two batches that are inverted as they are asked for."""
    losses = []
    for teacher in teachers:
        distiller = Distiller(teacher, load_student("teacher", teacher), Distillation())
        batches = Streamed(Inverter(teacher, JOB))
        losses.append(distiller.learn(batches.batch(0), 0))
        assert all(value.device.type == "cpu" for value in distiller.state().values())
    assert losses[0] == pytest.approx(losses[1], rel=0.02)


def test_free_memory_is_the_gpus() -> None:
    """What torch keeps of tensors that are gone counts as free."""
    device = choose_device("cuda")
    before = free_memory(device)
    held = torch.empty(1 << 28, dtype=torch.uint8, device=device)
    assert before - free_memory(device) == pytest.approx(1 << 28, rel=0.05)
    del held
    assert free_memory(device) == pytest.approx(before, rel=0.01)


@pytest.mark.parametrize("bits", ["w8a8", "w4a8"])
def test_a_whole_build_runs_there(tmp_path: Path, bits: str) -> None:
    """All stages and a verdict; the float file is the teacher's function, the quantized one the module's."""
    assert run(f"build --teacher digits_vit --bits {bits} --device cuda {BUILD} --arch none --out {tmp_path}") in (0, 1)
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    assert [stage["name"] for stage in manifest["stages"]] == list(NAMES)
    gates = {gate["name"]: gate["passed"] for gate in manifest["validation"]["gates"]}
    assert all(gates[name] for name in ("float_onnx_kl", "integer_layers", "exact_layers", "onnx_against_torch_kl"))
