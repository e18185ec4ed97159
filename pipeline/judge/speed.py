"""How fast files are: ONNX models on ONNX Runtime, and an engine beside the FP16 engine of the float model."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from export.edge.alone import Alone, Turn
from export.edge.build import build_float_engine
from export.edge.latency import Latency, alone_in_turn, ratio_interval, time_in_turn
from export.edge.registry import OPENVINO
from export.edge.runtime import Runtime, open_engine
from inversion.errors import PatchRebirthError
from pipeline.record.gates import FLOAT, ONNX
from pipeline.record.proof import Engine, EngineLatencyRow, Kernels, LatencyRow, ModelFile, OnnxRuntime, Times

LATENCY_BATCHES = (1, 8)
THREADS = (1, 2)
"""Of a CPU."""
ON_CPU = ("cpu", OPENVINO)
LATENCY_SECONDS = 4.0
"""For each batch and number of threads; benchmarks/cpu.py takes longer."""
ENGINE_RUNS, ENGINE_WARM_UP, ENGINE_SECONDS = 400, 50, 8.0
"""Of each engine at each batch: so many tell a ratio to about a tenth of the spread of single runs."""


@dataclass(frozen=True)
class Placed:
    """An ONNX file and what runs it, one of `export.edge.registry.RUNTIMES`."""

    path: Path
    provider: str = "cpu"


@dataclass(frozen=True)
class Speed:
    """Models by name: `latency` at each batch and number of threads (None: no CPU runs them), and `peak_bytes` of
    memory on one picture and thread."""

    latency: Mapping[tuple[int, int | None], Mapping[str, Latency]]
    peak_bytes: Mapping[str, int]

    def rows(self, quantized: str, float32: str) -> tuple[LatencyRow, ...]:
        """One of them beside the other."""
        rows = []
        for (batch, threads), found in self.latency.items():
            plain, integer = _times(found[float32]), _times(found[quantized])
            rows.append(LatencyRow(batch, plain, integer, integer.median_ms / plain.median_ms, threads))
        return tuple(rows)

    def model_file(self, name: str, path: Path) -> ModelFile:
        """The size of `path`, and the memory of the model of that name."""
        return ModelFile(path.stat().st_size, self.peak_bytes[name])


def onnx_speed(models: Mapping[str, Placed], only: int | None) -> Speed:
    """All models in turn, each in a process of its own: on a CPU with each of `THREADS` that it has, at each of
    `LATENCY_BATCHES` or, of models that take no other, at batch `only`."""
    on_cpu = all(model.provider in ON_CPU for model in models.values())
    cores = os.cpu_count() or 1
    threads = [each for each in THREADS if each <= cores] if on_cpu else [None]
    batches = (only,) if only else LATENCY_BATCHES
    with ExitStack() as stack:
        alone = {name: stack.enter_context(Alone(model.path, model.provider)) for name, model in models.items()}
        for model in alone.values():
            model.take(Turn(batches[0], runs=0, threads=threads[0]))
        peak_bytes, latency = {name: model.peak_bytes for name, model in alone.items()}, {}
        for number in threads:
            for batch in batches:
                # all that there are is what a runtime takes by itself
                asked = None if number == cores else number
                latency[batch, number] = alone_in_turn(alone, batch, threads=asked, budget_s=LATENCY_SECONDS)
        return Speed(latency, peak_bytes)


def runtime_of(session: Runtime, models: Mapping[str, Placed], speed: Speed, kernels: Kernels) -> OnnxRuntime:
    """ONNX Runtime, open as `session`, with sizes, peak memory and latency of the models `FLOAT` and `ONNX`."""
    float32, quantized = (speed.model_file(name, models[name].path) for name in (FLOAT, ONNX))
    rows = speed.rows(ONNX, FLOAT)
    ratio = next(row.ratio for row in reversed(rows) if row.batch == rows[0].batch)  # with all threads
    return OnnxRuntime(session.version, session.provider, True, float32, quantized, rows, ratio, kernels)


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
    found = time_in_turn(models, batch, runs=ENGINE_RUNS, warmup=ENGINE_WARM_UP, budget_s=ENGINE_SECONDS)
    ratio, interval = ratio_interval(found["quantized"], found["float16"])
    return EngineLatencyRow(batch, _times(found["float16"]), _times(found["quantized"]), ratio, interval)


def _times(latency: Latency) -> Times:
    return Times(latency.median_ms, latency.p95_ms)
