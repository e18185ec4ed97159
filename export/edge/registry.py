"""Every backend there is, by name: what runs ONNX files, and what builds engines. Imports nothing heavy before one is
asked for."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from functools import partial
from types import ModuleType
from typing import TYPE_CHECKING, Literal

from export.edge.profile import ON_DEVICE, ONLY_ON_DEVICE
from inversion.errors import InputError, MachineError

if TYPE_CHECKING:
    from export.edge.backend import Backend

Provider = Literal["cpu", "cuda", "tensorrt", "tensorrt_rtx"]
BackendName = Literal["tensorrt", "tensorrt_rtx"]
OPENVINO = "openvino"


def _onnx_runtime(name: str, provider: str) -> Backend:
    from export.edge.onnx_runtime import OnnxRuntime

    return OnnxRuntime(name, provider)


def _openvino() -> Backend:
    openvino = available(OPENVINO)
    if openvino is None:
        raise MachineError("OpenVINO is not installed: pip install openvino, or use cpu.")
    from export.edge.openvino_runtime import OpenVino

    return OpenVino(openvino)


def _tensorrt(module: str) -> Backend:
    from export.edge.tensorrt_backend import TensorRT

    trt = available(module)
    if trt is None:
        raise MachineError(f"the backend {module!r} is not installed or does not load: pip install {PACKAGES[module]}.")
    return TensorRT(trt)


RUNTIMES: dict[str, Callable[[], Backend]] = {
    "cpu": partial(_onnx_runtime, "cpu", "CPUExecutionProvider"),
    "cuda": partial(_onnx_runtime, "cuda", "CUDAExecutionProvider"),
    "tensorrt": partial(_onnx_runtime, "tensorrt", "TensorrtExecutionProvider"),
    "tensorrt_rtx": partial(_onnx_runtime, "tensorrt_rtx", "NvTensorRTRTXExecutionProvider"),
    OPENVINO: _openvino,
}
"""What runs ONNX files: ONNX Runtime on one of its providers, each `Provider`, and OpenVINO on CPUs."""
ENGINES: dict[BackendName, Callable[[], Backend]] = {
    "tensorrt": partial(_tensorrt, "tensorrt"),
    "tensorrt_rtx": partial(_tensorrt, "tensorrt_rtx"),
}
"""What builds engines, each by the name of its module; the first that is installed does where none is named."""
PACKAGES: dict[str, str] = {"tensorrt": "tensorrt cuda-bindings", "tensorrt_rtx": "tensorrt-rtx-cu13"}
"""What pip installs each of them by."""


def find_runtime(name: str) -> Backend:
    """What runs ONNX files on `name`, one of `RUNTIMES`; `InputError` for any other name."""
    if name not in RUNTIMES:
        raise InputError(f"unknown provider {name!r}: take one of {', '.join(RUNTIMES)}.")
    return RUNTIMES[name]()


def find_engine_backend(name: str) -> Backend:
    """What builds and runs the engines of `name`, one of `ENGINES`; `InputError` for any other name, `MachineError`
    where it is not installed."""
    if name not in ENGINES:
        raise InputError(f"unknown backend {name!r}: take {' or '.join(ENGINES)}.")
    return ENGINES[name]()


def available(name: str) -> ModuleType | None:
    """The module of a backend, or None where it or a library of it is not installed."""
    try:
        return importlib.import_module(name)
    except (ImportError, OSError):  # OSError: the package is there, a library it loads is not
        return None


def available_backend() -> str | None:
    """The backend that an engine is built with by default, or None where none is installed."""
    return next((name for name in ENGINES if available(name)), None)


def builder(name: str, arch: str) -> Backend | None:
    """The backend `name`, which builds for `arch` here; None where only the arch's own device does, for which
    `export.edge.build` writes the line. Raises `InputError` for a name or architecture that there is not, and
    `MachineError` where the backend is needed and not here."""
    if name in ENGINES and arch in ONLY_ON_DEVICE and not available(name):
        return None
    chosen = find_engine_backend(name)
    known = chosen.archs()
    if arch not in known and (arch in ONLY_ON_DEVICE or (known and arch in ON_DEVICE)):
        return None
    chosen.require_arch(arch)
    return chosen


def choose_backend(backend: str | None, archs: Sequence[str]) -> str | None:
    """The backend, `backend` or the default, that can build for all of `archs`; None where there is nothing to build.

    An architecture that only its own device builds for passes as well, also where nothing that builds is installed.
    Raises what building would, before any time is spent.
    """
    if not archs:
        return None
    name = backend or available_backend()
    if name is None and not set(archs) <= set(ONLY_ON_DEVICE):
        raise MachineError(
            f"neither {' nor '.join(ENGINES)} is installed: pip install {PACKAGES['tensorrt_rtx']}, which builds with "
            "no GPU too."
        )
    name = name or next(iter(ENGINES))
    for arch in archs:
        builder(name, arch)
    return name
