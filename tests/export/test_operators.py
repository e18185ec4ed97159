"""Quantize and dequantize: their arithmetic, and what the exporter may rely on."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from export.operators import TRANSLATIONS, dequantize, dequantize_columns, quantize

ROOT = Path(__file__).parents[2]


def test_quantize_rounds_to_even_and_saturates() -> None:
    """round(x / step) of ONNX's QuantizeLinear: halves go to the even neighbour, what is too large to the ends."""
    x = torch.tensor([-100.0, -32.25, -0.75, -0.25, 0.25, 0.375, 0.75, 31.75, 32.0, 100.0])
    assert quantize(x, 0.5).tolist() == [-128, -64, -2, 0, 0, 1, 2, 64, 64, 127]
    assert quantize(x, 0.25).tolist() == [-128, -128, -3, -1, 1, 2, 3, 127, 127, 127]
    assert quantize(x, 0.5).dtype == torch.int8


def test_dequantize_is_the_product() -> None:
    """Every integer times the step, exactly the float32 product; one step for all, or one a column."""
    integers = torch.arange(-128, 128, dtype=torch.int16).to(torch.int8).reshape(64, 4)
    assert np.array_equal(dequantize(integers, 0.1).numpy(), integers.numpy().astype(np.float32) * np.float32(0.1))
    steps = torch.tensor([0.1, 0.2, 0.3, 1e-4])
    assert np.array_equal(dequantize_columns(integers, steps).numpy(), integers.numpy() * steps.numpy())


@pytest.mark.parametrize(
    ("operator", "given"),
    [
        (quantize, (torch.randn(2, 3), 0.1)),
        (dequantize, (torch.zeros(2, 3, dtype=torch.int8), 0.1)),
        (dequantize_columns, (torch.zeros(2, 3, dtype=torch.int8), torch.ones(3))),
    ],
)
def test_torch_can_trace_them(operator: torch.library.CustomOpDef, given: tuple[object, ...]) -> None:
    """Schema, and shapes and types without data, are those of the real call; each has its translation."""
    torch.library.opcheck(operator, given, test_utils=("test_schema", "test_faketensor"))
    assert operator._opoverload in TRANSLATIONS


def test_nothing_deprecated_is_loaded() -> None:
    """`torch.ao.quantization`, where torch keeps such operators, goes away: an export must not need it."""
    code = "import export.graph, export.qdq, sys; print('torch.ao.quantization.fx._decomposed' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
