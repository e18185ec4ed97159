"""ONNX Runtime sessions and their latency. Runs without torch: an edge device infers with it."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnxruntime

from inversion.errors import InputError, MachineError

PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
WARNING, FATAL = 2, 4  # what ONNX Runtime prints by default; all it may print here, since errors are exceptions

EXACT = {
    # x86 without VNNI adds two products of 8 bits in 16 and saturates: wrong logits, unless weights become unsigned
    "session.x64quantprecision": "1",
    # 1 is float32: by default, inputs that the scheme leaves float would be rounded to 8 bits for integer weights
    "session.qdq_matmulnbits_accuracy_level": "1",
}
"""Session settings without which ONNX Runtime's integer products are not the model's."""

Array = npt.NDArray[np.float32]


class Session:
    """An ONNX file, loaded. `provider` is the one that really runs it; `inputs` are names and sizes, batch None."""

    def __init__(self, session: onnxruntime.InferenceSession) -> None:
        self._session = session
        self.provider: str = session.get_providers()[0]
        self.version: str = onnxruntime.__version__
        self.inputs: dict[str, tuple[int | None, ...]] = {
            value.name: tuple(size if isinstance(size, int) else None for size in value.shape)
            for value in session.get_inputs()
        }

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Every output by name. Raises `InputError` where `feeds` do not fit the model's inputs."""
        names = [value.name for value in self._session.get_outputs()]
        try:
            return dict(zip(names, self._session.run(names, dict(feeds)), strict=True))
        except (ValueError, onnxruntime.capi.onnxruntime_pybind11_state.InvalidArgument) as error:
            given = {name: f"{value.dtype} {list(value.shape)}" for name, value in feeds.items()}
            raise InputError(f"the model takes {self.inputs} and was given {given}: {_first_line(error)}.") from error


@dataclass(frozen=True)
class Latency:
    """Time of one run of the whole batch in milliseconds, over `n` runs."""

    median_ms: float
    p95_ms: float
    n: int
    samples_ms: tuple[float, ...]


@contextlib.contextmanager
def open_runtime(path: Path, provider: str = "cpu", threads: int | None = None) -> Iterator[Session]:
    """Load an ONNX file on "cpu" or "cuda"; `threads` defaults to all cores.

    Raises `InputError` for a file that is no model, `MachineError` where this machine cannot run the provider.
    """
    path = Path(path)
    if provider not in PROVIDERS:
        raise InputError(f"unknown provider {provider!r}: take {' or '.join(PROVIDERS)}.")
    if not path.is_file():
        raise InputError(f"{str(path)!r} does not exist: give an ONNX file, as `pipeline export` writes it.")
    wanted = PROVIDERS[provider]
    if wanted not in onnxruntime.get_available_providers():
        raise MachineError(f"this ONNX Runtime has no provider {provider!r}: install onnxruntime-gpu, or use cpu.")
    if provider == "cuda":
        onnxruntime.preload_dlls()
    session = _load(path, wanted, threads)
    if session.get_providers()[0] != wanted:  # ONNX Runtime falls back to the CPU without a word
        raise MachineError(f"the provider {provider!r} did not start here: run `pipeline doctor`, or use cpu.")
    yield Session(session)


def measure_latency(
    sessions: Mapping[str, Path],
    batch: int = 1,
    *,
    provider: str = "cpu",
    threads: int | None = None,
    runs: int = 30,
    warmup: int = 3,
    seed: int = 0,
) -> dict[str, Latency]:
    """Time models in turn, one run of each a round, on the same random input, so that load falls on all alike."""
    if batch < 1 or runs < 1:
        raise InputError(f"batch {batch} and runs {runs} must both be 1 or more.")
    random = np.random.default_rng(seed)
    samples: dict[str, list[float]] = {name: [] for name in sessions}
    with contextlib.ExitStack() as stack:
        loaded = {name: stack.enter_context(open_runtime(path, provider, threads)) for name, path in sessions.items()}
        feeds = {name: _random_feeds(session, batch, random) for name, session in loaded.items()}
        for _ in range(warmup + runs):
            for name, session in loaded.items():
                started = time.perf_counter()
                session.run(feeds[name])
                samples[name].append((time.perf_counter() - started) * 1e3)
    return {name: _latency(times[warmup:]) for name, times in samples.items()}


def _load(path: Path, provider: str, threads: int | None) -> onnxruntime.InferenceSession:
    onnxruntime.set_default_logger_severity(FATAL)
    # ONNX Runtime raises a different class for every way a file can be wrong
    try:
        return onnxruntime.InferenceSession(str(path), _options(threads), providers=[provider])
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
    for key, value in EXACT.items():
        options.add_session_config_entry(key, value)
    # threads that spin on after a run would slow the model that is timed next
    options.add_session_config_entry("session.force_spinning_stop", "1")
    return options


def _random_feeds(session: Session, batch: int, random: np.random.Generator) -> dict[str, Array]:
    shapes = {name: [batch if size is None else size for size in shape] for name, shape in session.inputs.items()}
    return {name: random.standard_normal(shape, dtype=np.float32) for name, shape in shapes.items()}


def _latency(times: list[float]) -> Latency:
    return Latency(float(np.median(times)), float(np.percentile(times, 95)), len(times), tuple(times))


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(". ")[:300]
