"""Quantization runs where the teacher is: on a pretended CUDA device, with the numbers of the CPU."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from calib.basis import Rotations, fold, rotate
from calib.damage import Probe, judging_material
from calib.gptq import gptq_round
from calib.lessons import Lessons
from calib.lsq import LSQFunction
from calib.qat import Trainer
from calib.quantization import material, quantizable, quantize, round_weights, set_ranges
from calib.ranges import input_quantizers, insert_quantizers, some_ranges
from calib.saliency import token_saliency
from calib.scheme import QuantScheme
from calib.settings import RANGE_METHODS, Basis, Calibration, Rounding, Training
from inversion.plainvit import PlainViT
from inversion.teacher import Teacher, input_spec
from tests.elsewhere import There, elsewhere
from tests.small import small_vit, sparse_images

IMAGES = sparse_images(6)
BASIS, CALIBRATION = Basis(updates=2), Calibration(leaves=2)
TRAINING = Training(updates=2, batch=2, checks=1, precision="float32")
W4A4 = QuantScheme.parse("w4a4")


@pytest.fixture(scope="module")
def here() -> Teacher:
    """16 patches of 8x8 grey pixels, one thin block."""
    model = small_vit(patch_size=8, num_classes=5, embed_dim=16, num_heads=2, depth=1)
    model.pretrained_cfg = {"input_size": (1, 32, 32), "mean": (0.5,), "std": (0.25,), "crop_pct": 1.0}
    return Teacher(model, replace(input_spec(model), num_classes=5), "small", "0" * 64)


def moved(teacher: Teacher) -> Teacher:
    return replace(teacher, model=copy.deepcopy(teacher.model).to("cuda:0"))


@pytest.mark.parametrize(("bits", "method", "optimizer"), [("w4a4", "auto", "adam"), ("w8a8", "percentile", "sgd")])
def test_the_whole_way_gives_the_cpus_weights(here: Teacher, bits: str, method: Any, optimizer: Any) -> None:
    """Basis, centring, ranges by every method, saliency, GPTQ and training mix no devices, and come to the same
    integers; steps and biases differ by rounding, as attention takes other sums there."""
    scheme = replace(QuantScheme.parse(bits), attention="int8" if bits == "w8a8" else "float")
    training = replace(TRAINING, optimizer=optimizer)
    if optimizer == "sgd":  # the paper's: the teacher answers once
        training = replace(training, crops=False, feature_weight=0.0)
    settings = (BASIS, replace(CALIBRATION, method=method), Rounding(), training)
    want = quantize(here, IMAGES, scheme, *settings)
    with elsewhere():
        found = quantize(moved(here), IMAGES, scheme, *settings)
    assert (found.method, found.tried.keys()) == (want.method, want.tried.keys())
    assert found.training.best.kl == pytest.approx(want.training.best.kl, rel=1e-3)
    for name, tensor in found.weights.tensors.items():
        assert not isinstance(tensor, There)
        assert torch.allclose(tensor.float(), want.weights.tensors[name].float(), rtol=1e-4, atol=1e-4), name


def test_training_goes_on_there(here: Teacher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a checkpoint holds of rotations, weights, average and optimizer comes to the GPU; the bytes are those of a
    training that nobody stopped."""
    settings = (BASIS, replace(CALIBRATION, method="max"), Rounding("nearest"), TRAINING)
    with elsewhere():
        teacher = moved(here)
        want = quantize(teacher, IMAGES, "w4a8", *settings).weights.tensors
        update = Trainer.update

        def stop(trainer: Trainer) -> float:
            if trainer.done == 1:
                raise KeyboardInterrupt
            return update(trainer)

        monkeypatch.setattr("calib.training_checkpoint.SAVE_EVERY_S", 0.0)
        monkeypatch.setattr(Trainer, "update", stop)
        with pytest.raises(KeyboardInterrupt):
            quantize(teacher, IMAGES, "w4a8", *settings, checkpoint=tmp_path / "training.safetensors")
        monkeypatch.setattr(Trainer, "update", update)
        found = quantize(teacher, IMAGES, "w4a8", *settings, checkpoint=tmp_path / "training.safetensors")
    assert all(torch.equal(tensor, want[name]) for name, tensor in found.weights.tensors.items())


def test_what_a_checkpoint_holds_comes_to_the_teacher(here: Teacher) -> None:
    """Rotations from a file, and the ranges that training will restore, go where the teacher is."""
    known = Rotations(torch.eye(16), {"blocks.0.attn": torch.eye(8).repeat(2, 1, 1)})
    with elsewhere():
        student = insert_quantizers(rotate(fold(moved(here).model)[0], known), W4A4)
        some_ranges(student)
        assert all(isinstance(each, There) for each in student.state_dict().values())
        assert all(isinstance(quantizer.amax, There) for quantizer in input_quantizers(student).values())


def test_ranges_of_every_method_stay_there(here: Teacher) -> None:
    """CUDA would take single numbers from the CPU too, and wait for each at every use."""
    with elsewhere():
        teacher = moved(here)
        show, held_out = material(teacher, IMAGES, CALIBRATION)
        student = insert_quantizers(teacher.model, W4A4)
        for method in RANGE_METHODS:
            set_ranges(student, teacher.model, show("mixed"), held_out, replace(CALIBRATION, method=method))
            for quantizer in input_quantizers(student).values():
                assert isinstance(quantizer.amax, There)
                del quantizer._amax


def test_modelopt_compiles_nothing_on_a_gpu(here: Teacher, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its own kernels would take minutes, a compiler, and round otherwise."""

    def fail(**_: Any) -> None:
        pytest.fail("ModelOpt began to compile")

    monkeypatch.setattr("modelopt.torch.quantization.extensions.load_cpp_extension", fail)
    with elsewhere():
        there = insert_quantizers(moved(here).model, W4A4)
    for name, weight in insert_quantizers(here.model, W4A4).state_dict().items():
        assert torch.equal(weight, there.state_dict()[name].cpu()), name


def test_sensitivity_stays_there(here: Teacher) -> None:
    """Layer by layer, the KL of the CPU."""
    found = []
    for place in (nullcontext, elsewhere):
        with place():
            teacher = here if place is nullcontext else moved(here)
            shown, judge, many = judging_material(teacher, IMAGES, 4, CALIBRATION)
            probe = Probe(teacher, QuantScheme.parse("w4a8"), shown, judge, Basis("none"), Calibration(method="max"))
            found.append([layer.weight_kl for layer in probe.damage(many)])
    assert found[0] == pytest.approx(found[1], rel=1e-3)


def test_nothing_in_training_is_a_second_copy_of_the_teacher(here: Teacher) -> None:
    """Lessons ask the teacher that they were given; in bfloat16 autocast makes what it needs of it."""
    show, held_out = material(here, IMAGES, CALIBRATION)
    student = insert_quantizers(here.model, W4A4)
    some_ranges(student)
    trainer = Trainer(student, here.model, show("mixed"), held_out, replace(TRAINING, precision="bfloat16"))
    assert trainer.lessons.teacher is here.model
    assert trainer.lessons.half
    models = [part for part in (vars(trainer) | vars(trainer.lessons)).values() if isinstance(part, nn.Module)]
    assert {id(part) for part in models} == {id(part) for part in (student, here.model, trainer.average)}


def _left(module: PlainViT, name: str) -> None:
    """Bring one tensor of `module` back to the CPU, as if it had been forgotten."""
    owner, _, attribute = name.rpartition(".")
    part = module.get_submodule(owner)
    tensor: Any = getattr(part, attribute)
    setattr(part, attribute, nn.Parameter(tensor.held, requires_grad=False))


Stage = Callable[[PlainViT, Teacher], object]


def _ranges(model: PlainViT, teacher: Teacher) -> None:
    show, held_out = material(teacher, IMAGES, CALIBRATION)
    set_ranges(insert_quantizers(model, W4A4), teacher.model, show("mixed"), held_out, CALIBRATION)


def _rounding(model: PlainViT, teacher: Teacher) -> None:
    show, _ = material(teacher, IMAGES, CALIBRATION)
    round_weights(quantizable(model, W4A4, show("mixed")), model, W4A4, show("mixed"), Rounding())


def _saliency(model: PlainViT, teacher: Teacher) -> None:
    show, _ = material(teacher, IMAGES, CALIBRATION)
    token_saliency(model, show("mixed"), {"fc2": model.blocks[0].mlp.fc2})


def _training(model: PlainViT, teacher: Teacher) -> None:
    show, held_out = material(teacher, IMAGES, CALIBRATION)
    lessons = Lessons(model, show("mixed"), TRAINING)
    lessons.next(model)
    Trainer(model, teacher.model, show("mixed"), held_out, TRAINING)


STAGES: Mapping[str, tuple[Stage, str]] = {
    "basis": (lambda model, _: rotate(fold(model)[0], Rotations(torch.eye(16))), "norm.weight"),
    "ranges": (_ranges, "blocks.0.mlp.fc1.bias"),
    "rounding": (_rounding, "blocks.0.attn.proj.weight"),
    "saliency": (_saliency, "head.weight"),
    "training": (_training, "pos_embed"),
}


@pytest.mark.parametrize("name", STAGES)
def test_a_tensor_left_behind_fails(here: Teacher, name: str) -> None:
    """In every stage: so these tests would tell."""
    stage, forgotten = STAGES[name]
    with elsewhere():
        teacher = moved(here)
        model = copy.deepcopy(teacher.model)
        _left(model, forgotten)
        with pytest.raises(RuntimeError, match="same device"):
            stage(model, teacher)


def test_a_step_or_hessian_left_behind_fails() -> None:
    """In the functions that training and GPTQ stand on."""
    with elsewhere() as device:
        weight, step, hessian = torch.randn(4, 3, device=device), torch.ones(4, device=device), torch.eye(3)
        gptq_round(weight, step, hessian.to(device), -8, 7)
        for scale, sums in ((step, hessian), (step.cpu(), hessian.to(device))):
            with pytest.raises(RuntimeError, match="same device"):
                gptq_round(weight, scale, sums, -8, 7)
        with pytest.raises(RuntimeError, match="same device"):
            LSQFunction.apply(weight, torch.ones(4, 1), -8, 7, 1.0)
