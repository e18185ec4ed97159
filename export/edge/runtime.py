"""Models opened and asked, whatever runs them. Runs without torch: an edge device infers with it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt

from export.edge.backend import Array, Runtime
from export.edge.engine_spec import read_spec
from export.edge.registry import PACKAGES, find_engine_backend, find_runtime
from inversion.errors import InputError, MachineError

LOGITS = "logits"


def open_runtime(path: Path | str, provider: str = "cpu", threads: int | None = None) -> Runtime:
    """Load an ONNX file on one of `export.edge.registry.RUNTIMES`; `threads` defaults to all cores.

    Raises `InputError` for a file that is no model, `MachineError` where this machine cannot run the provider.

        with open_runtime("model.onnx") as runtime:
            logits = answer(runtime, images)
    """
    return find_runtime(provider).open(Path(path), threads)


def open_engine(path: Path | str) -> Runtime:
    """Load an engine with its sidecar beside it, on the backend that built it.

    Raises `InputError` for a file that is none, or that another version made; `MachineError` where its backend or its
    GPU is not here.

        with open_engine("engine.tensorrt_rtx.sm89.plan") as runtime:
            logits = answer(runtime, images)
    """
    path = Path(path)
    name = read_spec(path).backend
    try:
        backend = find_engine_backend(name)
    except MachineError as error:
        raise MachineError(
            f"{str(path)!r} needs {name}, which is not installed: pip install {PACKAGES[name]}."
        ) from error
    return backend.open(path)


def require_provider(provider: str) -> None:
    """Raises `InputError` for a name that is none of `export.edge.registry.RUNTIMES`, `MachineError` where it does not
    start here."""
    find_runtime(provider).check()


def answer(runtime: Runtime, images: npt.ArrayLike) -> Array:
    """Logits [M, classes] of `images` [M, ...], in batches that the model takes: what is too short for its smallest is
    filled up with the last picture.

    The model's input may have any name, and so may its output where there is one alone. Raises `InputError` where
    there are several of either.

        logits = answer(runtime, images)
    """
    images = np.asarray(images)
    (name,), output = _only(tuple(runtime.inputs), "inputs", runtime), _logits(runtime)
    smallest, largest = runtime.batches
    found = []
    for start in range(0, len(images), largest or len(images)):
        part = images[start : start + (largest or len(images))]
        missing = max(0, smallest - len(part))
        filled = np.concatenate([part, part[-1:].repeat(missing, 0)]) if missing else part
        found.append(runtime.run({name: filled})[output][: len(part)])
    return np.concatenate(found)


def random_feeds(runtime: Runtime, batch: int) -> dict[str, Array]:
    """A batch for every input, the same at every call; sizes that are fixed stay as they are."""
    random = np.random.default_rng(0)
    feeds: dict[str, Array] = {}
    for name, shape in runtime.inputs.items():
        sizes = [batch if size is None else size for size in shape]
        if runtime.dtypes[name] == np.uint8:
            feeds[name] = random.integers(0, 256, sizes, np.uint8)
        else:
            feeds[name] = random.standard_normal(sizes, np.float32).astype(runtime.dtypes[name])
    return feeds


def _logits(runtime: Runtime) -> str:
    return LOGITS if LOGITS in runtime.outputs else _only(runtime.outputs, "outputs", runtime)[0]


def _only(names: tuple[str, ...], what: str, runtime: Runtime) -> tuple[str, ...]:
    if len(names) != 1:
        raise InputError(
            f"the model of {runtime.provider} has the {what} {', '.join(names)}: give one with a single picture input, "
            f"and one output or one that is called {LOGITS!r}."
        )
    return names
