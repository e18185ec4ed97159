"""Quantization runs where the teacher is: tried on torch's device `meta`, where every machine can put a model."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import pytest
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakIdKeyDictionary

from calib.basis import Rotations, fold, rotate
from calib.qat import train
from calib.quantization import change_basis, quantizable, round_weights, set_ranges
from calib.ranges import input_quantizers, insert_quantizers, some_ranges
from calib.scheme import QuantScheme
from calib.settings import Basis, Calibration, Rounding, Training
from calib.views import Views

aten = torch.ops.aten
READS = {aten._local_scalar_dense.default, aten.item.default, aten.is_nonzero.default}
MOVES = {aten._to_copy.default, aten.copy_.default}
PICKS = {aten.index.Tensor, aten.index_put_.default}
"""What takes indices from the CPU too."""


class Elsewhere(TorchDispatchMode):
    """No operation mixes devices but for single numbers. Whoever reads a number from `meta` is told 1, and that nothing
    is below another."""

    def __init__(self) -> None:
        super().__init__()
        self.below: Any = WeakIdKeyDictionary()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        given = args[:1] if func in PICKS else (args, kwargs)
        places = {each.device.type for each in tree_leaves(given) if isinstance(each, Tensor) and each.ndim}
        assert len(places) < 2 or func in MOVES, f"{func} takes tensors of {sorted(places)}"
        first = args[0] if args else None
        if isinstance(first, Tensor) and first.is_meta:
            if func in READS:
                return torch.full((), first not in self.below, dtype=first.dtype).item()
            if torch.device("cpu") in (*args[1:], *kwargs.values()):
                return torch.ones(first.shape, dtype=kwargs.get("dtype") or first.dtype)
        found = func(*args, **kwargs)
        if func in (aten.lt.Scalar, aten.lt.Tensor):
            self.below[found] = True
        return found


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch) -> VisionTransformer:
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())  # it knows no `meta`
    with torch.device("meta"):
        made = VisionTransformer(16, 8, in_chans=1, num_classes=3, embed_dim=16, depth=1, num_heads=2)
    return made.eval().requires_grad_(False)


def views(count: int) -> Views:
    return Views(((torch.empty(count, 4, 64, device="meta"), torch.zeros(count, 4, dtype=torch.long, device="meta")),))


def test_every_stage_stays_where_the_teacher_is(model: VisionTransformer) -> None:
    """Basis, centring, ranges, saliency, GPTQ and training mix no devices."""
    scheme = QuantScheme.parse("w4a4")
    with Elsewhere():
        based, *_ = change_basis(model, scheme, Basis(updates=1))
        student = quantizable(based, scheme, views(4))
        set_ranges(student, based, views(4), views(2), Calibration())
        round_weights(student, based, scheme, views(4), Rounding())
        train(student, based, views(4), views(2), Training(updates=1, batch=2, optimizer="sgd", precision="float32"))
    assert all(weight.is_meta for weight in student.state_dict().values())


def test_what_a_checkpoint_holds_comes_to_the_teacher(model: VisionTransformer) -> None:
    """Rotations from a file, and the ranges that training will restore, go where the teacher is."""
    scheme, known = QuantScheme.parse("w4a8"), Rotations(torch.eye(16), {"blocks.0.attn": torch.eye(8).repeat(2, 1, 1)})
    with Elsewhere():
        student = insert_quantizers(rotate(fold(model)[0], known), scheme)
        some_ranges(student)
    assert all(quantizer.amax.is_meta for quantizer in input_quantizers(student).values())
