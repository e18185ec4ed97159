"""TensorRT engines from Q/DQ graphs. Runs without torch: an edge device builds with it."""

from __future__ import annotations

import ctypes
import functools
import hashlib
import importlib
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from export.edge.files import require_own_data
from export.edge.kernels import engine_kernels
from export.edge.profile import BACKENDS, BATCHES, require_batches
from inversion.errors import InputError, MachineError
from inversion.publish import publish

COMMAND = {"tensorrt": "trtexec", "tensorrt_rtx": "tensorrt_rtx"}
MAJOR, MINOR = 75, 76  # cuDeviceGetAttribute: compute capability


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


def build_engine(
    onnx_path: Path,
    out_path: Path,
    arch: str,
    backend: str | None = None,
    batches: Sequence[int] = BATCHES,
    progress: Callable[[str], None] | None = None,
) -> EngineSpec:
    """Build the engine of a Q/DQ graph for the GPU architecture `arch` ("sm89") and write it with its sidecar.

    The graph is taken as it is: `export.edge.engine_graph` makes one that TensorRT runs best. `tensorrt_rtx` builds
    ahead of time, with no GPU; `tensorrt` builds for this machine's GPU only. `batches` are the smallest, the optimal
    and the largest batch of the profile. `progress` is told what is being done. Raises `InputError` for a file,
    architecture or operator that cannot be used, `MachineError` where no backend is installed.
    """
    onnx_path, out_path = Path(onnx_path), Path(out_path)
    require_own_data(onnx_path)
    require_batches(batches)
    name = _select(backend, (arch,))
    trt = importlib.import_module(name)
    started = time.perf_counter()
    cache = out_path.with_name(f"timing.{name}.{arch}.cache") if name == "tensorrt" else None
    network, serialized = _serialize(trt, onnx_path, arch, batches, cache, progress or (lambda _: None))
    seconds = time.perf_counter() - started
    inputs = tuple(_tensor_spec(trt, network.get_input(index), batches) for index in range(network.num_inputs))
    outputs = tuple(_tensor_spec(trt, network.get_output(index), batches) for index in range(network.num_outputs))
    runtime = f"{name} {trt.__version__} {arch}"
    given = (network.get_input(index) for index in range(network.num_inputs))
    dynamic = tuple(spec for tensor, spec in zip(given, inputs, strict=True) if -1 in tuple(tensor.shape))
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
        build_command=_build_command(name, arch, onnx_path, out_path, dynamic),
        time_command=_command(name, [f"--loadEngine={out_path.name}", *_shapes("shapes", "opt", dynamic)]),
        timing_cache=_describe_file(cache) if cache and cache.exists() else None,
    )
    publish(out_path, serialized)
    publish(sidecar(out_path), (json.dumps(asdict(spec), indent=2) + "\n").encode())
    return spec


def sidecar(engine_path: Path) -> Path:
    """Where the `EngineSpec` of an engine stands as JSON."""
    return engine_path.with_name(f"{engine_path.name}.json")


def available_backend() -> str | None:
    """The backend that an engine is built with by default, or None where neither is installed."""
    return next((name for name in BACKENDS if available(name)), None)


def available(name: str) -> ModuleType | None:
    """The module of a backend, or None where it or a library of it is not installed."""
    try:
        return importlib.import_module(name)
    except (ImportError, OSError):  # OSError: the package is there, a library it loads is not
        return None


def choose_backend(backend: str | None, archs: Sequence[str]) -> str | None:
    """The backend, `backend` or the default, that can build for all of `archs`; None where there is nothing to build.

    Raises what `build_engine` would, before any time is spent.
    """
    return _select(backend, archs) if archs else None


def known_archs(trt: ModuleType) -> tuple[str, ...]:
    """Architectures that this backend builds for here: all it names, or the local GPU's where it names none."""
    if hasattr(trt, "ComputeCapability"):
        names = [name.lower() for name in trt.ComputeCapability.__members__ if name.startswith("SM")]
        return tuple(sorted(names, key=lambda name: int(name[2:])))
    local = local_arch()
    return (local,) if local else ()


def _select(backend: str | None, archs: Sequence[str]) -> str:
    if backend is not None and backend not in BACKENDS:
        raise InputError(f"unknown backend {backend!r}: take {' or '.join(BACKENDS)}.")
    name = backend or available_backend()
    trt = available(name) if name else None
    if name is None or trt is None:
        missing = f"the backend {backend!r} is not" if backend else f"neither {' nor '.join(BACKENDS)} is"
        raise MachineError(f"{missing} installed: install its package, and look at `pipeline doctor`.")
    for arch in archs:
        _require_arch(trt, name, arch)
    return name


def _require_arch(trt: ModuleType, backend: str, arch: str) -> None:
    known = known_archs(trt)
    if not known:
        raise MachineError(f"{backend} builds for the local GPU only and found none: use tensorrt_rtx for {arch}.")
    if arch not in known:
        raise InputError(f"unknown architecture {arch!r}: {backend} {trt.__version__} builds for {', '.join(known)}.")


def local_arch() -> str | None:
    """Architecture of the first GPU, asked from the driver, or None without one."""
    try:
        cuda = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return None
    device, major, minor = ctypes.c_int(), ctypes.c_int(), ctypes.c_int()
    status = cuda.cuInit(0) or cuda.cuDeviceGet(ctypes.byref(device), 0)
    status = status or cuda.cuDeviceGetAttribute(ctypes.byref(major), MAJOR, device)
    status = status or cuda.cuDeviceGetAttribute(ctypes.byref(minor), MINOR, device)
    return None if status else f"sm{major.value}{minor.value}"


@functools.cache
def logger(trt: ModuleType) -> Any:
    """One logger a process, since TensorRT keeps the first it is given."""

    class Collector(trt.ILogger):  # type: ignore[name-defined] # known at run time only
        def __init__(self) -> None:
            super().__init__()
            self.messages: list[tuple[Any, str]] = []
            self.raised: BaseException | None = None

        def log(self, severity: Any, message: str) -> None:
            try:
                self.messages.append((severity, message))
            except BaseException as stopped:  # of a signal: the builder, which calls this, would swallow it
                self.raised = stopped

        def forget(self) -> None:
            self.messages.clear()
            self.raised = None

        def layers(self) -> str:
            """What the builder told of the engine's layers, a line each."""
            lines = (line for _, text in self.messages for line in text.splitlines())
            return "\n".join(line for line in lines if "LayerType: " in line)

        def complaint(self) -> str:
            errors = [text for severity, text in self.messages if severity <= trt.ILogger.ERROR]
            return errors[0].strip().rstrip(".") if errors else "TensorRT gave no reason"

    return Collector()


def _network_flags(trt: ModuleType) -> int:
    flag = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    return 0 if flag is None else 1 << int(flag)


def _serialize(
    trt: ModuleType,
    onnx_path: Path,
    arch: str,
    batches: Sequence[int],
    cache: Path | None,
    say: Callable[[str], None],
) -> tuple[Any, bytes]:
    """The parsed network and its engine; the builder's timings are read from `cache` and kept there."""
    collector = logger(trt)
    collector.forget()
    builder = trt.Builder(collector)
    network = builder.create_network(_network_flags(trt))
    say(f"reading {onnx_path.name}")
    _parse(trt, trt.OnnxParser(network, collector), network, onnx_path)
    config = builder.create_builder_config()
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED  # names the layers, in the log and to an inspector
    _set_arch(trt, config, arch)
    _add_profile(builder, config, network, batches)
    if cache:
        _use_timings(config, cache)
    say(f"building for {arch} with {trt.__name__} {trt.__version__}")
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


def _build_command(backend: str, arch: str, onnx_path: Path, engine: Path, dynamic: tuple[TensorSpec, ...]) -> str:
    """For the machine with the GPU, or, of tensorrt_rtx, for any; it is typed by the graph alone, as here. The shapes
    of `dynamic` inputs are those of the profile."""
    typed = ["--stronglyTyped"] if backend == "tensorrt" else [f"--computeCapabilities={arch[2:]}"]
    shapes = [part for which in ("min", "opt", "max") for part in _shapes(f"{which}Shapes", which, dynamic)]
    saved = [f"--saveEngine={engine.name}", "--skipInference"]
    return _command(backend, [f"--onnx={onnx_path.name}", *typed, *shapes, *saved])


def _shapes(flag: str, which: str, dynamic: tuple[TensorSpec, ...]) -> list[str]:
    """One flag with the shapes of all inputs whose batch the graph leaves open, or none."""
    found = [f"{spec.name}:{'x'.join(map(str, getattr(spec, which)))}" for spec in dynamic]
    return [f"--{flag}={','.join(found)}"] if found else []


def _command(backend: str, flags: list[str]) -> str:
    return " ".join([COMMAND[backend], *flags])


def _describe_file(path: Path) -> dict[str, str]:
    return {"path": path.name, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
