"""How the numbers of any ONNX graph are quantized: types, bits, zero points, granularity. Runs without torch."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, numpy_helper

from export.edge.products import DEQUANTIZE, QUANTIZE, graphs_of, nodes_of

DYNAMIC = "DynamicQuantizeLinear"
WEIGHTS = {
    "QLinearMatMul": (3, 4, 5), "QLinearConv": (3, 4, 5), "QGemm": (3, 4, 5), "MatMulInteger": (1, None, 3),
    "ConvInteger": (1, None, 3), "QAttention": (1, 4, 7), "MatMulIntegerToFloat": (1, 3, 5),
    "DynamicQuantizeMatMul": (1, 2, 3),
}  # fmt: skip
"""Where operators that multiply integers take weight, step and zero point; None: the step is applied behind."""
FEW = 4
"""Bits up to which a tensor's numbers tell how many it was rounded to; INT8 weights may well leave out -128."""


@dataclass(frozen=True)
class Quantizer:
    """What one tensor is quantized to.

    - `of`           weights, biases or activations
    - `type`         that it is carried in, as INT8; `bits` that its numbers use, where they are few or known
    - `symmetric`    whether every zero point is 0; None where it is found at run time
    - `granularity`  "per tensor", "per channel (axis 1)", "blocks of 32 (axis 0)", or "dynamic"
    - `step_type`    of its steps, as FLOAT; "" where there are none beside it
    """

    node: str
    of: str
    type: str
    bits: int
    symmetric: bool | None
    granularity: str
    step_type: str

    def words(self) -> str:
        """As a person reads it, without `node`."""
        kind = self.type if str(self.bits) in self.type else f"{self.bits}-bit integers in {self.type}"
        zero = {True: "symmetric (zero point 0)", False: "asymmetric", None: "zero point found at run time"}
        steps = f", steps {self.step_type}" if self.step_type else ""
        return f"{self.of}: {kind}, {zero[self.symmetric]}, {self.granularity}{steps}"


def quantizers(model: onnx.ModelProto, folder: Path) -> list[Quantizer]:
    """Every quantized tensor of `model`; weights that lie in files of their own are read from `folder`."""
    return list(_Reader(model, folder).find())


def counted(found: list[Quantizer]) -> list[tuple[str, int]]:
    """(in words, how many there are of it), most frequent first."""
    return Counter(each.words() for each in found).most_common()


class _Reader:
    def __init__(self, model: onnx.ModelProto, folder: Path) -> None:
        self.nodes, self.folder = list(nodes_of(model.graph)), folder
        self.tensors = {tensor.name: tensor for graph in graphs_of(model.graph) for tensor in graph.initializer}
        for node in self.nodes:
            if node.op_type == "Constant" and (held := [each.t for each in node.attribute if each.name == "value"]):
                self.tensors[node.output[0]] = held[0]
        self.producers = {output: node for node in self.nodes for output in node.output}

    def find(self) -> Iterator[Quantizer]:
        for node in self.nodes:
            if node.op_type in (QUANTIZE, DEQUANTIZE):
                given = node.input[0]
                source = self.producers.get(given)
                if node.op_type == DEQUANTIZE and source is not None and source.op_type == QUANTIZE:
                    continue  # its QuantizeLinear tells the same
                yield self._linear(node, given in self.tensors)
            elif node.op_type == DYNAMIC:
                yield Quantizer(node.name, "activations", "UINT8", 8, None, "dynamic", "FLOAT")
            elif node.op_type in WEIGHTS:
                weight, step, zero = WEIGHTS[node.op_type]
                if (held := self._input(node, weight)) is not None:
                    yield self._weight(node, held, self._input(node, step), self._input(node, zero))

    def _linear(self, node: onnx.NodeProto, constant: bool) -> Quantizer:
        held, step, zero = (self._input(node, index) for index in range(3))
        if node.op_type == DEQUANTIZE and held is not None:
            return self._weight(node, held, step, zero)
        attributes = {each.name: each.i for each in node.attribute}
        kind = zero.data_type if zero is not None else attributes.get("output_dtype") or TensorProto.UINT8
        return Quantizer(
            node.name, "weights" if constant else "activations", *_carried(kind), self._symmetric(node, zero),
            _granularity(node, step), _name(step),
        )  # fmt: skip

    def _weight(
        self, node: onnx.NodeProto, held: TensorProto, step: TensorProto | None, zero: TensorProto | None
    ) -> Quantizer:
        name, bits = _carried(held.data_type)
        if name == "INT8":
            used = _bits(self._array(held))
            bits = used if used <= FEW else bits
        symmetric = self._symmetric(node, zero) if len(node.input) > 2 else zero is None
        return Quantizer(
            node.name, "biases" if name == "INT32" else "weights", name, bits, symmetric, _granularity(node, step),
            _name(step),
        )  # fmt: skip

    def _input(self, node: onnx.NodeProto, index: int | None) -> TensorProto | None:
        given = index is not None and len(node.input) > index
        return self.tensors.get(node.input[index]) if given and index is not None else None

    def _symmetric(self, node: onnx.NodeProto, zero: TensorProto | None) -> bool | None:
        if zero is not None:
            return not np.any(self._array(zero).astype(np.float32))
        linear = node.op_type in (QUANTIZE, DEQUANTIZE)
        return True if not linear or len(node.input) < 3 or not node.input[2] else None

    def _array(self, tensor: TensorProto) -> npt.NDArray[Any]:
        return numpy_helper.to_array(tensor, str(self.folder))


def _carried(kind: int) -> tuple[str, int]:
    """(name, bits) of a tensor's type."""
    name = str(TensorProto.DataType.Name(kind))
    digits = re.search(r"\d+", name)
    return name, int(digits[0]) if digits else 32


def _bits(integers: npt.NDArray[Any]) -> int:
    """Fewest bits that hold all of `integers`, signed."""
    if not integers.size:
        return 0
    low, high = int(integers.min()), int(integers.max())
    return max(high, -low - 1, 0).bit_length() + 1


def _granularity(node: onnx.NodeProto, step: TensorProto | None) -> str:
    attributes = {each.name: each.i for each in node.attribute}
    axis = attributes.get("axis", 1)
    if block := attributes.get("block_size"):
        return f"blocks of {block} (axis {axis})"
    if step is None:
        return "per tensor or channel: its steps are applied elsewhere"
    if int(np.prod(tuple(step.dims))) == 1:
        return "per tensor"
    return f"per channel (axis {axis})" if node.op_type in (QUANTIZE, DEQUANTIZE) else "per channel"


def _name(tensor: TensorProto | None) -> str:
    return TensorProto.DataType.Name(tensor.data_type) if tensor is not None else ""
