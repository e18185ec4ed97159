"""Which matrix products a runtime really computes with integers, as its own optimised graph tells. No torch.

Every product of the ONNX file is looked up in what the runtime made of it: a linear's, one factor of which is a weight,
or one of attention's.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import onnx

from export.edge.files import read_onnx
from export.edge.products import BLOCKED, INTEGER_OPS, PACKED, Asked, asked_products, nodes_of
from inversion.errors import InputError

INTEGER_NODES = (*INTEGER_OPS, "QLinearAdd", "QLinearSoftmax")
"""That a file itself may hold: the form that ONNX Runtime calls QOperator, and dynamic quantization."""
OPENVINO_PRODUCTS = (
    "FullyConnected", "MatMul", "Convolution", "Deconvolution", "ScaledDotProductAttention", "Subgraph",
)  # fmt: skip
"""OpenVINO's layer types that multiply; of several that name one product, the first kind here is the one that does."""
PRODUCT_LAYERS = ("gemm", "runtime_fusion", "fusion", "mha", "kgen")
"""TensorRT's layer types that multiply; of several that name one product, the first kind here is the one that does."""


@dataclass(frozen=True)
class Product:
    """One product: its `operator` in the file, what the graph asks for, the kernel that runs it, and why that is not an
    integer one."""

    name: str
    operator: str
    linear: bool
    quantized: bool
    kernel: str
    integer: bool
    reason: str


@dataclass(frozen=True)
class Coverage:
    """How a runtime computes the products of a model; `source` is where that was read, `layer_types` counts all of the
    runtime's layers."""

    runtime: str
    source: str
    products: tuple[Product, ...]
    layer_types: dict[str, int]

    @property
    def share(self) -> float:
        """Of the products whose factors are both quantized, the share that runs on integers; 1 where there are none."""
        asked = [product for product in self.products if product.quantized]
        return sum(product.integer for product in asked) / len(asked) if asked else 1.0

    def to_dict(self) -> dict[str, Any]:
        """For JSON: counts, and each product that runs on floats."""
        linears = [product for product in self.products if product.linear]
        others = [product for product in self.products if not product.linear]
        return {
            "runtime": self.runtime,
            "source": self.source,
            "share": self.share,
            "layer_types": self.layer_types,
            "linears": {"integer": sum(product.integer for product in linears), "all": len(linears)},
            "attention": {"integer": sum(product.integer for product in others), "all": len(others)},
            "as_floats": [_as_float(product) for product in self.products if not product.integer],
        }


def _as_float(product: Product) -> dict[str, Any]:
    return {key: value for key, value in asdict(product).items() if key != "operator"}


def sentences(kernels: dict[str, Any]) -> list[str]:
    """A `Coverage` as JSON in words: a line in all, then one for each reason why a product is not on integers."""
    counts = [
        f"{kernels[part]['integer']} of {kernels[part]['all']} {words}"
        for part, words in (("linears", "linears"), ("attention", "in attention"))
        if kernels[part]["all"]
    ]
    reasons: dict[str, list[str]] = {}
    for product in kernels["as_floats"]:
        reasons.setdefault(product["reason"], []).append(product["name"])
    lines = [f"{kernels['runtime']}: integer kernels: {', '.join(counts)}"]
    for reason, names in reasons.items():
        lines.append(f"  {names[0]}{f' and {len(names) - 1} more' if names[1:] else ''}: {reason}")
    return lines


def onnxruntime_kernels(model: onnx.ModelProto, optimised: onnx.ModelProto, runtime: str) -> Coverage:
    """What ONNX Runtime makes of `model`, whose products have names of their own, as its graph `optimised` tells."""
    nodes = list(nodes_of(optimised.graph))
    packed = {tensor.name for tensor in optimised.graph.initializer if tensor.data_type in PACKED}
    producers = {output: node for node in nodes for output in node.output}
    products = []
    for asked in asked_products(model):
        node = _runs(nodes, asked.name)
        fused = node is not None and node.op_type in INTEGER_OPS and asked.obstacle != BLOCKED
        integer = asked.operator in INTEGER_OPS or fused
        reason = "" if integer else _why_float(node, asked, packed, producers)
        kernel = node.op_type if node is not None else "part of another node"
        products.append(Product(asked.name, asked.operator, asked.linear, asked.quantized, kernel, integer, reason))
    return Coverage(runtime, "its optimised graph", tuple(products), _count(node.op_type for node in nodes))


def openvino_kernels(model: onnx.ModelProto, layers: Sequence[Mapping[str, str]], runtime: str) -> Coverage:
    """What OpenVINO makes of `model`, whose products have names of their own; `layers` are what its compiled model says
    of each."""
    multiply = [layer for kind in OPENVINO_PRODUCTS for layer in layers if layer["layerType"] == kind]
    products = []
    for asked in asked_products(model):
        name, operator, linear, quantized = asked.name, asked.operator, asked.linear, asked.quantized
        mine = next((layer for layer in multiply if _names(layer, name)), None)
        kind, precision = (mine["layerType"], mine["runtimePrecision"]) if mine else ("part of another layer", "")
        integer = precision in ("i8", "u8")
        why = f"OpenVINO multiplies {precision}" if mine else "OpenVINO made it part of another layer"
        reason = why if quantized else asked.obstacle
        products.append(Product(name, operator, linear, quantized, kind, integer, "" if integer else reason))
    return Coverage(runtime, "its compiled model", tuple(products), _count(layer["layerType"] for layer in layers))


def engine_kernels(path: Path, information: str, runtime: str, source: str) -> Coverage:
    """What TensorRT makes of the model in `path`; `information` is a line a layer, from the builder or an inspector."""
    layers = [line for line in information.splitlines() if "LayerType: " in line]
    products = []
    for asked in asked_products(read_onnx(path)):
        name, operator, linear, quantized = asked.name, asked.operator, asked.linear, asked.quantized
        mine = [layer for layer in layers if f"[ONNX Layer: {name}]" in layer]
        mine = sorted((layer for layer in mine if _kind(layer) in PRODUCT_LAYERS), key=_rank)
        if not mine:
            why = "no layer of the engine names it"
            products.append(Product(name, operator, linear, quantized, "none", False, why))
            continue
        layer = mine[0]
        types = _factor_types(layer)
        integer = bool(types) and all(kind == "Int8" for kind in types)
        reason = f"TensorRT multiplies {' by '.join(types)}" if quantized else asked.obstacle
        products.append(Product(name, operator, linear, quantized, _kind(layer), integer, "" if integer else reason))
    return Coverage(runtime, source, tuple(products), _count(map(_kind, layers)))


def layer_products(information: str, runtime: str) -> Coverage:
    """What an engine multiplies by its inspector alone, where the graph that it was built from is not known."""
    layers = [line for line in information.splitlines() if "LayerType: " in line]
    products = []
    for layer in layers:
        if (kind := _kind(layer)) in PRODUCT_LAYERS and len(types := _factor_types(layer)) > 1:
            integer = all(each == "Int8" for each in types)
            name = found[1] if (found := re.search(r"Name: ([^,]+)", layer)) else kind
            reason = "" if integer else f"TensorRT multiplies {' by '.join(types)}"
            products.append(Product(name, kind, True, integer, kind, integer, reason))
    return Coverage(runtime, "the engine's inspector", tuple(products), _count(map(_kind, layers)))


def require_quantized(path: Path) -> None:
    """Raises `InputError` where no MatMul of the model in `path` takes a quantized weight."""
    model = read_onnx(path)
    constants = {tensor.name for tensor in model.graph.initializer}
    operators = next((node.op_type for node in model.graph.node if node.op_type in INTEGER_NODES), None)
    if operators:
        raise InputError(
            f"{str(path)!r} is quantized, but by integer operators ({operators}), which only some runtimes have: give "
            "a graph of QuantizeLinear and DequantizeLinear, as the model.onnx of a run is."
        )
    dequantized = {
        node.output[0] for node in model.graph.node if node.op_type == "DequantizeLinear" and node.input[0] in constants
    }
    if not any(node.op_type == "MatMul" and node.input[1] in dequantized for node in model.graph.node):
        raise InputError(f"{str(path)!r} has no quantized weights: give the model.onnx of a run, not its float model.")


def _runs(nodes: Sequence[onnx.NodeProto], name: str) -> onnx.NodeProto | None:
    """The node of the optimised graph that computes product `name`: rewrites keep a product's name, or extend it."""
    own = next((node for node in nodes if node.name == name), None)
    return own or next((node for node in nodes if node.name.startswith(f"{name}/") or name in node.output), None)


def _why_float(
    node: onnx.NodeProto | None, asked: Asked, packed: set[str], producers: dict[str, onnx.NodeProto]
) -> str:
    if (asked.obstacle and asked.operator != "MatMul") or not asked.quantized:
        return asked.obstacle
    if node is None:
        return "ONNX Runtime made it part of another node"
    if node.op_type == "Gemm" and asked.operator == "MatMul":
        return "ONNX Runtime made product and bias one float Gemm before it saw the integers"
    origins = [producers[name] for name in node.input if name in producers]
    if node.op_type == "MatMulNBits" or any(set(origin.input) & packed for origin in origins):
        return "ONNX Runtime has no product of INT4 weights and INT8 activations"
    return asked.obstacle or "ONNX Runtime did not fuse its DequantizeLinear nodes, and its graph does not say why"


def _names(layer: Mapping[str, str], product: str) -> bool:
    """Whether OpenVINO made `layer` of `product`, among others."""
    made_of = layer["originalLayersNames"].split(",")
    return any(name == product or name.startswith(f"{product}/") for name in made_of)


def _count(kinds: Iterable[str]) -> dict[str, int]:
    return dict(Counter(kinds).most_common())


def _kind(layer: str) -> str:
    found = re.search(r"LayerType: (\w+)", layer)
    return found[1] if found else ""


def _rank(layer: str) -> int:
    return PRODUCT_LAYERS.index(_kind(layer))


def _factor_types(layer: str) -> list[str]:
    """Types of what a layer multiplies: its inputs and constants, without single numbers such as alpha."""
    given = layer.split("Outputs:")[0]
    tensors = re.findall(r"Dimensions: \[([^\]]*)\].*?Datatype: (\w+)", given)
    return [kind for dimensions, kind in tensors if dimensions != "1"]
