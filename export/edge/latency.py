"""How fast models run, and in how much memory. Runs without torch."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from export.edge.alone import Alone, Turn
from export.edge.backend import Runtime
from export.edge.runtime import random_feeds
from inversion.errors import InputError

LEAST_RUNS = 5
TURN_RUNS, TURN_S = 10, 0.3
"""Runs of a turn at most, and the time that they take at most where one run does not take longer."""


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
    budget_s: float = 30.0,
) -> dict[str, Latency]:
    """Time ONNX files, each in a process of its own with its runtime's defaults, as `alone_in_turn` does.

    found = measure_latency({"float": "model.fp32.onnx", "quantized": "model.onnx"})
    print(found["quantized"].median_ms / found["float"].median_ms)
    """
    with contextlib.ExitStack() as stack:
        alone = {name: stack.enter_context(Alone(path, provider)) for name, path in models.items()}
        return alone_in_turn(alone, batch, threads=threads, runs=runs, budget_s=budget_s)


def alone_in_turn(
    models: Mapping[str, Alone], batch: int, *, threads: int | None = None, runs: int = 30, budget_s: float = 30.0
) -> dict[str, Latency]:
    """Time models in turn on the same random input, so that load falls on all alike.

    A turn is a run that is not counted, and as many as `TURN_S` has room for. After `budget_s` seconds no further round
    of turns begins, but `LEAST_RUNS` are made.
    """
    if batch < 1 or runs < 1:
        raise InputError(f"batch {batch} and runs {runs} must both be 1 or more.")
    slowest = max(model.take(Turn(batch, 1, threads))[0] for model in models.values())
    turn = Turn(batch, min(TURN_RUNS, runs, max(1, int(TURN_S * 1e3 / slowest))), threads)
    samples: dict[str, list[float]] = {name: [] for name in models}
    begun = time.perf_counter()
    for made in range(0, runs, turn.runs):
        if made >= LEAST_RUNS and time.perf_counter() - begun > budget_s:
            break
        for name, model in models.items():
            samples[name] += model.take(turn)
    return {name: _latency(times) for name, times in samples.items()}


def time_in_turn(
    models: Mapping[str, Runtime], batch: int, *, runs: int = 30, warmup: int = 3, budget_s: float = 30.0
) -> dict[str, Latency]:
    """Time loaded models in turn, one run of each a round, on the same random input: engines, whose GPU nothing else
    uses, without the copies to it and back. No further round begins after `budget_s` seconds, as in `alone_in_turn`."""
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


def peak_bytes(path: Path) -> int:
    """Largest resident memory of a process that loads `path` on the CPU and runs on one picture, in bytes."""
    with Alone(path) as model:
        model.take(Turn(batch=1, runs=0, threads=1))
        return model.peak_bytes


def _latency(times: list[float]) -> Latency:
    return Latency(float(np.median(times)), float(np.percentile(times, 95)), len(times), tuple(times))
