"""What a TensorRT engine is: by its sidecar, and by its inspector where its runtime and its GPU are. No torch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from export.edge.engine_spec import EngineSpec, read_spec, sidecar
from export.edge.gpu import local_arch
from export.edge.kernels import Coverage, layer_products, sentences
from export.edge.registry import ENGINES, available, find_engine_backend
from export.edge.tensorrt_log import logger
from inversion.errors import PatchRebirthError

MAGIC = (b"ftrt", b"vtrt")
"""With which engines of TensorRT and of TensorRT-RTX begin."""


@dataclass(frozen=True)
class EngineInspection:
    """What an engine is.

    - `spec`     its sidecar, None where it has none
    - `kernels`  what its own inspector says; None where it could not be asked here, as `unasked` says
    """

    path: str
    bytes: int
    spec: EngineSpec | None
    kernels: Coverage | None
    unasked: str

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {"kind": "engine", **asdict(self)}

    def lines(self) -> list[str]:
        """For a person."""
        return list(self._lines())

    def _lines(self) -> Iterator[str]:
        size = f"{self.bytes / 1e6:.2f} MB"
        if (spec := self.spec) is None:
            yield f"{self.path}: a TensorRT engine, {size}, with no sidecar beside it"
        else:
            yield f"{self.path}: an engine of {spec.backend} {spec.version} for {spec.arch}, {size}"
            for name, tensors in (("input", spec.inputs), ("output", spec.outputs)):
                for each in tensors:
                    yield f"  {name} {each.name}: {each.dtype} {list(each.min)} to {list(each.max)}"
            yield from sentences(spec.kernels)
            yield from spec.notes
        if self.kernels is not None:
            yield from sentences(self.kernels.to_dict())
        else:
            yield f"its inspector was not asked: {self.unasked}"


def is_engine(path: Path) -> bool:
    """Whether `path` begins as engines do, or has a sidecar."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(4) in MAGIC or (path.suffix in (".plan", ".engine") and sidecar(path).is_file())


def inspect_engine(path: Path) -> EngineInspection:
    """What the engine in `path` is. Raises `InputError` where it is not the one that its sidecar describes."""
    spec = read_spec(path) if sidecar(path).is_file() else None
    kernels, unasked = None, ""
    try:
        kernels = find_engine_backend(spec.backend).kernels(path) if spec else _foreign(path)
        unasked = "" if kernels else f"no TensorRT here loads it (GPU: {local_arch() or 'none'})"
    except PatchRebirthError as error:
        unasked = str(error)
    return EngineInspection(str(path), path.stat().st_size, spec, kernels, unasked)


def _foreign(path: Path) -> Coverage | None:
    """By whichever TensorRT loads it; None where none does: an engine is loaded on its GPU alone."""
    for name in ENGINES if local_arch() else ():
        if (trt := available(name)) is None:
            continue
        engine = trt.Runtime(logger(trt)).deserialize_cuda_engine(path.read_bytes())
        if engine is not None:
            oneline = trt.LayerInformationFormat.ONELINE
            layers = str(engine.create_engine_inspector().get_engine_information(oneline))
            return layer_products(layers, f"{name} {trt.__version__} {local_arch()}")
    return None
