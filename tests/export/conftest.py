"""Small quantized models and their files, made once for all tests of the folder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from calib.scheme import QuantScheme
from export.graph import export_float, export_quantized
from export.qdq import qdq_module
from tests.small import SPEC, Quantized, grey_images, quantize_by_max, small_vit


@pytest.fixture(scope="session")
def quantized(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Quantized]:
    """By bits and kind of attention, each exported once."""
    made: dict[tuple[str, str], Quantized] = {}

    def make(bits: str, attention: str = "float") -> Quantized:
        key = (bits, attention)
        if key not in made:
            model, images, path = small_vit(), grey_images(16), tmp_path_factory.mktemp(attention) / f"{bits}.onnx"
            weights = quantize_by_max(model, QuantScheme.parse(bits, attention=attention), images)
            module = qdq_module(model, weights)
            export_quantized(module, SPEC, path, {"teacher": "small", "scheme": bits})
            made[key] = Quantized(model, weights, module, path, images)
        return made[key]

    return make


@pytest.fixture(scope="session")
def float_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("float") / "float.onnx"
    export_float(small_vit(), SPEC, path, {"teacher": "small"})
    return path
