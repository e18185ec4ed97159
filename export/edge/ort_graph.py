"""The graph that ONNX Runtime's CPU runs best, in its own operators, with the same answers. Runs without torch.

ONNX Runtime makes one node of quantizers and product by itself, but no bias goes into it: that it takes only where the
node stands in the file. And it takes apart the transpose of q, k and v to meet that of k, unless the product itself
transposes.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from export.edge.files import read_onnx, write_onnx
from inversion.errors import InputError

ORT_GRAPH = "model.ort.onnx"
DOMAIN = "com.microsoft"
SWAPPED = (0, 1, 3, 2)
"""[batch, heads, tokens, width] -> [batch, heads, width, tokens]."""
MIDDLE = 128
"""Zero point of UINT8 that stands for INT8's 0: ONNX Runtime has fast products of UINT8 activations."""


def write_ort_graph(path: Path, out: Path) -> None:
    """Write the Q/DQ graph of `path` with each linear as one node, bias included, and each first product of attention
    as one with its scale and transpose.

    Inputs, outputs, weights and answers stay as they are; only ONNX Runtime knows the operator. Raises `InputError`
    where `path` has no quantized linear.
    """
    model = ir.from_proto(read_onnx(path))
    graph = model.graph
    linears = list(_linears(graph))
    if not linears:
        raise InputError(f"{str(path)!r} has no quantized linear: give the model.onnx of a run.")
    middle = ir.tensor(np.array(MIDDLE, np.uint8), name="middle")
    graph.register_initializer(ir.val("middle", const_value=middle))
    for product in linears:
        _fuse(graph, product)
    for product in [node for node in graph if _is_scaled(node)]:
        _scale(graph, product)
    graph.opset_imports[DOMAIN] = 1
    RemoveUnusedNodesPass()(model)
    write_onnx(ir.to_proto(model), out)


def _linears(graph: ir.Graph) -> Iterator[ir.Node]:
    """Products of a quantized activation, with one step, and a quantized weight."""
    for node in graph:
        if node.op_type != "MatMul":
            continue
        activation, weight = (_dequantizer(value) for value in node.inputs[:2])
        if activation is None or weight is None or not _is_constant(weight.inputs[0]):
            continue
        quantizer = _producer(activation.inputs[0])
        if quantizer is not None and quantizer.op_type == "QuantizeLinear" and _is_constant(activation.inputs[1]):
            yield node


def _fuse(graph: ir.Graph, product: ir.Node) -> None:
    activation, weight = (_dequantizer(value) for value in product.inputs[:2])
    assert activation is not None
    assert weight is not None
    quantizer = _producer(activation.inputs[0])
    assert quantizer is not None
    shifted = _shifted(graph, quantizer)
    integers, steps, zeros = weight.inputs[:3]
    last, bias = product, None
    users = product.outputs[0].consumers()
    if len(users) == 1 and users[0].op_type == "Add" and not product.outputs[0].is_graph_output():
        (bias,) = (value for value in users[0].inputs if value is not product.outputs[0])
        if _is_constant(bias) and bias is not None and _columns(bias) == _columns(steps):
            last, bias = users[0], _flat(bias)
        else:
            bias = None
    middle = graph.initializers["middle"]
    inputs = [shifted, integers, activation.inputs[1], steps, middle, zeros, *([bias] if bias else [])]
    _replace(graph, last, ir.node("MatMulIntegerToFloat", inputs, domain=DOMAIN, name=product.name))


def _is_scaled(node: ir.Node) -> bool:
    """Whether it is (a * number) @ b^T."""
    if node.op_type != "MatMul":
        return False
    scale, transpose = map(_producer, node.inputs[:2])
    return (
        scale is not None
        and scale.op_type == "Mul"
        and _is_constant(scale.inputs[1])
        and _columns(scale.inputs[1]) == 1
        and transpose is not None
        and transpose.op_type == "Transpose"
        and tuple(transpose.attributes["perm"].as_ints()) == SWAPPED
    )


def _scale(graph: ir.Graph, product: ir.Node) -> None:
    scale, transpose = map(_producer, product.inputs[:2])
    assert scale is not None
    assert transpose is not None
    assert scale.inputs[1] is not None
    assert scale.inputs[1].const_value is not None
    alpha = float(scale.inputs[1].const_value.numpy().item())
    factors = [scale.inputs[0], transpose.inputs[0]]
    fused = ir.node("FusedMatMul", factors, {"alpha": alpha, "transB": 1}, domain=DOMAIN, name=product.name)
    _replace(graph, product, fused)


def _replace(graph: ir.Graph, old: ir.Node, new: ir.Node) -> None:
    """Let `new` give what `old` gave; what nothing uses any more goes in the end."""
    (before,), (after,) = old.outputs, new.outputs
    after.name, after.shape, after.type = before.name, before.shape, before.type
    graph.insert_after(old, new)
    ir.convenience.replace_all_uses_with(before, after, replace_graph_outputs=True)
    graph.remove(old, safe=True)


def _shifted(graph: ir.Graph, quantizer: ir.Node) -> ir.Value:
    """The same integers as UINT8, by one more quantizer for all products that take them."""
    name = f"{quantizer.name}_uint8"
    found = next((user.outputs[0] for user in _users(quantizer.inputs[0]) if user.name == name), None)
    if found is not None:
        return found
    node = ir.node("QuantizeLinear", [*quantizer.inputs[:2], graph.initializers["middle"]], name=name)
    (output,), (old,) = node.outputs, quantizer.outputs
    output.name, output.dtype, output.shape = name, ir.DataType.UINT8, old.shape
    graph.insert_after(quantizer, node)
    return output


def _flat(bias: ir.Value) -> ir.Value:
    """[1, 1, out] as the operator takes it: [out]."""
    assert bias.const_value is not None
    numbers = bias.const_value.numpy().reshape(-1)
    bias.const_value = ir.tensor(numbers, name=bias.name)
    bias.shape = ir.Shape(numbers.shape)
    return bias


def _columns(value: ir.Value | None) -> int:
    assert value is not None
    assert value.const_value is not None
    return value.const_value.size


def _producer(value: ir.Value | None) -> ir.Node | None:
    return value.producer() if value is not None else None


def _users(value: ir.Value | None) -> tuple[ir.Node, ...]:
    return tuple(value.consumers()) if value is not None else ()


def _dequantizer(value: ir.Value | None) -> ir.Node | None:
    node = _producer(value)
    return node if node is not None and node.op_type == "DequantizeLinear" else None


def _is_constant(value: ir.Value | None) -> bool:
    return value is not None and value.is_initializer()
