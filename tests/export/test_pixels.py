"""Pictures as bytes: the way in and back, and a graph that takes them."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from export.edge.build import ENGINE_GRAPH, build_engines
from export.edge.compare import compare
from export.edge.runtime import open_runtime
from export.graph import export_float, export_quantized
from export.pixels import from_pixels, to_pixels
from export.qdq import qdq_module
from inversion.teacher import InputSpec
from tests.small import SPEC, Quantized, small_vit

Make = Callable[..., Quantized]
RGB = InputSpec((8, 8), (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), "bicubic", 0.9, 10)


@pytest.fixture(scope="module")
def of_bytes(quantized: Make, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The files of `quantized` that take bytes, by bits, each exported once."""

    @cache
    def make(bits: str) -> Path:
        made, path = quantized(bits), tmp_path_factory.mktemp("bytes") / f"{bits}.onnx"
        export_quantized(qdq_module(made.model, made.weights), SPEC, path, {}, uint8_input=True)
        return path

    return make


def test_bytes_come_back_as_they_were() -> None:
    """Every value of a byte in every channel, through the floats and back."""
    pixels = torch.arange(256, dtype=torch.uint8).view(4, 8, 8, 1).expand(4, 8, 8, 3)
    images = from_pixels(pixels, RGB)
    assert images.shape == (4, 3, 8, 8)
    assert torch.equal(to_pixels(images, RGB), pixels)
    wanted = (pixels[..., 2].float() / 255 - RGB.mean[2]) / RGB.std[2]
    torch.testing.assert_close(images[:, 2], wanted)


def test_beyond_the_range_of_bytes_is_cut() -> None:
    """Floats brighter than white or darker than black become 255 and 0."""
    images = torch.tensor([-99.0, 99.0]).view(2, 1, 1, 1).expand(2, 3, 8, 8)
    assert to_pixels(images, RGB).unique().tolist() == [0, 255]


def test_a_graph_of_bytes_is_the_graph_of_floats(quantized: Make, of_bytes: Callable[[str], Path]) -> None:
    """Same logits, same names, same integers; the input alone is uint8 [batch, H, W, C]."""
    made, path = quantized("w8a8"), of_bytes("w8a8")
    pixels = to_pixels(made.images, SPEC)
    with open_runtime(path) as runtime:
        assert runtime.inputs == {"input": (None, 32, 32, 1)}
        assert runtime.dtypes == {"input": np.uint8}
        found = runtime.run({"input": pixels.numpy()})["logits"]
    with open_runtime(made.path) as runtime:
        wanted = runtime.run({"input": from_pixels(pixels, SPEC).numpy()})["logits"]
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)
    ours, theirs = ({tensor.name for tensor in onnx.load(path).graph.initializer} for path in
                    (path, made.path))  # fmt: skip
    assert theirs <= ours


@pytest.mark.parametrize("precision", ["float16", "bfloat16", "float32"])
@pytest.mark.parametrize("bits", ["w8a8", "w4a8"])
def test_an_engine_is_built_from_a_graph_of_bytes(
    quantized: Make, of_bytes: Callable[[str], Path], bits: str, precision: str, tmp_path: Path
) -> None:
    """TensorRT takes bytes; its graph answers as the model of floats does, and the engine's input is uint8."""
    made = quantized(bits)
    ((_, engine),) = build_engines(of_bytes(bits), tmp_path, ["sm89"], "tensorrt_rtx", precision, (1, 2, 4))
    (given,) = engine.inputs
    assert (given.dtype, given.min, given.max) == ("uint8", (1, 32, 32, 1), (4, 32, 32, 1))
    assert engine.kernels["share"] == 1
    if precision == "bfloat16":  # ONNX Runtime's CPU kernels know none
        return
    pixels = to_pixels(made.images, SPEC)
    with open_runtime(tmp_path / ENGINE_GRAPH) as runtime, open_runtime(made.path) as floats:
        found = runtime.run({"input": pixels.numpy()})["logits"]
        wanted = floats.run({"input": from_pixels(pixels, SPEC).numpy()})["logits"]
    assert compare(wanted, found).kl < (1e-2 if precision == "float16" else 1e-5)


def test_the_float_model_takes_bytes_too(float_path: Path, tmp_path: Path) -> None:
    """Both files of a run take the same input, so that one can stand in for the other."""
    export_float(small_vit(), SPEC, tmp_path / "m.onnx", {}, uint8_input=True)
    pixels = torch.randint(0, 256, (3, 32, 32, 1), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    with open_runtime(tmp_path / "m.onnx") as bytes_in, open_runtime(float_path) as floats_in:
        found = bytes_in.run({"input": pixels.numpy()})["logits"]
        wanted = floats_in.run({"input": from_pixels(pixels, SPEC).numpy()})["logits"]
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)
