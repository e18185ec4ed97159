"""The graph that TensorRT builds from: a Q/DQ graph with fences, and 16-bit floats. Runs without torch.

TensorRT types a network by its graph alone, so what is to run in FP16 has to stand there as FP16.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx_ir as ir

from export.edge.files import read_onnx, write_onnx
from export.edge.profile import require_precision
from inversion.errors import InputError

FLOATS = {"float16": ir.DataType.FLOAT16, "bfloat16": ir.DataType.BFLOAT16, "float32": ir.DataType.FLOAT}
NUMPY = {"float16": np.float16, "bfloat16": ml_dtypes.bfloat16, "float32": np.float32}
MOVES = ("Reshape", "Transpose")
LOWEST, FENCE = "lowest", "/Fence"
CUTS = ("Slice", "Split", "Gather")


def write_engine_graph(path: Path, out: Path, precision: str) -> None:
    """Write the Q/DQ graph of `path` as TensorRT takes it best; inputs, outputs and integers stay as they are.

    - Its float32 tensors, quantizers' steps included, become `precision`: a Cast follows each input and precedes each
      output. A step below 6e-5 loses digits in float16.
    - A fence (`Max` with the lowest number) stands between a linear and the cuts through its output. Without one,
      TensorRT moves the cuts of q, k and v into the linear's weights and multiplies these as floats.

    A graph that was written so before stays as it is. Raises `InputError` where a number is too large for `precision`,
    or the graph has another one already.
    """
    require_precision(precision)
    model = ir.from_proto(read_onnx(path))
    if already := _precision_of(model.graph):
        if already != precision:
            raise InputError(
                f"{str(path)!r} is an engine's graph in {already} already: give the model.onnx of its run."
            )
        write_onnx(ir.to_proto(model), out)
        return
    for value in list(_cut_linears(model.graph)):
        _fence(model.graph, value)
    if precision != "float32":
        _narrow(model.graph, precision, path)
    write_onnx(ir.to_proto(model), out)


def _precision_of(graph: ir.Graph) -> str | None:
    """Of a graph that `write_engine_graph` made: the type of its fences; None for any other graph."""
    fenced = any(node.op_type == "Max" and (node.name or "").endswith(FENCE) for node in graph)
    lowest = graph.initializers.get(LOWEST) if fenced else None
    return next((name for name, kind in FLOATS.items() if lowest is not None and lowest.dtype == kind), None)


def _cut_linears(graph: ir.Graph) -> Iterator[ir.Value]:
    """Outputs of quantized linears, bias included, that Slice, Split or Gather divide behind mere moves."""
    for node in graph:
        weight = node.inputs[1].producer() if node.op_type == "MatMul" and node.inputs[1] else None
        if weight is None or weight.op_type != "DequantizeLinear":
            continue
        value = node.outputs[0]
        users = value.consumers()
        if len(users) == 1 and users[0].op_type == "Add":
            value = users[0].outputs[0]
        moved = value
        while len(users := moved.consumers()) == 1 and users[0].op_type in MOVES:
            moved = users[0].outputs[0]
        if any(user.op_type in CUTS for user in users):
            yield value


def _fence(graph: ir.Graph, value: ir.Value) -> None:
    if LOWEST not in graph.initializers:
        lowest = ir.tensor(np.array(np.finfo(np.float32).min), name=LOWEST)
        graph.register_initializer(ir.val(LOWEST, const_value=lowest))
    users = tuple(value.uses())
    fence = ir.node("Max", [value, graph.initializers[LOWEST]], name=f"{value.name}{FENCE}")
    (output,) = fence.outputs
    output.name, output.dtype, output.shape = fence.name, ir.DataType.FLOAT, value.shape
    for user, index in users:
        user.replace_input_with(index, output)
    producer = value.producer()
    assert producer is not None
    graph.insert_after(producer, fence)


def _narrow(graph: ir.Graph, precision: str, path: Path) -> None:
    half = FLOATS[precision]
    for value in graph.initializers.values():
        if value.dtype == ir.DataType.FLOAT:
            _narrow_constant(value, precision, path)
    for node in graph:
        if node.op_type == "Cast" and node.attributes["to"].as_int() == ir.DataType.FLOAT:
            node.attributes["to"] = ir.AttrInt64("to", half)
        for value in node.outputs:
            if value.dtype == ir.DataType.FLOAT:
                value.dtype = half
    for value in graph.inputs:
        if value.dtype == ir.DataType.FLOAT:
            _cast_input(graph, value, half)
    for index, value in enumerate(graph.outputs):
        if value.dtype == half:
            graph.outputs[index] = _cast_output(graph, value)


def _narrow_constant(value: ir.Value, precision: str, path: Path) -> None:
    assert value.const_value is not None
    wide = value.const_value.numpy()
    if value.name == LOWEST:
        wide = np.array(float(ml_dtypes.finfo(NUMPY[precision]).min))
    with np.errstate(over="ignore"):
        narrow = wide.astype(NUMPY[precision])
    if not np.isfinite(narrow.astype(np.float32)).all():
        largest = float(np.abs(wide).max())
        raise InputError(f"{value.name!r} of {str(path)!r} holds {largest:g}, too much for {precision}: take float32.")
    value.const_value = ir.tensor(narrow, FLOATS[precision], name=value.name)
    value.dtype = FLOATS[precision]


def _cast_input(graph: ir.Graph, value: ir.Value, half: ir.DataType) -> None:
    cast = _cast(f"{value.name}/Cast", value, half)
    for user, index in tuple(value.uses()):
        if user is not cast:
            user.replace_input_with(index, cast.outputs[0])
    graph.insert_before(graph[0], cast)


def _cast_output(graph: ir.Graph, value: ir.Value) -> ir.Value:
    name, value.name = value.name, f"{value.name}/half"
    cast = _cast(f"{name}/Cast", value, ir.DataType.FLOAT)
    cast.outputs[0].name = name
    graph.append(cast)
    return cast.outputs[0]


def _cast(name: str, value: ir.Value, to: ir.DataType) -> ir.Node:
    cast = ir.node("Cast", [value], {"to": to}, name=name)
    (output,) = cast.outputs
    output.name, output.dtype, output.shape = name, to, value.shape
    return cast
