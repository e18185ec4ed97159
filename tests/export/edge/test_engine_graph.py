"""The graph that TensorRT builds from: what changes in it, and what must not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, numpy_helper

from export.edge.compare import compare
from export.edge.engine_graph import write_engine_graph
from export.edge.runtime import open_runtime
from inversion.errors import InputError
from tests.small import Quantized

Make = Callable[..., Quantized]
WIDE = TensorProto.FLOAT


def logits(path: Path, made: Quantized) -> np.ndarray:
    with open_runtime(path) as runtime:
        return runtime.run({"input": made.images.numpy()})["logits"]


@pytest.mark.parametrize("attention", ["float", "int8"])
@pytest.mark.parametrize("precision", ["float16", "bfloat16"])
def test_no_float32_is_left_inside(quantized: Make, precision: str, attention: str, tmp_path: Path) -> None:
    """Every constant and typed value is narrow or an integer; input and output stay float32, and the file is valid."""
    write_engine_graph(quantized("w8a8", attention).path, tmp_path / "m.onnx", precision)
    model = onnx.load(tmp_path / "m.onnx")
    onnx.checker.check_model(onnx.shape_inference.infer_shapes(model, strict_mode=True), full_check=True)
    assert {value.type.tensor_type.elem_type for value in (*model.graph.input, *model.graph.output)} == {WIDE}
    assert WIDE not in {tensor.data_type for tensor in model.graph.initializer}
    ends = {value.name for value in (*model.graph.input, *model.graph.output)}
    inferred = onnx.shape_inference.infer_shapes(model).graph.value_info
    assert [
        value.name for value in inferred if value.type.tensor_type.elem_type == WIDE and value.name not in ends
    ] == []


@pytest.mark.parametrize("precision", ["float16", "bfloat16", "float32"])
def test_integers_stay_what_they_are(quantized: Make, precision: str, tmp_path: Path) -> None:
    """Every int8 tensor is bit for bit that of the Q/DQ file, under its name."""
    made = quantized("w4a8")
    write_engine_graph(made.path, tmp_path / "m.onnx", precision)

    def integers(path: Path) -> dict[str, bytes]:
        held = onnx.load(path).graph.initializer
        return {value.name: numpy_helper.to_array(value).tobytes() for value in held if value.data_type == 3}

    assert integers(tmp_path / "m.onnx") == integers(made.path)
    assert len(integers(made.path)) >= len(made.weights.layers)


def test_fences_change_no_answer(quantized: Make, tmp_path: Path) -> None:
    """In float32 the only change are the fences: the logits are the same, bit for bit."""
    made = quantized("w8a8")
    write_engine_graph(made.path, tmp_path / "m.onnx", "float32")
    np.testing.assert_array_equal(logits(tmp_path / "m.onnx", made), logits(made.path, made))


@pytest.mark.parametrize("precision", ["float16", "float32"])
def test_a_fence_stands_behind_each_qkv_and_nowhere_else(quantized: Make, precision: str, tmp_path: Path) -> None:
    """One `Max` a block, on the linear's sum with its bias; all that used the sum uses the fence."""
    made = quantized("w8a8")
    write_engine_graph(made.path, tmp_path / "m.onnx", precision)
    graph = onnx.load(tmp_path / "m.onnx").graph
    fences = [node for node in graph.node if node.op_type == "Max"]
    sums = [f"blocks.{block}.attn.qkv/Add" for block in range(len(made.model.blocks))]
    assert [node.input[0] for node in fences] == sums
    assert [node.name for node in graph.node if node.op_type != "Max" and set(node.input) & set(sums)] == []
    (lowest,) = {node.input[1] for node in fences}
    held = next(value for value in graph.initializer if value.name == lowest)
    assert numpy_helper.to_array(held) == np.finfo(precision).min


def test_narrow_floats_stay_close(quantized: Make, tmp_path: Path) -> None:
    """On ONNX Runtime the file in float16 differs from the one in float32 by less than quantization itself does."""
    made = quantized("w8a8")
    write_engine_graph(made.path, tmp_path / "m.onnx", "float16")
    teacher = made.model(made.images).numpy()
    noise = compare(teacher, logits(made.path, made)).kl
    assert 0 < compare(logits(made.path, made), logits(tmp_path / "m.onnx", made)).kl < noise


def test_what_is_too_large_for_float16_is_refused(quantized: Make, tmp_path: Path) -> None:
    """The constant and its size are named; bfloat16 holds it."""
    model = onnx.load(quantized("w8a8").path)
    bias = next(value for value in model.graph.initializer if value.name == "blocks.1.mlp.fc2.bias")
    bias.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(bias) * 0 + np.float32(1e5), bias.name))
    onnx.save(model, tmp_path / "large.onnx")
    with pytest.raises(
        InputError, match=r"'blocks.1.mlp.fc2.bias' of '.*large.onnx' holds 100000, too much for float16"
    ):
        write_engine_graph(tmp_path / "large.onnx", tmp_path / "m.onnx", "float16")
    assert not (tmp_path / "m.onnx").exists()
    write_engine_graph(tmp_path / "large.onnx", tmp_path / "m.onnx", "bfloat16")


def test_unknown_precision_is_refused(quantized: Make, tmp_path: Path) -> None:
    """The message names what there is."""
    with pytest.raises(InputError, match="unknown precision 'int4': take one of float16, bfloat16, float32"):
        write_engine_graph(quantized("w8a8").path, tmp_path / "m.onnx", "int4")


def test_the_file_is_the_same_every_time(quantized: Make, tmp_path: Path) -> None:
    """Equal bytes, so that an engine's digest says what it was built from."""
    for name in ("a", "b"):
        write_engine_graph(quantized("w8a8").path, tmp_path / f"{name}.onnx", "float16")
    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()


@pytest.mark.parametrize("precision", ["float16", "bfloat16", "float32"])
def test_an_engine_graph_is_taken_as_it_is(quantized: Make, precision: str, tmp_path: Path) -> None:
    """Written again it is the same file; in another precision it is refused, as narrow numbers do not widen."""
    write_engine_graph(quantized("w8a8").path, tmp_path / "a.onnx", precision)
    write_engine_graph(tmp_path / "a.onnx", tmp_path / "b.onnx", precision)
    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()
    other = "float32" if precision == "float16" else "float16"
    with pytest.raises(InputError, match=f"is an engine's graph in {precision} already: give the model.onnx"):
        write_engine_graph(tmp_path / "a.onnx", tmp_path / "c.onnx", other)
