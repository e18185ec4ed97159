"""How fast models run, and in how much memory. Runs without torch."""

from __future__ import annotations

import contextlib
import math
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from export.edge.runtime import Array, Runtime, open_runtime
from inversion.errors import InputError

LEAST_RUNS = 5


@dataclass(frozen=True)
class Latency:
    """Time of one run of the whole batch in milliseconds, over `n` runs."""

    median_ms: float
    p95_ms: float
    n: int
    samples_ms: tuple[float, ...]


def measure_latency(
    models: Mapping[str, Path | str],
    batch: int = 1,
    *,
    provider: str = "cpu",
    threads: int | None = None,
    runs: int = 30,
    warmup: int = 3,
    budget_s: float = 30.0,
) -> dict[str, Latency]:
    """Time ONNX files in turn, one run of each a round, on the same random input, so that load falls on all alike.

    After `budget_s` seconds no further round begins, but `LEAST_RUNS` are made.

        found = measure_latency({"float": "model.fp32.onnx", "quantized": "model.onnx"})
        print(found["quantized"].median_ms / found["float"].median_ms)
    """
    if batch < 1 or runs < 1:
        raise InputError(f"batch {batch} and runs {runs} must both be 1 or more.")
    with contextlib.ExitStack() as stack:
        loaded = {name: stack.enter_context(open_runtime(path, provider, threads)) for name, path in models.items()}
        return time_in_turn(loaded, batch, runs=runs, warmup=warmup, budget_s=budget_s)


def time_in_turn(
    models: Mapping[str, Runtime], batch: int, *, runs: int = 30, warmup: int = 3, budget_s: float = 30.0
) -> dict[str, Latency]:
    """The same of models that are loaded; of an engine without the copies to its GPU and back."""
    samples: dict[str, list[float]] = {name: [] for name in models}
    with contextlib.ExitStack() as stack:
        ready = {
            name: stack.enter_context(runtime.ready(random_feeds(runtime, batch))) for name, runtime in models.items()
        }
        begun = time.perf_counter()
        for made in range(warmup + runs):
            if made >= warmup + LEAST_RUNS and time.perf_counter() - begun > budget_s:
                break
            for name, execute in ready.items():
                started = time.perf_counter()
                execute()
                samples[name].append((time.perf_counter() - started) * 1e3)
    return {name: _latency(times[warmup:]) for name, times in samples.items()}


def ratio_interval(one: Latency, other: Latency) -> tuple[float, tuple[float, float]]:
    """Median of the ratios of `one` to `other`, run by run as they were timed in turn, and its 95% interval, which
    asks nothing of how times are spread: the ranks between which a median lies."""
    ratios = np.sort(np.divide(one.samples_ms, other.samples_ms))
    count = len(ratios)
    low = max(0, math.floor(count / 2 - 0.98 * math.sqrt(count)) - 1)
    return float(np.median(ratios)), (float(ratios[low]), float(ratios[count - 1 - low]))


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


def peak_bytes(path: Path) -> int:
    """Largest resident memory of a process that loads `path` on the CPU and runs on one picture, in bytes."""
    command = [sys.executable, "-c", PEAK, str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return int(done.stdout)


# a child's ru_maxrss starts at its parent's memory on Linux, VmHWM does not
PEAK = """
import resource, sys
from pathlib import Path
from export.edge.latency import random_feeds
from export.edge.runtime import open_runtime
with open_runtime(Path(sys.argv[1]), threads=1) as runtime:
    runtime.run(random_feeds(runtime, 1))
status = Path("/proc/self/status")
if status.exists():
    kilobytes = next(line.split()[1] for line in status.read_text().splitlines() if line.startswith("VmHWM"))
    print(1024 * int(kilobytes))
else:
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def _latency(times: list[float]) -> Latency:
    return Latency(float(np.median(times)), float(np.percentile(times, 95)), len(times), tuple(times))
