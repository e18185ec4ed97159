"""What TensorRT would refuse of an ONNX graph: by rules that hold everywhere, and by its own parser where it is
installed. Runs without torch.

Every rule was asked of TensorRT-RTX 1.7's parser; decision 22 says which file showed it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import onnx

from export.edge.products import INTEGER_OPS, UNPACK, nodes_of
from export.edge.quantizers import DYNAMIC, Quantizer
from export.edge.registry import ENGINES, available
from export.edge.tensorrt_build import reasons
from inversion.errors import PatchRebirthError

OPERATORS = {*INTEGER_OPS, *UNPACK, DYNAMIC, "QLinearAdd", "QLinearSoftmax", "QLinearMul", "QLinearGlobalAveragePool"}
"""Of ONNX Runtime's QOperator format, dynamic quantization and packed weights."""
TYPES = ("UINT4", "INT2", "UINT2", "INT16", "UINT16")


@dataclass(frozen=True)
class Refusal:
    """Why TensorRT would not take a graph: the first node of which that is true, and how many there are."""

    reason: str
    node: str
    count: int


def refusals(model: onnx.ModelProto, found: list[Quantizer]) -> list[Refusal]:
    """What the rules say of `model`, whose quantizers were `found`; one for each reason."""
    nodes: dict[str, list[str]] = {}
    for reason, node in (*_by_operators(model), *_by_quantizers(found), *_by_shapes(model)):
        nodes.setdefault(reason, []).append(node)
    return [Refusal(reason, names[0], len(names)) for reason, names in nodes.items()]


def parsers_say(path: Path) -> dict[str, list[str]]:
    """What the parser of each TensorRT that is installed here complains of, by its name and version; an empty list:
    it takes the file. A parser ends at the first thing that it refuses."""
    said: dict[str, list[str]] = {}
    for name in ENGINES:
        if (trt := available(name)) is None:
            continue
        try:
            said[f"{name} {trt.__version__}"] = reasons(trt, path)
        except (PatchRebirthError, RuntimeError, TypeError):  # TensorRT's builder wants a GPU, TensorRT-RTX's does not
            continue
    return said


def _by_operators(model: onnx.ModelProto) -> Iterator[tuple[str, str]]:
    for node in nodes_of(model.graph):
        if node.op_type in OPERATORS:
            yield f"it has no operator {node.op_type}: give a graph of QuantizeLinear and DequantizeLinear", node.name


def _by_quantizers(found: list[Quantizer]) -> Iterator[tuple[str, str]]:
    for each in found:
        if each.granularity == "dynamic":
            continue  # the operator itself is refused
        if each.of == "biases":
            yield "a bias of INT32 behind DequantizeLinear: leave it a float", each.node
        elif each.type in TYPES or (each.type == "UINT8" and each.of == "weights"):
            yield f"{each.of} of {each.type}: quantize to INT8, or weights to INT4", each.node
        if each.symmetric is False:
            yield "a zero point that is not 0: quantize symmetrically", each.node


def _by_shapes(model: onnx.ModelProto) -> Iterator[tuple[str, str]]:
    constants = {tensor.name for tensor in model.graph.initializer}
    for value in model.graph.input:
        free = [index for index, size in enumerate(value.type.tensor_type.shape.dim) if not size.dim_value]
        if value.name not in constants and any(free) and free != [0]:
            yield "an input of which more than the batch varies: `pipeline engine` builds none of that", value.name
