"""Models timed in turn, random inputs of their types, memory of a process of its own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from export.edge.latency import (
    LEAST_RUNS,
    TURN_RUNS,
    _latency,
    measure_latency,
    peak_bytes,
    ratio_interval,
)
from export.edge.runtime import open_runtime, random_feeds
from export.graph import export_float
from inversion.errors import InputError
from tests.small import SPEC, Quantized, small_vit

Make = Callable[[str], Quantized]


def test_latency_of_models_in_turn(quantized: Make, float_path: Path) -> None:
    """Every model is timed the same number of times; median and p95 are of the samples."""
    found = measure_latency({"float": float_path, "int8": quantized("w8a8").path}, batch=2, threads=1, runs=5)
    assert list(found) == ["float", "int8"]
    for latency in found.values():
        assert latency.n == len(latency.samples_ms) == 5
        assert latency.median_ms == sorted(latency.samples_ms)[2]
        assert 0 < latency.median_ms <= latency.p95_ms <= max(latency.samples_ms)


def test_a_ratio_is_that_of_runs_in_turn() -> None:
    """Load that falls on both alike leaves it as it is; 95 of 100 intervals hold the true median, with few runs too."""
    rng, held = np.random.default_rng(0), 0
    for _ in range(400):
        load, noise = rng.lognormal(0, 1, 60), rng.lognormal(0, 0.1, 60)
        one, other = (_latency(list(values)) for values in (0.8 * load * noise, load))
        ratio, (low, high) = ratio_interval(one, other)
        assert low <= ratio <= high
        held += low <= 0.8 <= high
    assert 0.94 < held / 400 < 0.995
    assert ratio_interval(_latency([1.0, 4.0]), _latency([2.0, 2.0])) == (1.25, (0.5, 2.0))


def test_latency_of_nothing_is_refused(float_path: Path) -> None:
    """A batch or a number of runs below one is refused."""
    with pytest.raises(InputError, match="batch 0 and runs 30 must both be 1 or more"):
        measure_latency({"float": float_path}, batch=0)
    with pytest.raises(InputError, match="batch 1 and runs 0"):
        measure_latency({"float": float_path}, runs=0)


def test_a_budget_ends_the_timing_early(float_path: Path) -> None:
    """A slow model is not timed for minutes; the least number of runs is made all the same."""
    found = measure_latency({"float": float_path}, threads=1, runs=1000, budget_s=0)
    assert LEAST_RUNS <= found["float"].n <= TURN_RUNS


def test_random_inputs_have_the_models_types(float_path: Path, tmp_path: Path) -> None:
    """Floats are normal, bytes span 0 to 255; the batch is the one asked for."""
    export_float(small_vit(), SPEC, tmp_path / "bytes.onnx", {}, uint8_input=True)
    with open_runtime(float_path) as runtime:
        (value,) = random_feeds(runtime, 3).values()
        assert (value.dtype, value.shape) == (np.float32, (3, 1, 32, 32))
        assert value.min() < -2
    with open_runtime(tmp_path / "bytes.onnx") as runtime:
        (value,) = random_feeds(runtime, 2).values()
        assert (value.dtype, value.shape) == (np.uint8, (2, 32, 32, 1))
        assert value.max() > 200


def test_memory_is_the_models_not_the_callers(float_path: Path) -> None:
    """What this process holds is not counted: half a gigabyte more changes little."""
    before = peak_bytes(float_path)
    ballast = np.ones(64 * 2**20)
    after = peak_bytes(float_path)
    assert ballast.nbytes > 500e6
    assert before > 20e6
    assert abs(after - before) < 50e6
