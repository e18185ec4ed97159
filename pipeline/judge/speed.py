"""How fast files are: ONNX models on ONNX Runtime, and an engine beside the FP16 engine of the float model."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path

from export.edge.build import build_float_engine
from export.edge.latency import Latency, measure_latency, ratio_interval, time_in_turn
from export.edge.runtime import Runtime, open_engine
from inversion.errors import PatchRebirthError
from pipeline.record.proof import Engine, EngineLatencyRow, LatencyRow, Times

LATENCY_BATCHES = (1, 8)
LATENCY_SECONDS = 8.0
"""For each batch; benchmarks/runtimes.py takes longer."""
ENGINE_RUNS, ENGINE_WARM_UP = 400, 50
"""Of each engine at each batch: so many tell a ratio to about a tenth of the spread of single runs."""


def onnx_rows(float32: Path, quantized: Path, provider: str, only: int | None) -> tuple[LatencyRow, ...]:
    """Both models, timed in turn at each of `LATENCY_BATCHES` or, of a model that takes no other, at batch `only`."""
    models = {"float": float32, "quantized": quantized}
    rows = []
    for batch in (only,) if only else LATENCY_BATCHES:
        found = measure_latency(models, batch, provider=provider, budget_s=LATENCY_SECONDS)
        plain, integer = _times(found["float"]), _times(found["quantized"])
        rows.append(LatencyRow(batch, plain, integer, integer.median_ms / plain.median_ms))
    return tuple(rows)


@dataclass(frozen=True)
class BesideFloat:
    """An engine's times beside FP16's; or none, and a sentence that says why."""

    rows: tuple[EngineLatencyRow, ...] = ()
    warning: str | None = None


def engine_rows(session: Runtime, engine: Engine, float32: Path) -> BesideFloat:
    """The open engine and the FP16 engine of the graph `float32`, which is built for this, in turn at the smallest, the
    optimal and the largest batch of the profile."""
    (given,) = engine.inputs
    batches = (given.min[0], given.opt[0], given.max[0])
    with tempfile.TemporaryDirectory() as folder:
        try:
            path = build_float_engine(float32, Path(folder), engine.arch, engine.backend, batches)
            with open_engine(path) as plain:
                return BesideFloat(tuple(_row(session, plain, batch) for batch in sorted(set(batches))))
        except PatchRebirthError as error:
            return BesideFloat(warning=f"{engine.path} was not timed beside FP16's engine: {error}")


def _row(session: Runtime, plain: Runtime, batch: int) -> EngineLatencyRow:
    models = {"float16": plain, "quantized": session}
    found = time_in_turn(models, batch, runs=ENGINE_RUNS, warmup=ENGINE_WARM_UP, budget_s=LATENCY_SECONDS)
    ratio, interval = ratio_interval(found["quantized"], found["float16"])
    return EngineLatencyRow(batch, _times(found["float16"]), _times(found["quantized"]), ratio, interval)


def _times(latency: Latency) -> Times:
    return Times(latency.median_ms, latency.p95_ms)
