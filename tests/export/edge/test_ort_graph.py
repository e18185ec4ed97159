"""The file that only ONNX Runtime reads: fewer nodes, the same weights, the same answers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from export.edge.ort_graph import write_ort_graph
from export.edge.registry import find_runtime
from export.edge.runtime import open_runtime
from inversion.errors import InputError
from tests.small import Quantized

Make = Callable[..., Quantized]


def logits(path: Path, made: Quantized) -> np.ndarray:
    with open_runtime(path, threads=1) as runtime:
        return runtime.run({"input": made.images.numpy()})["logits"]


@pytest.mark.parametrize(
    ("bits", "attention"), [("w8a8", "float"), ("w8a8", "int8"), ("w4a4", "float")], ids=["w8a8", "int8", "w4a4"]
)
def test_answers_are_the_same_to_the_last_bit(quantized: Make, bits: str, attention: str, tmp_path: Path) -> None:
    """Also where integers are clamped to fewer bits than their carrier's, and beside quantized attention."""
    made = quantized(bits, attention)
    write_ort_graph(made.path, tmp_path / "m.ort.onnx")
    np.testing.assert_array_equal(logits(tmp_path / "m.ort.onnx", made), logits(made.path, made))


def test_each_linear_is_one_node(quantized: Make, tmp_path: Path) -> None:
    """Product, bias and quantizers; scale and transpose of attention's first product as well. Weights stay the bytes
    that they are, under their names; two files are the same bytes."""
    made = quantized("w8a8")
    for name in ("one.onnx", "two.onnx"):
        write_ort_graph(made.path, tmp_path / name)
    assert (tmp_path / "one.onnx").read_bytes() == (tmp_path / "two.onnx").read_bytes()
    before, after = onnx.load(made.path), onnx.load(tmp_path / "one.onnx")
    count, old = (Counter(node.op_type for node in model.graph.node) for model in (after, before))
    assert (count["MatMulIntegerToFloat"], count["QuantizeLinear"], count["FusedMatMul"]) == (10, 10, 2)
    assert count["DequantizeLinear"] == count["Mul"] == 0
    assert (count["MatMul"], count["Add"], count["Transpose"]) == (2, old["Add"] - 10, old["Transpose"] - 2)
    weights, kept = (
        {
            tensor.name: numpy_helper.to_array(tensor).tobytes()
            for tensor in model.graph.initializer
            if tensor.data_type == 3
        }
        for model in (before, after)
    )
    assert kept == {name: content for name, content in weights.items() if name != "zero_point"}
    assert {entry.key: entry.value for entry in after.metadata_props} == {"teacher": "small", "scheme": "w8a8"}


def test_its_products_are_counted_as_those_of_the_portable_file(quantized: Make, tmp_path: Path) -> None:
    """All ten linears on integers, attention's four on floats."""
    write_ort_graph(quantized("w8a8").path, tmp_path / "m.onnx")
    found = find_runtime("cpu").kernels(tmp_path / "m.onnx").to_dict()
    assert found["linears"] == {"integer": 10, "all": 10}
    assert found["attention"] == {"integer": 0, "all": 4}


def test_a_model_without_integer_products_is_refused(quantized: Make, float_path: Path, tmp_path: Path) -> None:
    """A float model, and one whose activations are float."""
    for path in (float_path, quantized("w8a16").path):
        with pytest.raises(InputError, match=r"has no quantized linear: give the model.onnx of a run"):
            write_ort_graph(path, tmp_path / "m.onnx")
    assert not list(tmp_path.iterdir())
