"""ONNX files of a teacher and of its quantized form: standard operators, dynamic batch, the same bytes every time."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import torch
from onnx import numpy_helper
from torch import nn

from calib.scheme import integer_range
from export.edge.files import read_onnx, write_onnx
from export.naming import tidy
from export.operators import TRANSLATIONS
from export.pixels import FromPixels, to_pixels
from export.qdq import plain_attention
from inversion.errors import InputError
from inversion.plainvit import PlainViT
from inversion.teacher import InputSpec

OPSET = 21  # the first with INT4 tensors
INPUT, OUTPUT = "input", "logits"
MAX_BYTES = 2**31 - 1  # of one protobuf message
INT4 = onnx.helper.tensor_dtype_to_np_dtype(onnx.TensorProto.INT4)


def export_quantized(
    module: nn.Module, spec: InputSpec, path: Path, metadata: dict[str, str], uint8_input: bool = False
) -> None:
    """Write `module`, made by `export.qdq.qdq_module`, as a Q/DQ graph whose weights are INT8 initializers.

    `input` is float32 [batch, C, H, W], normalised, or with `uint8_input` uint8 [batch, H, W, C], pixels 0 to 255;
    `logits` is float32 [batch, num_classes]. `metadata` becomes the file's metadata_props. Raises `InputError` for a
    model of more than 2 GB.
    """
    _export(module, spec, Path(path), metadata, uint8_input, lean=True)


def export_float(
    model: PlainViT, spec: InputSpec, path: Path, metadata: dict[str, str], uint8_input: bool = False
) -> None:
    """Write the float teacher, with the same inputs, outputs and errors as `export_quantized`; from a copy on the CPU,
    so that the bytes do not depend on where `model` is."""
    module: Any = copy.deepcopy(model).cpu().eval().requires_grad_(False)
    plain_attention(module)
    _export(module, spec, Path(path), metadata, uint8_input)


def write_int4(int8_path: Path, int4_path: Path, layers: Collection[str]) -> None:
    """The graph of `int8_path` with the weights of `layers` packed as INT4: half the bytes, the same numbers.

    Raises `InputError` where `int8_path` is no such graph, or a layer's integers leave [-8, 7].
    """
    model = read_onnx(Path(int8_path))
    low, high = integer_range(4)
    wanted = {f"{name}.weight" for name in layers}
    found = {tensor.name: tensor for tensor in model.graph.initializer if tensor.name in wanted}
    if missing := sorted(wanted - found.keys()):
        raise InputError(f"{str(int8_path)!r} has no weight {missing[0]!r}: name layers of that file.")
    for name, tensor in found.items():
        integers = numpy_helper.to_array(tensor)
        if integers.dtype != np.int8 or integers.min() < low or integers.max() > high:
            raise InputError(f"{name!r} does not fit 4 bits, [{low}, {high}]: pack layers of 4 bits or fewer only.")
        tensor.CopyFrom(numpy_helper.from_array(integers.astype(INT4), name))
    _forget_int8(model.graph, wanted)
    write_onnx(model, Path(int4_path))


def integer_weights(path: Path) -> dict[str, tuple[int, int]]:
    """Smallest and largest integer of each INT8 or INT4 initializer that reaches a MatMul through DequantizeLinear.

    Raises `InputError` for what is not an ONNX file.
    """
    graph = read_onnx(Path(path)).graph
    initializers = {tensor.name: tensor for tensor in graph.initializer}
    dequantized = {node.output[0]: node.input[0] for node in graph.node if node.op_type == "DequantizeLinear"}
    names = [dequantized.get(node.input[1], "") for node in graph.node if node.op_type == "MatMul"]
    ranges = {}
    for name in names:
        if name in initializers:
            integers = numpy_helper.to_array(initializers[name]).astype(np.int8)
            ranges[name] = (int(integers.min()), int(integers.max()))
    return ranges


def _forget_int8(graph: onnx.GraphProto, names: set[str]) -> None:
    """Drop what still says that `names` are INT8: their types, and their zero points, which are optional and zero."""
    for node in graph.node:
        if node.op_type == "DequantizeLinear" and node.input[0] in names:
            del node.input[2:]
    used = {name for node in graph.node for name in node.input}
    for field, kept in (
        (graph.value_info, [value for value in graph.value_info if value.name not in names]),
        (graph.initializer, [tensor for tensor in graph.initializer if tensor.name in used]),
    ):
        del field[:]
        field.extend(kept)


def _export(
    module: nn.Module, spec: InputSpec, path: Path, metadata: dict[str, str], uint8_input: bool, lean: bool = False
) -> None:
    size = sum(value.nbytes for value in module.state_dict().values())
    if size > MAX_BYTES:
        raise InputError(f"the model has {size / 1e9:.1f} GB of weights, an ONNX file holds 2: take a smaller teacher.")
    # a batch of one would be taken for a constant
    example = torch.zeros(2, spec.channels, *spec.size)
    if uint8_input:
        module, example = FromPixels(module, spec), to_pixels(example, spec)
    with warnings.catch_warnings(action="ignore"):  # about the exporter's own versions and deprecations
        program = torch.onnx.export(
            module,
            (example,),
            dynamo=True,
            opset_version=OPSET,
            input_names=[INPUT],
            output_names=[OUTPUT],
            dynamic_shapes=({0: torch.export.Dim("batch")},),
            custom_translation_table=TRANSLATIONS,
            verbose=False,
        )
    assert program is not None
    tidy(program.model, OPSET)
    _add_zero_points(program.model.graph)
    if lean:
        _keep_last_residual(program.model.graph)
    program.model.metadata_props.update(sorted(metadata.items()))
    write_onnx(ir.to_proto(program.model), path)


def _add_zero_points(graph: ir.Graph) -> None:
    """Give each weight a zero point of its own, zeros [out].

    It is optional in ONNX, but the rewrite of ONNX Runtime that keeps x86 from saturating makes a model that does
    not run where it is missing, and one that does not load where two weights share it.
    """
    for node in graph:
        weight, step = (*node.inputs, None, None)[:2]
        if node.op_type == "DequantizeLinear" and weight and step and weight.is_initializer():
            assert step.const_value is not None
            name = f"{weight.name}_zero_point"
            zeros = ir.tensor(np.zeros(step.const_value.shape.numpy(), np.int8), name=name)
            zero_point = ir.val(name, const_value=zeros)
            graph.register_initializer(zero_point)
            node.resize_inputs(3)
            node.replace_input_with(2, zero_point)


def _keep_last_residual(graph: ir.Graph) -> None:
    """Make a Sum of each Add that a LayerNormalization alone takes: of an Add, ONNX Runtime would make one node of
    both, SkipLayerNormalization, which takes longer than they do."""
    for node in graph:
        if node.op_type == "Add" and [user.op_type for user in node.outputs[0].consumers()] == ["LayerNormalization"]:
            node.op_type = "Sum"
