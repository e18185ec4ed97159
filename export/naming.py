"""Names that mean something, and nothing else, in a graph that the exporter made."""

from __future__ import annotations

import ast
from collections import Counter

import onnx
import onnx_ir as ir

from calib.attention import QUANTIZERS

SCOPES = "pkg.torch.onnx.name_scopes"
ROOT = "vit"


def tidy(model: ir.Model, opset: int) -> None:
    """Rename nodes, values and constants after the modules they come from; drop traces, so bytes are reproducible.

    A node is `blocks.3.mlp.fc1/MatMul`, its value the same; a constant `blocks.3.mlp.fc1.weight`,
    `blocks.3.mlp.fc1.input_step` or, where it is no parameter, `blocks.3.attn/Reshape.shape`. A constant that
    several nodes share is named after the first.
    """
    graph = model.graph
    scopes = _scopes(graph)
    _name_constants(graph, scopes, opset)
    _name_nodes(graph, scopes)
    for node in graph:
        node.doc_string = None
        node.metadata_props.clear()
        if node.op_type in ("QuantizeLinear", "DequantizeLinear") and _is_scalar(node.inputs[1]):
            node.attributes.pop("axis", None)  # one step for the whole tensor has no axis
    for value in [*graph.inputs, *graph.initializers.values(), *(out for node in graph for out in node.outputs)]:
        value.doc_string = None
        value.metadata_props.clear()
    for part in (graph, model):
        part.doc_string = None
        part.metadata_props.clear()


def _is_scalar(value: ir.Value | None) -> bool:
    return value is not None and value.shape is not None and len(value.shape) == 0


def _scopes(graph: ir.Graph) -> dict[ir.Node, str]:
    """Of every node; one that the exporter made of several tells none, and belongs to what it takes."""
    scopes: dict[ir.Node, str] = {}
    for node in graph:
        before = next((value.producer() for value in node.inputs if value is not None), None)
        if SCOPES not in node.metadata_props and before in scopes:
            scopes[node] = scopes[before]
        else:
            scopes[node] = _scope(node)
    return scopes


def _scope(node: ir.Node) -> str:
    """Dotted name of the module that the node's operation was called in; the model itself is `vit`, wrapped or not."""
    path = ast.literal_eval(node.metadata_props.get(SCOPES, "[]"))
    scope = path[-2] if len(path) > 1 else ""
    return scope.removeprefix(f"{ROOT}.") if scope and not scope.startswith("_") else ROOT


def _name_constants(graph: ir.Graph, scopes: dict[ir.Node, str], opset: int) -> None:
    for constant in tuple(graph.initializers.values()):
        constant.name = str(constant.name).removeprefix(f"{ROOT}.")
    taken = Counter(name for name in graph.initializers if not _is_anonymous(name))
    done: set[ir.Value] = set()
    for node in graph:
        for index, value in enumerate(node.inputs):
            if value is None or not value.is_initializer() or value in done:
                continue
            done.add(value)
            if _is_anonymous(value.name):
                value.name = _unique(_role(node, index, value, scopes[node], opset), taken)


def _is_anonymous(name: str | None) -> bool:
    """The exporter calls its own constants val_7; a module's parameter keeps the module's name."""
    return name is None or name.startswith("val_")


def _role(node: ir.Node, index: int, value: ir.Value, scope: str, opset: int) -> str:
    if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
        if index == 2:
            return "zero_point"
        return _step_name(scope, _is_scalar(value))
    if node.op_type == "MatMul":  # a float linear's weight, which the exporter transposed
        return f"{scope}.weight"
    formal = onnx.defs.get_schema(node.op_type, opset).inputs
    return f"{scope}/{node.op_type}.{formal[min(index, len(formal) - 1)].name}"


def _step_name(scope: str, scalar: bool) -> str:
    """Its name in `calib.weights.QuantizedWeights`: `L.weight_step`, `L.input_step`, or `blocks.0.attn.q_step`."""
    attention, _, last = scope.rpartition(".")
    for part, quantizer in QUANTIZERS.items():
        if last == quantizer:
            return f"{attention}.{part}_step"
    return f"{scope}.{'input_step' if scalar else 'weight_step'}"


def _name_nodes(graph: ir.Graph, scopes: dict[ir.Node, str]) -> None:
    taken: Counter[str] = Counter()
    outputs = set(graph.outputs)
    for node in graph:
        node.name = _unique(f"{scopes[node]}/{node.op_type}", taken)
        for index, value in enumerate(node.outputs):
            if value not in outputs:
                value.name = node.name if index == 0 else f"{node.name}:{index}"


def _unique(name: str, taken: Counter[str]) -> str:
    taken[name] += 1
    return name if taken[name] == 1 else f"{name}_{taken[name] - 1}"
