"""What an ONNX file is, whoever made it: sizes, numbers, quantizers, which products run on integers here, why others do
not, and what TensorRT would refuse. Runs without torch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import onnx
from google.protobuf.message import DecodeError  # type: ignore[import-untyped] # protobuf ships no types
from onnx import TensorProto

from export.edge.engine_inspection import EngineInspection, inspect_engine, is_engine
from export.edge.files import require_own_data
from export.edge.kernels import Coverage, sentences
from export.edge.products import graphs_of, nodes_of, with_names
from export.edge.quantizers import Quantizer, counted, quantizers
from export.edge.registry import find_runtime
from export.edge.tensorrt_rules import Refusal, parsers_say, refusals
from inversion.errors import InputError

FREE = "?"
MEND = ": make one with `pipeline export`."
"""Of our own files, at the end of what `kernels` refuses."""


@dataclass(frozen=True)
class Weights:
    """Constants of one type: how many tensors, numbers and bytes."""

    type: str
    tensors: int
    numbers: int
    bytes: int


@dataclass(frozen=True)
class Inspection:
    """What an ONNX file is.

    - `bytes`         of the file, `external_bytes` of the files with its weights beside it
    - `opsets`        version by domain, `operators` how many nodes of each type
    - `inputs`, `outputs`  name and "float32 [batch, 3, 224, 224]"
    - `quantizers`    each kind of quantizer in words, and how many there are
    - `kernels`       which products run on integers; None where the runtime does not take it, as `refused` says
    - `rules`, `parsers`  what TensorRT would refuse, by rules, and by each parser that is installed
    - `metadata`      what the file says of itself
    """

    path: str
    bytes: int
    external_bytes: int
    ir_version: int
    opsets: dict[str, int]
    producer: str
    inputs: dict[str, str]
    outputs: dict[str, str]
    weights: tuple[Weights, ...]
    operators: dict[str, int]
    quantizers: dict[str, int]
    kernels: Coverage | None
    refused: str
    rules: tuple[Refusal, ...]
    parsers: dict[str, list[str]]
    metadata: dict[str, str]

    def to_dict(self) -> dict[str, Any]:
        """For JSON, with every product, also those on integers."""
        return {"kind": "onnx", **asdict(self)}

    def lines(self) -> list[str]:
        """For a person."""
        return [*self._file(), *self._numbers(), *self._products(), *self._tensorrt()]

    def _file(self) -> Iterator[str]:
        opsets = ", ".join(f"{domain} {version}" for domain, version in self.opsets.items())
        beside = f" and {_mb(self.external_bytes)} of weights beside it" if self.external_bytes else ""
        yield f"{self.path}: ONNX, {_mb(self.bytes)}{beside}, opset {opsets}, IR {self.ir_version}{self.producer}"
        for name, values in (("input", self.inputs), ("output", self.outputs)):
            for value, shape in values.items():
                yield f"  {name} {value}: {shape}"
        for key in ("teacher", "scheme"):
            if key in self.metadata:
                yield f"  {key}: {self.metadata[key]}"

    def _numbers(self) -> Iterator[str]:
        for each in self.weights:
            yield f"constants of {each.type}: {each.numbers} numbers in {each.tensors} tensors, {_mb(each.bytes)}"
        if not self.quantizers:
            yield "quantizers: none, this is a float model"
        for words, count in self.quantizers.items():
            yield f"{count} quantizers of {words}"

    def _products(self) -> Iterator[str]:
        if self.kernels is None:
            yield f"the runtime does not take it: {self.refused}"
        elif not self.kernels.products:
            yield f"{self.kernels.runtime}: there are no matrix products in it"
        else:
            yield from sentences(self.kernels.to_dict())

    def _tensorrt(self) -> Iterator[str]:
        asked = ", ".join(self.parsers) or "none is installed here to ask"
        said = [f"{name}: {reason}" for name, reasons in self.parsers.items() for reason in reasons]
        if not self.rules and not said:
            yield f"TensorRT: nothing that it would refuse (parsers asked: {asked})"
            return
        yield f"TensorRT would refuse it (parsers asked: {asked}):"
        for rule in self.rules:
            more = f" and {rule.count - 1} more" if rule.count > 1 else ""
            yield f"  {rule.node}{more}: {rule.reason}"
        for complaint in said:
            yield f"  {complaint}"


def inspect_file(path: Path | str, provider: str = "cpu") -> Inspection | EngineInspection:
    """What the ONNX file or TensorRT engine in `path` is; its products are read from the runtime of `provider`.

    Raises `InputError` for a file that is neither, or is broken, `MachineError` where the provider is not here.
    """
    path = Path(path)
    if is_engine(path):
        return inspect_engine(path)
    backend = find_runtime(provider)
    backend.check()
    model = _open(path)
    kernels, refused = None, ""
    try:
        kernels = backend.kernels(path)
    except InputError as error:
        refused = str(error).removesuffix(MEND)
    found, folder = _quantizers(model, path), path.resolve().parent
    constants = {tensor.name for tensor in model.graph.initializer}
    producer = " ".join(filter(None, (model.producer_name, model.producer_version)))
    return Inspection(
        path=str(path),
        bytes=path.stat().st_size,
        external_bytes=sum((folder / name).stat().st_size for name in _beside(model) if (folder / name).is_file()),
        ir_version=model.ir_version,
        opsets={opset.domain or "ai.onnx": opset.version for opset in model.opset_import},
        producer=f", made by {producer}" if producer else "",
        inputs={value.name: _shape(value) for value in model.graph.input if value.name not in constants},
        outputs={value.name: _shape(value) for value in model.graph.output},
        weights=tuple(_weights(model)),
        operators=dict(Counter(node.op_type for node in nodes_of(model.graph)).most_common()),
        quantizers=dict(counted(found)),
        kernels=kernels,
        refused=refused,
        rules=tuple(refusals(model, found)),
        parsers=parsers_say(path),
        metadata={entry.key: entry.value for entry in model.metadata_props},
    )


def _open(path: Path) -> onnx.ModelProto:
    """The graph without its weights, named as the runtime's is."""
    require_own_data(path)
    try:
        model = with_names(onnx.load(path, format="protobuf", load_external_data=False))
    except (DecodeError, InputError) as error:
        raise InputError(f"{str(path)!r}: {error}") from error
    if any(isinstance(text, bytes) for text in _texts(model)):  # protobuf gives bytes where UTF-8 is broken
        raise InputError(f"{str(path)!r} is broken: it holds names that are no text; export it again.")
    return model


def _texts(model: onnx.ModelProto) -> Iterator[str | bytes]:
    yield from (model.producer_name, model.producer_version)
    for entry in model.metadata_props:
        yield from (entry.key, entry.value)
    for opset in model.opset_import:
        yield opset.domain
    for graph in graphs_of(model.graph):
        yield from (tensor.name for tensor in graph.initializer)
        for value in (*graph.input, *graph.output):
            yield from (value.name, *(size.dim_param for size in value.type.tensor_type.shape.dim))
    for node in nodes_of(model.graph):
        yield from (node.name, node.op_type, node.domain, *node.input, *node.output)


def _quantizers(model: onnx.ModelProto, path: Path) -> list[Quantizer]:
    # onnx raises several classes for a tensor whose bytes are not what its shape says
    try:
        return quantizers(model, path.resolve().parent)
    except Exception as error:
        why = " ".join(str(error).split()).rstrip(".")[:200]
        raise InputError(
            f"{str(path)!r} has a weight that cannot be read ({why}): put its data file beside it."
        ) from error


def _beside(model: onnx.ModelProto) -> set[str]:
    tensors = (tensor for graph in graphs_of(model.graph) for tensor in graph.initializer)
    return {entry.value for tensor in tensors for entry in tensor.external_data if entry.key == "location"}


def _weights(model: onnx.ModelProto) -> Iterator[Weights]:
    """By type, the largest first."""
    sizes: dict[int, list[int]] = {}
    for graph in graphs_of(model.graph):
        for tensor in graph.initializer:
            numbers = 1
            for size in tensor.dims:
                numbers *= size
            sizes.setdefault(tensor.data_type, []).append(numbers)
    found = []
    for kind, numbers_of in sizes.items():
        name, total = str(TensorProto.DataType.Name(kind)), sum(numbers_of)
        found.append(Weights(name, len(numbers_of), total, total * _bits(kind) // 8))
    yield from sorted(found, key=lambda each: -each.bytes)


def _bits(kind: int) -> int:
    name = str(TensorProto.DataType.Name(kind))
    if name.endswith(("INT4", "FLOAT4E2M1")):
        return 4
    return 8 * int(onnx.helper.tensor_dtype_to_np_dtype(kind).itemsize) if name not in ("UNDEFINED", "STRING") else 0


def _shape(value: onnx.ValueInfoProto) -> str:
    kind = value.type.tensor_type
    sizes = [size.dim_param or (str(size.dim_value) if size.HasField("dim_value") else FREE) for size in kind.shape.dim]
    name = str(TensorProto.DataType.Name(kind.elem_type)).lower()
    shape = f"[{', '.join(sizes)}]" if kind.HasField("shape") else "of any shape"
    return f"{'float32' if name == 'float' else name} {shape}"


def _mb(size: int) -> str:
    return f"{size / 1e6:.2f} MB"
