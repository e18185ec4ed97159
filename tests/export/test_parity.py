"""Layer by layer: the ONNX file against torch, on the same inputs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from export.parity import layer_parity
from inversion.errors import InputError
from tests.small import Quantized

Make = Callable[..., Quantized]


@pytest.mark.parametrize(
    ("bits", "attention"),
    [("w8a8", "float"), ("w4a8", "float"), ("w4a4", "float"), ("w8a16", "float"), ("w8a8", "int8")],
)
def test_every_layer_is_torchs(quantized: Make, bits: str, attention: str) -> None:
    """Integers by one step at most, and hardly ever; the product of equal integers exactly."""
    made = quantized(bits, attention)
    found = layer_parity(made.path, made.module, made.images[:4])
    assert sorted(layer.name for layer in found) == sorted(made.weights.layers)
    assert all(layer.exact for layer in found)
    assert max(layer.flipped for layer in found) < 1e-3


def edit(path: Path, out: Path, name: str, change: Callable[[np.ndarray], np.ndarray]) -> None:
    model = onnx.load(path)
    tensor = next(tensor for tensor in model.graph.initializer if tensor.name == name)
    tensor.CopyFrom(numpy_helper.from_array(change(numpy_helper.to_array(tensor).copy()), name))
    onnx.save(model, out)


def one_more(values: np.ndarray) -> np.ndarray:
    values.flat[0] += 1 if values.flat[0] < 127 else -1
    return values


@pytest.mark.parametrize(
    ("tensor", "change"),
    [
        ("blocks.1.mlp.fc1.weight", one_more),
        ("blocks.1.mlp.fc1.bias", lambda values: values * np.float32(1.01)),
        ("blocks.1.mlp.fc1.weight_step", lambda values: values * np.float32(1.001)),
        ("blocks.1.mlp.fc1.input_step", lambda values: values * np.float32(1.1)),
    ],
)
def test_one_wrong_number_is_found_in_its_layer(
    quantized: Make, tensor: str, change: Callable[[np.ndarray], np.ndarray], tmp_path: Path
) -> None:
    """An integer off by one, a bias, a weight's or an input's step: exactly that layer is inexact."""
    made = quantized("w8a8")
    edit(made.path, tmp_path / "m.onnx", tensor, change)
    found = layer_parity(tmp_path / "m.onnx", made.module, made.images[:4])
    assert [layer.name for layer in found if not layer.exact] == ["blocks.1.mlp.fc1"]


def test_a_file_of_another_model_is_refused(quantized: Make, tmp_path: Path) -> None:
    """The layer that is missing is named."""
    made = quantized("w8a8")
    model = onnx.load(made.path)
    for node in model.graph.node:
        node.name = node.name.replace("blocks.1.", "stages.1.")
    onnx.save(model, tmp_path / "m.onnx")
    with pytest.raises(InputError, match=r"has no layer 'blocks\.1\.attn\.qkv': it was made from another model"):
        layer_parity(tmp_path / "m.onnx", made.module, made.images[:1])
