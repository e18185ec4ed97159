"""The matrix products that any ONNX graph asks for, and what keeps one from integers. Runs without torch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import onnx
import onnx.inliner
from onnx import TensorProto

from inversion.errors import InputError

MULTIPLY = ("MatMul", "FusedMatMul", "Gemm", "Conv", "ConvTranspose", "Einsum")
"""Of any runtime, on whatever its inputs are; the first two inputs are the factors."""
ATTENTION = ("Attention", "MultiHeadAttention", "GroupQueryAttention", "PackedAttention", "PackedMultiHeadAttention")
"""Operators that hold both products of an attention, or all three."""
UNPACK = ("MatMulNBits", "MatMulBnb4")
INTEGER_OPS = (
    "MatMulIntegerToFloat", "QLinearMatMul", "MatMulInteger", "DynamicQuantizeMatMul", "QGemm", "QLinearConv",
    "ConvInteger", "QAttention",
)  # fmt: skip
"""That multiply integers by what they are: of a file, or made by ONNX Runtime."""
PACKED = (TensorProto.INT4, TensorProto.UINT4)
MOVES = ("Transpose", "Reshape", "Squeeze", "Unsqueeze", "Identity")
BLOCKED = "its steps go by blocks: ONNX Runtime makes it an integer product, and stops when that is run"
"""Seen of 1.31: without graph optimisations it runs, on floats."""
DEQUANTIZE, QUANTIZE = "DequantizeLinear", "QuantizeLinear"


@dataclass(frozen=True)
class Asked:
    """One product of a graph.

    - `operator`   its type in the file
    - `linear`     one factor is a constant
    - `quantized`  both factors come from DequantizeLinear, or the operator multiplies integers itself
    - `obstacle`   what in the graph keeps ONNX Runtime from integers, as far as it is known; "" where nothing is
    """

    name: str
    operator: str
    linear: bool
    quantized: bool
    obstacle: str


def nodes_of(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    """Every node, those of branches and loops too."""
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            for inner in (attribute.g, *attribute.graphs):
                yield from nodes_of(inner)


def graphs_of(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    """The graph itself, and those of its branches and loops."""
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            for inner in (attribute.g, *attribute.graphs):
                yield from graphs_of(inner)


def with_names(model: onnx.ModelProto) -> onnx.ModelProto:
    """`model` with its local functions in place, and a name of its own for each product; runtimes keep these.

    Raises `InputError` where a function cannot be put in place.
    """
    if model.functions:
        # the inliner raises several classes for a function that is no function
        try:
            model = onnx.inliner.inline_local_functions(model)
        except Exception as error:
            raise InputError("its local functions cannot be put in place: export it again without them.") from error
    used: set[str] = set()
    for number, node in enumerate(nodes_of(model.graph)):
        if not node.name or node.name in used:
            node.name = f"{node.name or node.op_type}#{number}"
        used.add(node.name)
    return model


def asked_products(model: onnx.ModelProto) -> Iterator[Asked]:
    """Every product of `model`, in order. Weights are not looked at."""
    look = _Look(model.graph)
    for node in nodes_of(model.graph):
        if node.op_type in INTEGER_OPS:
            yield Asked(node.name, node.op_type, look.has_constant(node), True, "")
        elif node.op_type in ATTENTION:
            yield Asked(node.name, node.op_type, False, False, f"{node.op_type} multiplies floats, of any quantizer")
        elif node.op_type in UNPACK:
            yield Asked(node.name, node.op_type, True, False, "its packed weights are multiplied by float activations")
        elif node.op_type in MULTIPLY:
            dequantized = [look.dequantizer(name) is not None for name in node.input[:2]]
            quantized = len(dequantized) == 2 and all(dequantized)
            yield Asked(node.name, node.op_type, look.has_constant(node), quantized, look.obstacle(node, dequantized))


class _Look:
    """A graph by its tensors' names."""

    def __init__(self, graph: onnx.GraphProto) -> None:
        self.producers = {output: node for node in nodes_of(graph) for output in node.output}
        self.users: dict[str, list[onnx.NodeProto]] = {}
        for node in nodes_of(graph):
            for name in node.input:
                self.users.setdefault(name, []).append(node)
        tensors = [tensor for each in graphs_of(graph) for tensor in each.initializer]
        values = [value for each in graphs_of(graph) for value in each.input]
        self.types = {value.name: value.type.tensor_type.elem_type for value in values}
        self.types |= {tensor.name: tensor.data_type for tensor in tensors}
        self.shapes = {tensor.name: tuple(tensor.dims) for tensor in tensors}
        self.constants = {tensor.name for tensor in tensors}
        for name, node in self.producers.items():
            if node.op_type == "Constant" and (value := _attribute(node, "value")) is not None:
                self.constants.add(name)
                self.types[name], self.shapes[name] = value.t.data_type, tuple(value.t.dims)

    def dequantizer(self, name: str) -> onnx.NodeProto | None:
        node = self.producers.get(name)
        return node if node is not None and node.op_type == DEQUANTIZE else None

    def has_constant(self, node: onnx.NodeProto) -> bool:
        return any(self.is_constant(name) for name in node.input[: 2 if node.op_type in MULTIPLY else None])

    def is_constant(self, name: str) -> bool:
        """Also behind quantizers and moves."""
        for _ in range(8):
            if name in self.constants:
                return True
            node = self.producers.get(name)
            if node is None or node.op_type not in (DEQUANTIZE, QUANTIZE, *MOVES) or not node.input:
                return False
            name = node.input[0]
        return False

    def obstacle(self, node: onnx.NodeProto, dequantized: list[bool]) -> str:
        """The first of what ONNX Runtime's fusions ask for and this product does not have."""
        if not all(dequantized):
            return self._unquantized(node, dequantized)
        if node.op_type in ("ConvTranspose", "Einsum"):
            return f"ONNX Runtime has no integer {node.op_type}"
        factors = [self.dequantizer(name) for name in node.input[:2]]
        kinds = [self._integers(factor) for factor in factors if factor is not None]
        names = [TensorProto.DataType.Name(kind) for kind in kinds]
        if any(kind in PACKED for kind in kinds):
            return f"ONNX Runtime has no product of {_type(names[1])} weights and {_type(names[0])} activations"
        if not {"INT8", "UINT8", "UNDEFINED"}.issuperset(names):
            return f"ONNX Runtime has no integer product of {_type(names[0])} and {_type(names[1])}"
        steps = {self.types.get(factor.input[1]) for factor in factors if factor is not None}
        if TensorProto.FLOAT16 in steps or TensorProto.BFLOAT16 in steps:
            return "its steps have 16 bits, and ONNX Runtime fuses float32 steps alone"
        if any(_attribute(factor, "block_size") is not None for factor in factors if factor is not None):
            return BLOCKED
        return self._around(node)

    def _unquantized(self, node: onnx.NodeProto, dequantized: list[bool]) -> str:
        for name in node.input[:2]:
            move = self.producers.get(name)
            if move is not None and move.op_type in MOVES and self.dequantizer(move.input[0]) is not None:
                return f"a {move.op_type} stands between DequantizeLinear and the product"
        if not any(dequantized):
            return "its inputs are float: nothing quantizes them"
        weight = self.is_constant(node.input[dequantized.index(True)])
        return f"only its {'weight' if weight else 'activation'} is quantized"

    def _around(self, node: onnx.NodeProto) -> str:
        """What stands behind a product whose factors are as they should be."""
        bias = node.input[2] if len(node.input) > 2 and node.input[2] else None
        if node.op_type in ("Gemm", "Conv") and bias is not None and self.dequantizer(bias) is None:
            return f"the bias of its {node.op_type} is float: ONNX Runtime wants one of INT32 behind DequantizeLinear"
        users = self.users.get(node.output[0], [])
        if node.op_type == "Conv" and any(user.op_type != QUANTIZE for user in users):
            return "its output is not quantized, which ONNX Runtime's integer convolution needs"
        if any(len(self.users.get(name, [])) > 1 for name in node.input[:2]):
            return "ONNX Runtime did not fuse its DequantizeLinear nodes, one of which others use as well"
        return ""

    def _integers(self, dequantizer: onnx.NodeProto) -> int:
        """Type of what it dequantizes; 0 (UNDEFINED) where the graph does not say."""
        given = self.types.get(dequantizer.input[0], 0)
        if given or len(dequantizer.input) < 3:
            return given or self._of_quantizer(dequantizer.input[0])
        return self.types.get(dequantizer.input[2], 0)

    def _of_quantizer(self, name: str) -> int:
        node = self.producers.get(name)
        if node is None or node.op_type != QUANTIZE:
            return 0
        wanted = _attribute(node, "output_dtype")
        return wanted.i if wanted is not None else TensorProto.UINT8


def _attribute(node: onnx.NodeProto | None, name: str) -> onnx.AttributeProto | None:
    return None if node is None else next((each for each in node.attribute if each.name == name), None)


def _type(name: str) -> str:
    return "integers" if name == "UNDEFINED" else name
