"""How TensorRT builds an engine of a Q/DQ graph. Runs without torch: an edge device builds with it."""

from __future__ import annotations

import hashlib
import json
import time
import zlib
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnx

from export.edge.engine_spec import EngineSpec, TensorSpec, write_spec
from export.edge.kernels import engine_kernels
from export.edge.tensorrt_log import logger
from export.edge.trtexec import build_line, command, shape_flags
from inversion.errors import InputError
from inversion.publish import publish

RUNTIMES = {"tensorrt": "TensorRT", "tensorrt_rtx": "TensorRT for RTX"}


def build_and_describe(
    trt: ModuleType, onnx_path: Path, out_path: Path, arch: str, batches: Sequence[int]
) -> EngineSpec:
    """Build the engine of `onnx_path` and write it to `out_path` with its sidecar."""
    name, started = trt.__name__, time.perf_counter()
    cache = out_path.with_name(f"timing.{name}.{arch}.cache") if name == "tensorrt" else None
    network, serialized = _serialize(trt, onnx_path, arch, batches, cache)
    seconds = time.perf_counter() - started
    given = [network.get_input(index) for index in range(network.num_inputs)]
    inputs = tuple(_tensor_spec(trt, tensor, batches) for tensor in given)
    outputs = tuple(_tensor_spec(trt, network.get_output(index), batches) for index in range(network.num_outputs))
    dynamic = tuple(spec for tensor, spec in zip(given, inputs, strict=True) if -1 in tuple(tensor.shape))
    runtime = f"{name} {trt.__version__} {arch}"
    kernels = engine_kernels(onnx_path, logger(trt).layers(), runtime, "the builder's verbose log")
    spec = EngineSpec(
        backend=name,
        version=trt.__version__,
        arch=arch,
        compute_capability=f"{arch[2:-1]}.{arch[-1]}",
        inputs=inputs,
        outputs=outputs,
        onnx_sha256=hashlib.sha256(onnx_path.read_bytes()).hexdigest(),
        sha256=hashlib.sha256(serialized).hexdigest(),
        bytes=len(serialized),
        build_seconds=round(seconds, 3),
        kernels=kernels.to_dict(),
        build_command=build_line(name, arch, onnx_path.name, out_path.name, dynamic),
        time_command=command(name, [f"--loadEngine={out_path.name}", *shape_flags("shapes", "opt", dynamic)]),
        trtexec_command=build_line("tensorrt", arch, onnx_path.name, f"engine.tensorrt.{arch}.plan", dynamic),
        labels=_labels(onnx_path),
        notes=_notes(name, trt.__version__, arch, onnx_path, serialized),
        timing_cache=_describe_file(cache) if cache and cache.exists() else None,
    )
    publish(out_path, serialized)
    write_spec(out_path, spec)
    return spec


def reasons(trt: ModuleType, path: Path) -> list[str]:
    """Why the parser of `trt` does not take the ONNX file `path`, node by node; nothing where it does."""
    collector = logger(trt)
    collector.forget()
    network = trt.Builder(collector).create_network(_network_flags(trt))
    parser = trt.OnnxParser(network, collector)
    parser.parse_from_file(str(path))
    return list(dict.fromkeys(_first_reason(parser.get_error(index)) for index in range(parser.num_errors)))


def _first_reason(error: Any) -> str:
    """In one line; a parser that lacks an operator says "false" and no more."""
    lines = [line.strip() for line in error.desc().splitlines() if line.strip()]
    told = next((line for line in lines if not line.startswith("Invalid Node")), "false")
    if told == "false":
        return f"it has no operator {error.node_operator() or 'of an empty name'}"
    return f"{error.node_name() or 'the graph'}: {told.rstrip('.')}"


def _network_flags(trt: ModuleType) -> int:
    flag = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    return 0 if flag is None else 1 << int(flag)


def _serialize(
    trt: ModuleType,
    onnx_path: Path,
    arch: str,
    batches: Sequence[int],
    cache: Path | None,
) -> tuple[Any, bytes]:
    """The parsed network and its engine; the builder's timings are read from `cache` and kept there."""
    collector = logger(trt)
    collector.forget()
    builder = trt.Builder(collector)
    network = builder.create_network(_network_flags(trt))
    _parse(trt, trt.OnnxParser(network, collector), network, onnx_path)
    config = builder.create_builder_config()
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED  # names the layers, in the log and to an inspector
    _set_arch(trt, config, arch)
    _add_profile(builder, config, network, batches)
    if cache:
        _use_timings(config, cache)
    serialized = builder.build_serialized_network(network, config)
    if collector.raised:
        raise collector.raised
    if serialized is None:
        raise InputError(f"{trt.__name__} cannot build {str(onnx_path)!r} for {arch}: {collector.complaint()}.")
    if cache:
        publish(cache, bytes(config.get_timing_cache().serialize()))
    return network, bytes(serialized)


def _use_timings(config: Any, cache: Path) -> None:
    """Let the builder start from the timings of earlier builds; it ignores those of another GPU or version."""
    timings = config.create_timing_cache(cache.read_bytes() if cache.exists() else b"")
    config.set_timing_cache(timings, ignore_mismatch=False)


def _parse(trt: ModuleType, parser: Any, network: Any, path: Path) -> None:
    parsed = parser.parse_from_file(str(path))
    errors = [parser.get_error(index) for index in range(parser.num_errors)]
    # an empty file is a whole, empty protobuf message
    if not (errors or network.num_outputs) or any(
        error.code() == trt.ErrorCode.MODEL_DESERIALIZE_FAILED for error in errors
    ):
        raise InputError(f"{str(path)!r} is not an ONNX file: make one with `pipeline export`.")
    if not parsed:
        raise InputError(
            f"TensorRT cannot take {str(path)!r} ({'; '.join(map(_reason, errors))}): "
            "export it again with `pipeline export`."
        )


def _reason(error: Any) -> str:
    return f"{error.node_name() or 'the graph'}: {error.desc().strip().rstrip('.')}"


def _set_arch(trt: ModuleType, config: Any, arch: str) -> None:
    if hasattr(trt, "ComputeCapability"):
        config.num_compute_capabilities = 1
        config.set_compute_capability(trt.ComputeCapability.__members__[arch.upper()], 0)


def _add_profile(builder: Any, config: Any, network: Any, batches: Sequence[int]) -> None:
    """Give a dynamic batch its profile; fixed shapes need none."""
    profile = builder.create_optimization_profile()
    dynamic = False
    for index in range(network.num_inputs):
        tensor = network.get_input(index)
        shape = tuple(tensor.shape)
        if any(size < 0 for size in shape[1:]):
            raise InputError(f"input {tensor.name!r} has the shape {shape}: only its first size, the batch, may vary.")
        if shape and shape[0] < 0:
            profile.set_shape(tensor.name, *((batch, *shape[1:]) for batch in batches))
            dynamic = True
    if dynamic:
        config.add_optimization_profile(profile)


def _tensor_spec(trt: ModuleType, tensor: Any, batches: Sequence[int]) -> TensorSpec:
    shape = tuple(tensor.shape)
    low, opt, high = ((batch, *shape[1:]) if shape and shape[0] < 0 else shape for batch in batches)
    return TensorSpec(tensor.name, np.dtype(trt.nptype(tensor.dtype)).name, low, opt, high)


def _labels(onnx_path: Path) -> tuple[str, ...]:
    """What the classes are called, where the graph says it."""
    entries = onnx.load(onnx_path, load_external_data=False).metadata_props
    told = next((entry.value for entry in entries if entry.key == "labels"), "[]")
    return tuple(json.loads(told))


def _notes(backend: str, version: str, arch: str, onnx_path: Path, engine: bytes) -> tuple[str, ...]:
    """What whoever holds the engine has to know. Where the text in it comes from: decision 22."""
    weights = sum(len(constant.raw_data) for constant in onnx.load(onnx_path).graph.initializer)
    source = "" if backend != "tensorrt_rtx" else ", the rest mostly CUDA source that it compiles on its GPU"
    return (
        f"It needs {RUNTIMES[backend]} {version} and a GPU of {arch}: build it again for any other.",
        "Its output is a number a class: softmax is not applied.",
        f"Of its {len(engine) / 1e6:.1f} MB, {weights / 1e6:.1f} MB are weights{source}; "
        f"for transport gzip makes it {len(zlib.compress(engine)) / 1e6:.1f} MB.",
    )


def _describe_file(path: Path) -> dict[str, str]:
    return {"path": path.name, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
