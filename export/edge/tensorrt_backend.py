"""TensorRT and TensorRT-RTX as one backend. Runs without torch: an edge device builds and infers with it."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

from export.edge.backend import Backend
from export.edge.engine_session import EngineSession
from export.edge.engine_spec import ENGINE_GRAPH, EngineSpec, read_spec
from export.edge.files import require_own_data
from export.edge.gpu import local_arch
from export.edge.kernels import Coverage, engine_kernels
from export.edge.profile import BATCHES, require_batches
from export.edge.tensorrt_build import build_and_describe
from export.edge.tensorrt_log import logger
from inversion.errors import InputError, MachineError


class TensorRT(Backend):
    """`trt` is the module `tensorrt` or `tensorrt_rtx`, which offer the same but for the choice of an architecture:
    TensorRT-RTX builds ahead of time, with no GPU, TensorRT for this machine's GPU only.
    """

    def __init__(self, trt: ModuleType) -> None:
        self._trt = trt
        self.name: str = trt.__name__
        self.version: str = trt.__version__

    def archs(self) -> tuple[str, ...]:
        """All that the module names, or the local GPU's where it names none."""
        if hasattr(self._trt, "ComputeCapability"):
            names = [name.lower() for name in self._trt.ComputeCapability.__members__ if name.startswith("SM")]
            return tuple(sorted(names, key=lambda name: int(name[2:])))
        local = local_arch()
        return (local,) if local else ()

    def build(self, model: Path, out: Path, arch: str, batches: Sequence[int] = BATCHES) -> EngineSpec:
        """As `Backend.build`; `export.edge.engine_graph` makes the graph that TensorRT runs best."""
        model, out = Path(model), Path(out)
        require_own_data(model)
        require_batches(batches)
        self.require_arch(arch)
        return build_and_describe(self._trt, model, out, arch, batches)

    def open(self, path: Path, threads: int | None = None) -> EngineSession:  # noqa: ARG002 - it runs on the GPU
        """Load an engine that `build` wrote, with its sidecar beside it, on the GPU that it is for."""
        path = Path(path)
        spec = read_spec(path)
        if self.name != spec.backend:
            raise InputError(f"{str(path)!r} was made by {spec.backend}, not by {self.name}: open it with that.")
        if self.version != spec.version:
            raise InputError(
                f"{str(path)!r} was made by {self.name} {spec.version}, this is {self.version}: build it again here."
            )
        if local_arch() != spec.arch:
            raise MachineError(
                f"{str(path)!r} is for a GPU of {spec.arch}, this machine has {local_arch() or 'none'}: "
                "build it with --arch of the GPU that runs it."
            )
        try:
            cuda = importlib.import_module("cuda.bindings.runtime")
        except ImportError as error:
            raise MachineError("an engine is run through cuda-bindings: pip install cuda-bindings.") from error
        collector = logger(self._trt)
        engine = self._trt.Runtime(collector).deserialize_cuda_engine(path.read_bytes())
        if engine is None:
            raise InputError(f"{self.name} cannot load {str(path)!r} ({collector.complaint()}): build it again here.")
        return EngineSession(spec, engine, self._trt, cuda)

    def kernels(self, path: Path) -> Coverage:
        """Of the engine in `path`, from its inspector; the graph that it was built from lies beside it."""
        path = Path(path)
        graph = path.with_name(ENGINE_GRAPH)
        with self.open(path) as session:
            runtime = f"{session.provider} {session.version} {session.arch}"
            return engine_kernels(graph, session.layers(), runtime, "the engine's inspector")
