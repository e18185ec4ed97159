"""Quantize and dequantize as torch operators of our own, each of which the exporter turns into ONNX's of that name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from onnxscript import FLOAT, INT8, opset18
from torch import Tensor

LOW, HIGH = -128, 127

op: Any = opset18  # its annotations know no Python numbers, which the exporter does take


@torch.library.custom_op("patch_rebirth::quantize", mutates_args=(), schema="(Tensor x, float step) -> Tensor")
def quantize(x: Tensor, step: float) -> Tensor:
    """The integers round(x / step) as int8, saturated at its ends; same shape."""
    return (x * (1 / step)).round().clamp(LOW, HIGH).to(torch.int8)


@torch.library.custom_op("patch_rebirth::dequantize", mutates_args=(), schema="(Tensor x, float step) -> Tensor")
def dequantize(x: Tensor, step: float) -> Tensor:
    """float32 of int8 integers times `step`; same shape."""
    return x.float() * step


@torch.library.custom_op(
    "patch_rebirth::dequantize_columns", mutates_args=(), schema="(Tensor x, Tensor steps) -> Tensor"
)
def dequantize_columns(x: Tensor, steps: Tensor) -> Tensor:
    """float32 of int8 integers [in, out] times `steps` [out]."""
    return x.float() * steps


@quantize.register_fake
def _(x: Tensor, step: float) -> Tensor:  # noqa: ARG001
    return torch.empty_like(x, dtype=torch.int8)


@dequantize.register_fake
def _(x: Tensor, step: float) -> Tensor:  # noqa: ARG001
    return torch.empty_like(x, dtype=torch.float32)


@dequantize_columns.register_fake
def _(x: Tensor, steps: Tensor) -> Tensor:  # noqa: ARG001
    return torch.empty_like(x, dtype=torch.float32)


def _zero() -> Any:
    return op.Constant(value=ir.tensor(np.array(0, np.int8)))


def _quantize(x: FLOAT, step: float) -> INT8:
    return op.QuantizeLinear(x, step, _zero())


def _dequantize(x: INT8, step: float) -> FLOAT:
    return op.DequantizeLinear(x, step, _zero())


def _dequantize_columns(x: INT8, steps: FLOAT) -> FLOAT:
    # the cast folds away; it settles where in the file the steps stand, as they always have
    return op.DequantizeLinear(x, op.Cast(steps, to=ir.DataType.FLOAT), axis=1)


TRANSLATIONS: dict[Callable[..., Any], Callable[..., Any]] = {
    torch.ops.patch_rebirth.quantize.default: _quantize,
    torch.ops.patch_rebirth.dequantize.default: _dequantize,
    torch.ops.patch_rebirth.dequantize_columns.default: _dequantize_columns,
}
"""For `torch.onnx.export`: what each operator is in ONNX; zero points are 0."""
