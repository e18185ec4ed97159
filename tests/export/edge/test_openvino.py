"""OpenVINO beside ONNX Runtime: the same file, the same interface. Skipped where it is not installed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from export.edge.alone import Alone, Turn
from export.edge.compare import compare
from export.edge.registry import OPENVINO, find_runtime
from export.edge.runtime import answer, open_runtime
from export.graph import export_float, write_int4
from inversion.errors import InputError, MachineError
from tests.small import SPEC, Quantized, small_vit

Make = Callable[..., Quantized]
needs_openvino = pytest.mark.skipif("not __import__('importlib.util').util.find_spec('openvino')", reason="an extra")


def test_its_absence_is_the_machines_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the line that brings it."""
    monkeypatch.setattr("export.edge.registry.available", lambda _: None)
    with pytest.raises(MachineError, match=r"pip install openvino, or use cpu"):
        find_runtime(OPENVINO)


@needs_openvino
def test_it_answers_as_onnx_runtime_does(quantized: Make) -> None:
    """Within what bfloat16 beside the integers changes; in any batch."""
    made = quantized("w8a8")
    pictures = made.images.numpy()
    with open_runtime(made.path) as one, open_runtime(made.path, OPENVINO, threads=1) as other:
        assert (other.inputs, other.outputs, other.batches) == (one.inputs, one.outputs, (1, None))
        assert other.dtypes == one.dtypes
        assert compare(answer(one, pictures), answer(other, pictures)).kl < 0.01
        np.testing.assert_allclose(answer(other, pictures[:3]), answer(other, pictures)[:3], atol=0.05)


@needs_openvino
def test_what_does_not_fit_is_refused(quantized: Make, tmp_path: Path) -> None:
    """Other names, types and shapes, which OpenVINO itself would convert; a closed model; a file that is none."""
    runtime = open_runtime(quantized("w8a8").path, OPENVINO)
    good = quantized("w8a8").images.numpy()
    for feeds in ({"x": good}, {"input": good.astype(np.float64)}, {"input": good[:, :, 1:]}, {"input": good[0]}):
        with pytest.raises(InputError, match=r"the model takes .* and was given"):
            runtime.run(feeds)
    runtime.close()
    runtime.close()
    with pytest.raises(InputError, match="the model was closed"):
        runtime.run({"input": good})
    (tmp_path / "m.onnx").write_bytes(b"no model")
    with pytest.raises(InputError, match="is not an ONNX file"):
        open_runtime(tmp_path / "m.onnx", OPENVINO)


@needs_openvino
@pytest.mark.parametrize("attention", ["float", "int8"])
def test_its_products_are_named(quantized: Make, attention: str, tmp_path: Path) -> None:
    """Every linear runs on integers there; attention's products as the scheme has them."""
    found = find_runtime(OPENVINO).kernels(quantized("w8a8", attention).path)
    told = found.to_dict()
    assert told["linears"] == {"integer": 10, "all": 10}
    assert len(found.products) == 14
    assert told["runtime"].startswith("OpenVINO 20")
    made = quantized("w4a8")
    write_int4(made.path, tmp_path / "m.onnx", [name for name, bits in made.weights.layers.items() if bits.weight <= 4])
    assert len(find_runtime(OPENVINO).kernels(tmp_path / "m.onnx").products) == 14


@needs_openvino
def test_it_takes_bytes_and_turns(tmp_path: Path) -> None:
    """A model of pixels, in a process of its own."""
    export_float(small_vit(), SPEC, tmp_path / "bytes.onnx", {}, uint8_input=True)
    with Alone(tmp_path / "bytes.onnx", OPENVINO) as model:
        assert len(model.take(Turn(2, 3, 1))) == 3
