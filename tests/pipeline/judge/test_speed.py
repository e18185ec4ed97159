"""An engine beside the FP16 engine of the float model; the GPU and what runs on it are stand-ins here."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from calib.scheme import QuantScheme
from export.edge.backend import Array, Runtime
from inversion.errors import InputError
from pipeline.judge import speed
from pipeline.judge.speed import BesideFloat, engine_rows
from pipeline.recipe.recipe import Validation
from pipeline.record.gates import Measured, engine_latency
from pipeline.record.manifest import of_json, to_json
from pipeline.record.proof import Answered, Engine, ExecutedEngine, TensorRange, Verdict
from pipeline.show.display import engine_lines
from pipeline.show.report import write_report
from tests.pipeline.show.test_report import an_engine, manifest, on_kinds

FLOAT = Path("model.fp32.onnx")


def engine_of(batches: tuple[int, int, int]) -> Engine:
    given = TensorRange("input", "float32", *((batch, 1, 8, 8) for batch in batches))
    verdict = manifest().verdict
    return replace(an_engine(verdict.runtimes.onnxruntime.kernels, "engine.sm89.plan"), inputs=(given,))


class Stand(Runtime):
    """In for an engine's session: a run takes `seconds`."""

    def __init__(self, seconds: float) -> None:
        self.seconds, self.open, self.seen = seconds, True, set[int]()
        self.inputs, self.dtypes = {"input": (None, 1, 8, 8)}, {"input": np.dtype("float32")}

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        raise AssertionError(f"a run that copies its {len(feeds)} inputs is not what is timed")

    @contextmanager
    def ready(self, feeds: Mapping[str, Array]) -> Iterator[Callable[[], object]]:
        self.seen.add(len(feeds["input"]))
        yield lambda: time.sleep(self.seconds)

    def close(self) -> None:
        self.open = False


@pytest.fixture
def beside(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], BesideFloat]:
    """The rows of an engine that takes so many times what FP16's takes."""
    monkeypatch.setattr(speed, "ENGINE_RUNS", 20)
    monkeypatch.setattr(speed, "ENGINE_WARM_UP", 1)

    def measured(times: float) -> BesideFloat:
        plain, session = Stand(2e-3), Stand(times * 2e-3)

        def build(model: Path, folder: Path, *given: object) -> Path:
            assert (model, given) == (FLOAT, ("sm89", "tensorrt_rtx", (1, 2, 4)))
            return folder / "float16.plan"

        monkeypatch.setattr(speed, "build_float_engine", build)
        monkeypatch.setattr(speed, "open_engine", lambda _: plain)
        found = engine_rows(session, engine_of((1, 2, 4)), FLOAT)
        assert session.seen == plain.seen == {1, 2, 4}
        assert (plain.open, session.open) == (False, True)
        return found

    return measured


def executed(found: BesideFloat) -> ExecutedEngine:
    engine = engine_of((1, 2, 4))
    return ExecutedEngine.of(engine, engine.kernels, Answered(on_kinds(), None), found.rows)


@pytest.mark.parametrize(("times", "passes"), [(0.5, True), (2.0, False)])
def test_a_slower_engine_fails(beside: Callable[[float], BesideFloat], times: float, passes: bool) -> None:
    """At every batch of the profile, without the copies to the GPU; the gate tells the surely slowest."""
    found = beside(times)
    assert [row.batch for row in found.rows] == [1, 2, 4]
    assert found.warning is None
    for row in found.rows:
        assert row.ratio_interval[0] <= row.ratio <= row.ratio_interval[1]
        assert row.ratio == pytest.approx(times, rel=0.25)
    share = executed(found).surely_of_float16
    assert share == max(row.ratio_interval[0] for row in found.rows)
    limits = Validation().limits(QuantScheme.parse("w4a8"))
    (gate,) = engine_latency(Measured({}, engine_ratios={"_sm89": share}), limits)
    assert (gate.name, gate.limit, gate.passed) == ("engine_ratio_sm89", 1, passes)


def test_a_float_model_that_gives_no_engine_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    """Some weights are too large for FP16: then nothing is compared, and the verdict stands without that gate."""

    def refuse(*_: object) -> Path:
        raise InputError("'x' holds 1e+06, too much for float16: take float32.")

    monkeypatch.setattr(speed, "build_float_engine", refuse)
    found = engine_rows(Stand(0), engine_of((1, 1, 1)), FLOAT)
    assert found == BesideFloat((), "engine.sm89.plan was not timed beside FP16's engine: 'x' holds 1e+06, too much "
                                    "for float16: take float32.")  # fmt: skip
    assert executed(found).surely_of_float16 is None


def test_times_are_told_wherever_engines_are(beside: Callable[[float], BesideFloat], tmp_path: Path) -> None:
    """A line a batch on screen, a plot in the report; and they are read from the manifest again."""
    ran = executed(beside(0.5))
    found = manifest()
    runtimes = replace(found.verdict.runtimes, tensorrt=(ran,))
    found = replace(found, validation=replace(found.verdict, runtimes=runtimes))
    _, *lines = engine_lines(found.verdict.runtimes)
    assert [line.split(":")[0] for line in lines] == ["  batch 1", "  batch 2", "  batch 4"]
    row = ran.latency[0]
    assert lines[0].endswith(f"ratio {row.ratio:.2f} [{row.ratio_interval[0]:.2f}, {row.ratio_interval[1]:.2f}]")
    page = " ".join(write_report(found, tmp_path).read_text().split())
    for each in ran.latency:
        assert f"batch {each.batch}</strong> On its GPU: {each.ratio:.2f} of the FP16 engine" in page
        assert f"<td>{each.float16.median_ms:.2f} ms (p95 {each.float16.p95_ms:.2f})</td>" in page
    told = of_json(Verdict, json.loads(json.dumps(to_json(found.verdict))))
    assert told is not None
    assert told.runtimes.engines == (ran,)
