"""ONNX Runtime sessions. Runs without torch: an edge device infers with it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import onnxruntime

from export.edge.exactness import exact_settings, largest_products
from export.edge.files import require_own_data
from export.edge.profile import PROVIDERS
from inversion.errors import InputError, MachineError

DTYPES = {"tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(uint8)": np.uint8}
LOGITS = "logits"
WARNING, FATAL = 2, 4  # what ONNX Runtime prints by default; all it may print here, since errors are exceptions

Array = npt.NDArray[Any]


class Runtime(Protocol):
    """A model that is loaded and runs: an ONNX file here, a TensorRT engine in `export.edge.engine_session`.

    `provider` is what really runs it, `version` its version; `inputs` are names and sizes, None for a size that may
    vary; `dtypes` the inputs' types; `outputs` names; `batches` the smallest and largest batch, None where any may be.
    """

    provider: str
    version: str
    inputs: dict[str, tuple[int | None, ...]]
    dtypes: dict[str, np.dtype[Any]]
    outputs: tuple[str, ...]
    batches: tuple[int, int | None]

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Every output by name. Raises `InputError` where `feeds` do not fit the model's inputs."""


class Session:
    """A `Runtime` of ONNX Runtime."""

    def __init__(self, session: onnxruntime.InferenceSession) -> None:
        self._session = session
        self.provider: str = session.get_providers()[0]
        self.version: str = onnxruntime.__version__
        self.inputs: dict[str, tuple[int | None, ...]] = {
            value.name: tuple(size if isinstance(size, int) else None for size in value.shape)
            for value in session.get_inputs()
        }
        for value in session.get_inputs():
            if value.type not in DTYPES:
                raise InputError(f"input {value.name!r} is {value.type}: give a model that takes {', '.join(DTYPES)}.")
        self.dtypes = {value.name: np.dtype(DTYPES[value.type]) for value in session.get_inputs()}
        self.outputs = tuple(value.name for value in session.get_outputs())
        fixed = next((shape[0] for shape in self.inputs.values() if shape and shape[0]), None)
        self.batches: tuple[int, int | None] = (fixed or 1, fixed)

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Every output by name. Raises `InputError` where `feeds` do not fit the model's inputs."""
        names = [value.name for value in self._session.get_outputs()]
        try:
            return dict(zip(names, self._session.run(names, dict(feeds)), strict=True))
        except (ValueError, onnxruntime.capi.onnxruntime_pybind11_state.InvalidArgument) as error:
            given = {name: f"{value.dtype} {list(value.shape)}" for name, value in feeds.items()}
            raise InputError(f"the model takes {self.inputs} and was given {given}: {_first_line(error)}.") from error


def answer(runtime: Runtime, images: Array) -> Array:
    """Logits [M, classes] of `images` [M, ...], in batches that the model takes: what is too short for its smallest is
    filled up with the last picture.

    The model's input may have any name, and so may its output where there is one alone. Raises `InputError` where
    there are several of either.
    """
    (name,), output = _only(tuple(runtime.inputs), "inputs", runtime), _logits(runtime)
    smallest, largest = runtime.batches
    found = []
    for start in range(0, len(images), largest or len(images)):
        part = images[start : start + (largest or len(images))]
        missing = max(0, smallest - len(part))
        filled = np.concatenate([part, part[-1:].repeat(missing, 0)]) if missing else part
        found.append(runtime.run({name: filled})[output][: len(part)])
    return np.concatenate(found)


def _logits(runtime: Runtime) -> str:
    return LOGITS if LOGITS in runtime.outputs else _only(runtime.outputs, "outputs", runtime)[0]


def _only(names: tuple[str, ...], what: str, runtime: Runtime) -> tuple[str, ...]:
    if len(names) != 1:
        raise InputError(
            f"the model of {runtime.provider} has the {what} {', '.join(names)}: give one with a single picture input, "
            f"and one output or one that is called {LOGITS!r}."
        )
    return names


@contextlib.contextmanager
def open_runtime(path: Path, provider: str = "cpu", threads: int | None = None) -> Iterator[Session]:
    """Load an ONNX file on one of `PROVIDERS`; `threads` defaults to all cores.

    Raises `InputError` for a file that is no model, `MachineError` where this machine cannot run the provider.
    """
    yield load_session(path, provider, threads)


def load_session(
    path: Path, provider: str = "cpu", threads: int | None = None, optimised: Path | None = None
) -> Session:
    """As `open_runtime`; the graph that ONNX Runtime made of the file is written to `optimised`."""
    path = Path(path)
    require_provider(provider)
    require_own_data(path)
    wanted = PROVIDERS[provider]
    if provider != "cpu":
        onnxruntime.preload_dlls()
    options = _options(threads)
    if optimised:
        options.optimized_model_filepath = str(optimised)
    session = _load(path, wanted, options)
    if session.get_providers()[0] != wanted:  # ONNX Runtime falls back to the CPU without a word
        raise MachineError(f"the provider {provider!r} did not start here: run `pipeline doctor`, or use cpu.")
    return Session(session)


def require_provider(provider: str) -> None:
    """Raises `InputError` for a name that is none of `PROVIDERS`, `MachineError` where ONNX Runtime is without it."""
    if provider not in PROVIDERS:
        raise InputError(f"unknown provider {provider!r}: take one of {', '.join(PROVIDERS)}.")
    if PROVIDERS[provider] not in onnxruntime.get_available_providers():
        raise MachineError(f"this ONNX Runtime has no provider {provider!r}: install one that has it, or use cpu.")
    if provider != "cpu":
        _start(provider)


def _start(provider: str) -> None:
    """A small model on the provider: one that is built in still lacks its GPU or its libraries on most machines."""
    onnxruntime.preload_dlls()
    onnxruntime.set_default_logger_severity(FATAL)
    wanted, found = PROVIDERS[provider], ""
    # ONNX Runtime raises a different class for every way a provider can fail
    try:
        options = onnxruntime.SessionOptions()
        options.log_severity_level = FATAL
        session = onnxruntime.InferenceSession(largest_products(), options, providers=[wanted], enable_fallback=0)
        found = session.get_providers()[0]
    except Exception as error:
        raise MachineError(
            f"the provider {provider!r} did not start here ({_first_line(error)}): run `pipeline doctor`, or use cpu."
        ) from error
    finally:
        onnxruntime.set_default_logger_severity(WARNING)
    if found != wanted:
        raise MachineError(f"the provider {provider!r} did not start here: run `pipeline doctor`, or use cpu.")


def _load(path: Path, provider: str, options: onnxruntime.SessionOptions) -> onnxruntime.InferenceSession:
    onnxruntime.set_default_logger_severity(FATAL)
    # ONNX Runtime raises a different class for every way a file can be wrong
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=[provider], enable_fallback=0)
    except Exception as error:
        raise InputError(
            f"{str(path)!r} is not a model that ONNX Runtime can load ({_first_line(error)}): "
            "make one with `pipeline export`."
        ) from error
    finally:
        onnxruntime.set_default_logger_severity(WARNING)


def _options(threads: int | None) -> onnxruntime.SessionOptions:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = FATAL
    if threads is not None:
        options.intra_op_num_threads = threads
    for key, value in exact_settings().items():
        options.add_session_config_entry(key, value)
    # threads that spin on after a run would slow the model that is timed next
    options.add_session_config_entry("session.force_spinning_stop", "1")
    return options


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(". ")[:300]
