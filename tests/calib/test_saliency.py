"""Which tokens count: the Fisher information's diagonal, and what GPTQ makes of it."""

import copy
import math
from typing import Any

import pytest
import torch
from torch import Generator, Tensor

from calib.fisher import DRAWS
from calib.gptq import block_linears, round_model
from calib.quantization import quantize
from calib.saliency import GROUPS, token_saliency
from calib.scheme import QuantScheme, integer_range
from calib.settings import Basis, Calibration, Rounding, Training
from calib.views import Views
from inversion.errors import InputError
from inversion.plainvit import PlainViT
from inversion.sparse import sparse_forward
from inversion.teacher import Teacher
from tests.small import inserted, small_teacher, sparse_images, views

LAYERS = ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")


@pytest.fixture(scope="module")
def teacher() -> Teacher:
    return small_teacher()


def linears(model: PlainViT) -> dict[str, Any]:
    return {
        f"blocks.{block}.{part}": model.get_submodule(f"blocks.{block}.{part}") for block in (0, 1) for part in LAYERS
    }


def by_hand(teacher: Teacher, name: str, patches: Tensor, kept: Tensor, answers: Tensor) -> Tensor:
    """Squared gradients [B, T, out] of the log likelihood of `answers` [B, DRAWS] to a layer's output, mean over draws,
    one image at a time, from a shift of the output that is 0."""
    model, rows = copy.deepcopy(teacher.model), []
    layer: Any = model.get_submodule(name)
    for image in range(len(kept)):
        squared = torch.zeros(())
        for answer in answers[image]:
            shift = torch.zeros(1, 1 + kept.shape[1], layer.out_features, requires_grad=True)
            hook = layer.register_forward_hook(lambda _, __, output, shift=shift: output + shift)
            said = sparse_forward(model, patches[image : image + 1], kept[image : image + 1]).log_softmax(-1)
            hook.remove()
            squared = squared + torch.autograd.grad(said[0, answer], shift)[0].square() / DRAWS
        rows.append(squared)
    return torch.cat(rows)


@pytest.mark.parametrize("name", ["blocks.0.attn.qkv", "blocks.1.mlp.fc1", "blocks.1.attn.proj"])
def test_saliency_is_the_squared_gradient(teacher: Teacher, name: str) -> None:
    """Of the log likelihood of drawn answers, mean over a group's outputs, over the image's own mean."""
    images = views(3)
    ((patches, kept),) = images.groups
    (found,) = token_saliency(teacher.model, images, linears(teacher.model), seed=5)
    said = sparse_forward(teacher.model, patches, kept).softmax(-1)
    answers = torch.multinomial(said, DRAWS, replacement=True, generator=Generator().manual_seed(5))
    squared = by_hand(teacher, name, patches, kept, answers)
    want = torch.stack([part.mean(-1) for part in squared.tensor_split(GROUPS, -1)], -1)
    want = want / want.mean((1, 2), keepdim=True)
    torch.testing.assert_close(found[name], want, rtol=1e-3, atol=1e-5)


def test_tokens_that_nobody_reads_do_not_count(teacher: Teacher) -> None:
    """Behind the last attention only the class token reaches the classifier."""
    (found,) = token_saliency(teacher.model, views(3), linears(teacher.model))
    for part in ("attn.proj", "mlp.fc1", "mlp.fc2"):
        last = found[f"blocks.1.{part}"]
        assert not last[:, 1:].any()
        assert bool((last[:, 0].mean(-1) > 1).all())
    assert bool((found["blocks.0.mlp.fc2"] > 0).any(-1).all())


@pytest.mark.parametrize("kind", ["mosaic", "sparse"])
def test_every_batch_has_its_table(teacher: Teacher, kind: str) -> None:
    """[B, T, GROUPS] a layer, mean 1 in every image, in the order of the views' batches; the same again."""
    images = views(40, kind)
    found = token_saliency(teacher.model, images, linears(teacher.model))
    again = token_saliency(teacher.model, images, linears(teacher.model))
    batches = list(images.batches())
    assert len(found) == len(batches) > 1
    for table, twin, (_, kept) in zip(found, again, batches, strict=True):
        for name, values in table.items():
            assert values.shape == (len(kept), 1 + kept.shape[1], GROUPS)
            torch.testing.assert_close(values.mean((1, 2)), torch.ones(len(kept)))
            assert torch.equal(values, twin[name])
    assert not any(module._forward_hooks for module in teacher.model.modules())
    assert all(parameter.grad is None for parameter in teacher.model.parameters())


def test_answers_that_are_not_finite_are_refused(teacher: Teacher) -> None:
    """One sentence instead of torch's, and no hook stays behind."""
    patches, kept = views(3).groups[0]
    patches = patches.clone()
    patches[1, 2, 3] = math.nan
    with pytest.raises(
        InputError, match=r"^the teacher's answers are not finite numbers: the teacher or the images are b"
    ):
        token_saliency(teacher.model, Views(((patches, kept),)), linears(teacher.model))
    assert not any(module._forward_hooks for module in teacher.model.modules())


def test_each_group_of_outputs_is_rounded_by_its_own_tokens(teacher: Teacher) -> None:
    """Saliency of 1 everywhere changes nothing; that of one group changes no other group's integers in the first
    layer."""
    images, first = views(6), "blocks.0.attn.qkv"
    students = [inserted(teacher, "w4a16") for _ in range(3)]
    layers = block_linears(students[0])
    scales = {name: layer.weight_quantizer.amax.flatten() / integer_range(4)[1] for name, layer in layers.items()}
    alike = [
        {name: torch.ones(len(kept), 1 + kept.shape[1], GROUPS) for name in layers} for _, kept in images.batches()
    ]
    uneven = copy.deepcopy(alike)
    for batch in uneven:
        batch[first][:, 1:, 2] = 0.0
    bits = dict.fromkeys(layers, 4)
    plain = round_model(students[0], images, scales, bits)
    same = round_model(students[1], images, scales, bits, saliency=alike)
    other = round_model(students[2], images, scales, bits, saliency=uneven)
    assert all(torch.equal(plain[name], same[name]) for name in layers)
    changed = [
        not torch.equal(*parts)
        for parts in zip(plain[first].tensor_split(GROUPS), other[first].tensor_split(GROUPS), strict=True)
    ]
    assert changed == [group == 2 for group in range(GROUPS)]


@pytest.mark.parametrize(("bits", "differ"), [("w4a16", True), ("w8a16", False)])
def test_the_recipe_decides_whether_tokens_count_alike(teacher: Teacher, bits: str, differ: bool) -> None:
    """`rounding.saliency` reaches GPTQ's integers; at 8 bits nothing is rounded by it, and no gradient is taken."""
    phases: set[str] = set()

    def integers(saliency: bool) -> dict[str, Tensor]:
        parts = (
            Basis(method="none"),
            Calibration(method="max", leaves=4),
            Rounding(saliency=saliency),
            Training(updates=0),
        )
        scheme = QuantScheme.parse(bits)
        made = quantize(teacher, sparse_images(8), scheme, *parts, lambda phase, *_: phases.add(phase))
        return {f"{name}.weight": made.weights.tensors[f"{name}.weight"] for name in made.weights.layers}

    alike, weighed = integers(False), integers(True)
    assert any(not torch.equal(values, weighed[name]) for name, values in alike.items()) == differ
    assert ("saliency" in phases) == differ
