"""From files to files, and in distillation: all runs where the teacher is, here on a pretended CUDA device."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from calib.distillation.distiller import Distiller, Streamed
from calib.distillation.student import load_student
from calib.settings import Distillation
from calib.weights import QuantizedWeights
from export.graph import export_float
from export.qdq import qdq_module
from inversion.inverter import Inverter
from inversion.job import Inversion
from inversion.leaves import dead_leaves
from inversion.teacher import Teacher, load_teacher
from pipeline.judge.answers import Judge, Pictures, of_module
from pipeline.run.distilling import of_student
from tests.elsewhere import There, elsewhere
from tests.shell import run
from tests.small import CPU, grey_images, quantize_by_max, small_teacher

JOB = Inversion(images=8, batch=4, iterations=4, division_factor=2, precision="float32")
DIGITS = "--teacher digits_vit --quiet --threads 1 --device cuda"
INVERT = "--set inversion.images=8 --set inversion.batch=8 --set inversion.iterations=4"
QUANTIZE = "--bits w8a8 --effort quick --set calibration.method=max --set calibration.leaves=4 --set basis.method=none"


def test_what_a_gpu_makes_of_the_built_in_teacher(tmp_path: Path) -> None:
    """`--device cuda` brings the teacher of each verb to the GPU, and what was made there is read here: the quantized
    module answers nearly as the teacher does."""
    images, quantized = tmp_path / "images", tmp_path / "quantized.safetensors"
    with elsewhere():
        assert run(f"invert {DIGITS} {INVERT} --out {images}") == 0
        assert run(f"quantize {DIGITS} {QUANTIZE} --images {images} --out {quantized}") == 0
    teacher = load_teacher("digits_vit")
    module = qdq_module(teacher.model, QuantizedWeights.load(quantized))
    pictures = Pictures.of("leaves", dead_leaves(teacher.spec, 4, seed=0))
    assert Judge(teacher.logits, pictures)(of_module(module, CPU)).kl < 0.01


def test_files_are_made_of_a_copy_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is exported stands on the CPU, whose copy of the teacher answers as the teacher does, which stays there."""
    exported: list[Any] = []
    monkeypatch.setattr("export.graph._export", lambda module, *_: exported.append(module))
    here = grey_teacher()
    weights, pictures = quantize_by_max(here.model, "w8a8", grey_images(2)), grey_images(3)
    with elsewhere() as device:
        there = moved(here)
        export_float(there.model, there.spec, tmp_path / "float.onnx", {})
        exported.append(qdq_module(there.model, weights))
        assert there.device == device
        for module in exported:
            assert not any(isinstance(each, There) for each in module.state_dict().values())
        assert torch.allclose(exported[0](pictures), there.logits(pictures), atol=1e-5)


def grey_teacher() -> Teacher:
    here = small_teacher()
    here.model.pretrained_cfg = {"input_size": (1, 32, 32), "mean": (0.5,), "std": (0.25,), "crop_pct": 1.0}
    return here


def moved(teacher: Teacher) -> Teacher:
    return replace(teacher, model=copy.deepcopy(teacher.model).to("cuda:0"))


def learned(teacher: Teacher) -> tuple[Distiller, float]:
    """A student of two batches, stopped and taken up again between them, and its KL to the teacher."""
    batches = Streamed(Inverter(teacher, JOB))
    first, second = (Distiller(teacher, load_student("teacher", teacher), Distillation()) for _ in range(2))
    first.learn(batches.batch(0), 0)
    second.restore(first.state())
    second.learn(batches.batch(1), 1)
    pictures = Pictures.of("noise", torch.randn(3, 1, 32, 32, generator=torch.Generator().manual_seed(0)))
    return second, Judge(teacher.logits, pictures)(of_student(teacher, second.student)).kl


def test_a_student_is_the_cpus() -> None:
    """Weights and momentum agree but for rounding, also where training was taken up again; the student is there, and
    what is saved of it here."""
    here = grey_teacher()
    want, kl = learned(here)
    with elsewhere():
        found, there = learned(moved(here))
        assert all(isinstance(weight, There) for weight in found.student.model.state_dict().values())
        state = found.state()
    assert there == pytest.approx(kl, rel=1e-3)
    for name, value in want.state().items():
        assert not isinstance(state[name], There)
        assert torch.allclose(state[name], value, atol=1e-4), name


def test_a_students_tensor_left_behind_fails() -> None:
    """So the test above would tell; and so would one of the judging teacher's."""
    here = grey_teacher()
    images = Inverter(here, JOB).shard(0)[0]
    with elsewhere():
        there = moved(here)
        distiller = Distiller(there, load_student("teacher", there), Distillation())
        for model, judged in ((distiller.student.model, False), (there.model, True)):
            model.norm.weight = torch.nn.Parameter(torch.ones(32), requires_grad=False)
            with pytest.raises(RuntimeError, match="same device"):
                there.logits(torch.zeros(1, 1, 32, 32)) if judged else distiller.learn(images, 0)
