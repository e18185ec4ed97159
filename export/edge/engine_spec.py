"""What a serialized engine is, in a sidecar beside it. Runs without torch."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from inversion.errors import InputError
from inversion.publish import publish

ENGINE_GRAPH = "model.tensorrt.onnx"
"""The graph that engines are built from, beside them."""


@dataclass(frozen=True)
class TensorSpec:
    """An input or output and its shapes at the profile's smallest, optimal and largest batch."""

    name: str
    dtype: str
    min: tuple[int, ...]
    opt: tuple[int, ...]
    max: tuple[int, ...]


@dataclass(frozen=True)
class EngineSpec:
    """What a serialized engine is; the sidecar `<engine>.json` holds the same.

    - `onnx_sha256`  of the graph that it was built from, `sha256` of the engine itself
    - `kernels`      which products are on integers, read from the builder's log: `export.edge.kernels.Coverage` as JSON
    - `timing_cache` name and sha256 of the file with the builder's timings, where a GPU made some
    - `build_command`, `time_command`  lines that build the same engine elsewhere, and time it on its GPU
    - `trtexec_command`  the line that builds one with TensorRT itself, on the device, from the same graph
    - `labels`       what the classes are called, in class order; none where the graph does not say
    - `notes`        in sentences: which runtime it needs, what its output is, why it has its size
    - `executed`     whether this engine ever ran: building does not run it
    """

    backend: str
    version: str
    arch: str
    compute_capability: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    onnx_sha256: str
    sha256: str
    bytes: int
    build_seconds: float
    kernels: dict[str, Any]
    build_command: str
    time_command: str
    timing_cache: dict[str, str] | None = None
    executed: bool = False
    trtexec_command: str = ""
    labels: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def sidecar(engine_path: Path) -> Path:
    """Where the `EngineSpec` of an engine stands as JSON."""
    return engine_path.with_name(f"{engine_path.name}.json")


def write_spec(path: Path, spec: EngineSpec) -> None:
    """The sidecar of the engine in `path`."""
    publish(sidecar(path), (json.dumps(asdict(spec), indent=2) + "\n").encode())


def read_spec(path: Path) -> EngineSpec:
    """The sidecar of the engine in `path`; `InputError` where either is missing or they do not belong together."""
    if not path.is_file():
        raise InputError(f"{str(path)!r} does not exist: give an engine, as `pipeline engine` writes it.")
    try:
        values = json.loads(sidecar(path).read_text())
        for side in ("inputs", "outputs"):
            values[side] = tuple(_tensor_spec(value) for value in values[side])
        for texts in ("labels", "notes"):
            values[texts] = tuple(values.get(texts, ()))
        spec = EngineSpec(**values)
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise InputError(
            f"{str(path)!r} has no sidecar {sidecar(path).name!r} of this version beside it: build it again."
        ) from error
    if hashlib.sha256(path.read_bytes()).hexdigest() != spec.sha256:
        raise InputError(f"{str(path)!r} is not the engine that its sidecar describes: build it again.")
    return spec


def _tensor_spec(value: dict[str, Any]) -> TensorSpec:
    shapes = {key: tuple(value[key]) for key in ("min", "opt", "max")}
    return TensorSpec(value["name"], value["dtype"], **shapes)
