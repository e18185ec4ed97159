"""Is every layer of the ONNX file the torch layer? Each alone, on the same inputs, on ONNX Runtime's own kernels.

From end to end two correct executions differ by about the quantization noise, since an activation that rounds the other
way changes all that follows. One layer alone leaves no room for that: integers differ where a number lies on the edge
between two steps, and products of equal integers not at all.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper
from torch import Tensor, nn

from export.edge.files import read_onnx
from export.edge.runtime import Array, open_runtime
from export.qdq import QDQLinear
from inversion.errors import InputError

ROUNDING = 1e-5
"""Largest error of an exact product, relative to its largest answer: float32's rounding of scale and bias."""


@dataclass(frozen=True)
class LayerParity:
    """One linear of the ONNX file against torch's, on the same inputs.

    - `flipped`       share of input integers that ONNX Runtime rounds otherwise than torch; 0 where inputs stay float
    - `largest_step`  by how many steps at most
    - `error`         of ONNX Runtime's answers from the product of its own integers, relative to the largest
    """

    name: str
    flipped: float
    largest_step: int
    error: float

    @property
    def exact(self) -> bool:
        """Whether integers differ by one step at most, and the product not at all."""
        return self.largest_step <= 1 and self.error <= ROUNDING


@torch.inference_mode()
def layer_parity(path: Path, module: nn.Module, images: Tensor) -> list[LayerParity]:
    """Compare every linear of `module`, made by `export.qdq.qdq_module`, with its layer in the ONNX file of it.

    `images` [M, C, H, W] give the inputs. Raises `InputError` where the file lacks a layer.
    """
    model, inputs = read_onnx(path), _inputs(module, images)
    with tempfile.TemporaryDirectory() as folder:
        return [_compare(model, name, layer, inputs[name], Path(folder)) for name, layer in _linears(module).items()]


def _linears(module: nn.Module) -> dict[str, QDQLinear]:
    return {name: part for name, part in module.named_modules() if isinstance(part, QDQLinear)}


def _inputs(module: nn.Module, images: Tensor) -> dict[str, Tensor]:
    """What each linear is given when `module` sees `images`."""
    seen: dict[str, Tensor] = {}
    hooks = [
        layer.register_forward_pre_hook(lambda _, args, name=name: seen.__setitem__(name, args[0]))
        for name, layer in _linears(module).items()
    ]
    module(images)
    for hook in hooks:
        hook.remove()
    return seen


def _compare(model: onnx.ModelProto, name: str, layer: QDQLinear, x: Tensor, folder: Path) -> LayerParity:
    nodes = [node for node in model.graph.node if node.name.startswith(f"{name}/")]
    if not nodes:
        raise InputError(f"the ONNX file has no layer {name!r}: it was made from another model.")
    answer = _run(model, nodes, nodes[-1].output[0], TensorProto.FLOAT, x, folder)
    quantize = next((node for node in nodes if node.op_type == "QuantizeLinear"), None)
    if quantize is None:
        expected = layer(x).double().numpy()
        return LayerParity(name, 0.0, 0, _relative(answer, expected))
    assert layer.input_step is not None
    before = nodes[: nodes.index(quantize) + 1]
    theirs = _run(model, before, quantize.output[0], TensorProto.INT8, x, folder).astype(np.int64).reshape(x.shape)
    ours = (layer.fake_quantize(x) / layer.input_step).round().long().numpy()
    steps = np.abs(theirs - ours)
    integers = layer.weight.double().numpy()
    expected = (theirs @ integers) * (layer.input_step * layer.weight_step.double().numpy())
    if layer.bias is not None:
        expected = expected + layer.bias.double().numpy().reshape(-1)
    return LayerParity(name, float((steps > 0).mean()), int(steps.max()), _relative(answer, expected))


def _relative(answer: Array, expected: Array) -> float:
    return float(np.abs(answer.reshape(expected.shape) - expected).max() / max(np.abs(expected).max(), 1e-30))


def _run(
    model: onnx.ModelProto, nodes: Sequence[onnx.NodeProto], output: str, kind: int, x: Tensor, folder: Path
) -> Array:
    """What `nodes` of `model` alone make of `x`: one input, whichever it is, and `output` of type `kind`."""
    constants: dict[str, Any] = {tensor.name: tensor for tensor in model.graph.initializer}
    made = {value for node in nodes for value in node.output}
    used = {value for node in nodes for value in node.input if value}
    (source,) = used - made - constants.keys()
    given = helper.make_tensor_value_info(source, TensorProto.FLOAT, ["batch", *x.shape[1:]])
    answer = helper.make_tensor_value_info(output, kind, None)
    kept = [constants[value] for value in sorted(used & constants.keys())]
    graph = helper.make_graph(list(nodes), "layer", [given], [answer], kept)
    part = helper.make_model(graph, opset_imports=model.opset_import, ir_version=model.ir_version)
    path = folder / "layer.onnx"
    path.write_bytes(part.SerializeToString())
    with open_runtime(path) as runtime:
        return runtime.run({source: x.numpy()})[output]
