"""ONNX files, read with care and written whole. Runs without torch."""

from __future__ import annotations

from pathlib import Path

import onnx
from google.protobuf.message import DecodeError  # type: ignore[import-untyped] # protobuf ships no types

from inversion.errors import InputError
from inversion.publish import publish

LEAST = {"MatMul": 2, "QuantizeLinear": 2, "DequantizeLinear": 2}
"""Inputs without which a node that is looked into is none."""


def read_onnx(path: Path) -> onnx.ModelProto:
    """The model in `path`, with its weights.

    Raises `InputError` for what is not a whole ONNX file, or keeps weights outside its folder.
    """
    path = Path(path)
    require_own_data(path)
    try:
        return onnx.load(path, format="protobuf")
    except (OSError, ValueError, onnx.checker.ValidationError) as error:
        raise InputError(f"the weights of {str(path)!r} cannot be read: put its data file beside it.") from error


def require_own_data(path: Path) -> None:
    """Raises `InputError` where `path` is no ONNX file, or one whose weights lie outside its folder."""
    if not path.is_file():
        raise InputError(f"{str(path)!r} does not exist: give an ONNX file, as `pipeline export` writes it.")
    try:
        model = onnx.load(path, format="protobuf", load_external_data=False)
    except (DecodeError, ValueError) as error:
        raise InputError(f"{str(path)!r} is not an ONNX file: make one with `pipeline export`.") from error
    if not model.graph.node:  # an empty file is a whole, empty message
        raise InputError(f"{str(path)!r} is not an ONNX file: make one with `pipeline export`.")
    for node in model.graph.node:
        if len(node.input) < LEAST.get(node.op_type, 0) or not node.output:
            raise InputError(
                f"{str(path)!r} is broken: its node {node.name!r} ({node.op_type}) lacks an input or output; "
                "make it again with `pipeline export`."
            )
    folder = path.resolve().parent
    for tensor in model.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location" and not (folder / entry.value).resolve().is_relative_to(folder):
                raise InputError(
                    f"{str(path)!r} keeps the weight {tensor.name!r} in {entry.value!r}, outside its folder: "
                    "it is not read; save the model with its data beside it."
                )


def write_onnx(model: onnx.ModelProto, path: Path) -> None:
    """Publish `model`, checked with full shape inference; equal models give equal bytes.

    Initializers are not typed a second time: a tool that transposes one would leave the old shape behind.
    """
    constants = {tensor.name for tensor in model.graph.initializer}
    for index in reversed(range(len(model.graph.value_info))):
        if model.graph.value_info[index].name in constants:
            del model.graph.value_info[index]
    onnx.checker.check_model(model, full_check=True)
    publish(path, model.SerializeToString(deterministic=True))
