"""What every backend offers, and what it opens. Runs without torch: an edge device uses it.

A new one is a subclass in a file of its own, a line in `export.edge.registry`, and its package in pyproject.toml.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from export.edge.engine_spec import EngineSpec
from export.edge.kernels import Coverage
from export.edge.profile import BATCHES
from inversion.errors import InputError, MachineError

Array = npt.NDArray[Any]


class Runtime(ABC):
    """A model that is loaded and runs, until it is closed or its `with` ends.

    `provider` is what really runs it, `version` its version; `inputs` are names and sizes, None for a size that may
    vary; `dtypes` the inputs' types; `outputs` names; `batches` the smallest and largest batch, None where any may be.
    """

    provider: str
    version: str
    inputs: dict[str, tuple[int | None, ...]]
    dtypes: dict[str, np.dtype[Any]]
    outputs: tuple[str, ...]
    batches: tuple[int, int | None]

    @abstractmethod
    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Every output by name. Raises `InputError` where `feeds` do not fit the model's inputs, or it is closed."""

    @contextmanager
    def ready(self, feeds: Mapping[str, Array]) -> Iterator[Callable[[], object]]:
        """What runs the model once on `feeds`, which are where it takes them: its time is the model's."""
        yield lambda: self.run(feeds)

    @abstractmethod
    def close(self) -> None:
        """Free the model's memory; a second time does nothing."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Backend(ABC):
    """Something that runs models: ONNX files as they are, or engines that it builds from them first."""

    name: str
    version: str

    def check(self) -> None:  # noqa: B027 - most start wherever they are installed
        """Raises `MachineError` where it is installed and does not start here."""

    def floats(self) -> str:
        """The type in which it computes what a model does not quantize, and keeps in float32, on this machine."""
        return "float32"

    def archs(self) -> tuple[str, ...]:
        """GPU architectures that `build` builds for here; none where nothing is built."""
        return ()

    def require_arch(self, arch: str) -> None:
        """Raises `InputError` for an architecture that is none of `archs`, `MachineError` where there are none here."""
        known = self.archs()
        if not known:
            raise MachineError(
                f"{self.name} builds for the local GPU only and found none: use tensorrt_rtx for {arch}."
            )
        if arch not in known:
            raise InputError(
                f"unknown architecture {arch!r}: {self.name} {self.version} builds for {', '.join(known)}."
            )

    def build(
        self,
        model: Path,
        out: Path,
        arch: str,  # noqa: ARG002 - of those that build
        batches: Sequence[int] = BATCHES,  # noqa: ARG002
    ) -> EngineSpec:
        """Build the engine of the ONNX file `model`, taken as it is, into `out`, with its sidecar.

        `batches` are the smallest, the optimal and the largest batch. Raises `InputError` for a file, architecture or
        operator that cannot be used.
        """
        raise InputError(f"{self.name} runs {str(model)!r} as it is: there is no {out.name} to build, open the model.")

    @abstractmethod
    def open(self, path: Path, threads: int | None = None) -> Runtime:
        """Load `path`; on a CPU it runs on `threads`, all where none are named.

        Raises `InputError` for a file that is no model of this backend, `MachineError` where it cannot run here.
        """

    @abstractmethod
    def kernels(self, path: Path) -> Coverage:
        """Which products of the model in `path` really run on integers. Raises what `open` raises."""
