"""What a person reads at the end: the table fits 80 columns, the report and junit.xml say what the manifest says."""

import dataclasses
import io
import math
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from pipeline.record.manifest import Manifest, StageRecord, TeacherRecord
from pipeline.record.proof import (
    Answered,
    Counts,
    Engine,
    Fidelity,
    FloatProduct,
    Gate,
    Kernels,
    LatencyRow,
    ModelFile,
    OnKinds,
    OnnxRuntime,
    Runtimes,
    Times,
    Verdict,
)
from pipeline.show.display import Display, result_rows
from pipeline.show.itinerary import Itinerary, duration
from pipeline.show.junit import write_junit
from pipeline.show.report import write_report
from pipeline.show.summary import append_summary


def fidelity(n: int, agreement: float, kl: float = 0.0123, **more: Any) -> Fidelity:
    return Fidelity(n, agreement, (0.5, 1.0), kl, (0.0, None), None, 1.0, **more)


def on_kinds(kl: float = 0.0123) -> OnKinds:
    kinds = {"mosaics": fidelity(6, 1.0, kl), "leaves": fidelity(400, 1.0, kl)}
    return OnKinds(**vars(fidelity(406, 1.0, kl)), kinds=kinds)


def an_engine(kernels: Kernels, path: str) -> Engine:
    return Engine(
        path=path, backend="tensorrt_rtx", version="1.7", arch="sm89", compute_capability="8.9", inputs=(), outputs=(),
        onnx_sha256="0" * 64, sha256="0" * 64, bytes=6_495_316, build_seconds=1.37,
        kernels=dataclasses.replace(kernels, runtime="tensorrt_rtx 1.7 sm89"),
        build_command="tensorrt_rtx --onnx=m.onnx", time_command="tensorrt_rtx --loadEngine=e.plan", timing_cache=None,
        executed=False,
    )  # fmt: skip


def manifest(
    real: bool = True,
    engines: bool = True,
    passed: bool = True,
    path: str = "engine.tensorrt_rtx.sm89.plan",
    name: str = "deit_base",
) -> Manifest:
    reason = "the scheme leaves its inputs float"
    floats = (FloatProduct("blocks.0.attn/MatMul", False, False, "MatMul", False, reason),) * 24
    kernels = Kernels("ONNX Runtime 1.31", "its graph", 1.0, {}, Counts(50, 50), Counts(0, 24), floats)
    times = Times(6.078, 9.8)
    runtime = OnnxRuntime(
        "1.31", "cpu", True, ModelFile(2_758_244, 90_123_456), ModelFile(812_956, 90_123_456),
        tuple(LatencyRow(batch, times, times, 1.0) for batch in (1, 8)), 1.0, kernels,
    )  # fmt: skip
    verdict = Verdict(
        passed=passed,
        gates=(
            Gate("synthetic_kl", 0.01234, 0.5, True),
            Gate("real_agreement", 99.8, 75 if passed else 100, passed),
        ),
        synthetic=on_kinds(),
        real=fidelity(50_000, 0.998, teacher_top1=0.8180, top1=0.8036) if real else None,
        runtimes=Runtimes(runtime, (an_engine(kernels, path),) if engines else None),
        float32=Answered(on_kinds(kl=0.0), fidelity(50_000, 1.0, kl=0.0, top1=0.8180) if real else None),
        engine_graph=None,
        onnx_against_torch=None,
        layers=None,
    )
    warned = {"warnings": ["2 of 4 images are of one colour."]}
    return Manifest(
        recipe={"bits": "w4a8"},
        teacher=TeacherRecord(name, "0" * 64, 10, (3, 224, 224)),
        versions={"python": "3.11", "tensorrt": None},
        stages=(StageRecord("invert", "d" * 64, 1.0, False, (), warned),),
        validation=verdict,
    )


def printed(found: Manifest, width: int = 80) -> str:
    display, out = Display(quiet=True), io.StringIO()
    display.out = Console(file=out, width=width)
    display.results(found)
    return out.getvalue()


@pytest.mark.parametrize("real", [True, False])
def test_table_reads_well_at_80_columns(real: bool) -> None:
    """No line is wider than a terminal, nothing is cut short, every measure stands on one line of its own."""
    found = manifest(real)
    text = printed(found)
    assert max(map(len, text.splitlines())) <= 80
    assert "…" not in text
    for row in result_rows(found):
        (line,) = [line for line in text.splitlines() if f"│ {next(iter(row.values()))} " in line]
        assert all(value in line for value in row.values())


def test_rows_are_measures_and_columns_are_models() -> None:
    """Accuracy of both, agreement with its sample and interval, KL, size, latency."""
    rows = result_rows(manifest())
    assert all(list(row) == ["", "FP32 ONNX", "w4a8 ONNX"] for row in rows)
    assert {tuple(row.values()) for row in rows} >= {
        ("top-1, % of 50000 real", "81.80", "80.36"),
        ("agreement, % of 50000 real [95%]", "100.00", "99.80 [50.0, 100.0]"),
        ("agreement, % of 6 mosaics [95%]", "100.00", "100.00 [50.0, 100.0]"),
        ("KL, nats, mosaics", "0.0000", "0.0123"),
        ("file, MB", "2.76", "0.81"),
        ("peak memory, MB", "90", "90"),
        ("latency (p95), ms, batch 1", "6.08 (9.80)", "6.08 (9.80)"),
    }
    assert not [row for row in result_rows(manifest(real=False)) if "real" in row[""]]


def test_gates_and_engines_are_lines_that_can_be_searched() -> None:
    """Each on one line however long a path is; an engine that did not run is never called validated."""
    found = manifest(passed=False, path="engine." + "x" * 100 + "[/b].plan")
    lines = printed(found).splitlines()
    assert "gate synthetic_kl: 0.01234 (limit 0.5) passed" in lines
    assert "gate real_agreement: 99.8 (limit 100) FAILED" in lines
    assert f"engine engine.{'x' * 100}[/b].plan (6.5 MB): built, not executed" in lines
    assert "ONNX Runtime 1.31: integer kernels: 50 of 50 linears, 0 of 24 in attention" in lines
    assert "  blocks.0.attn/MatMul and 23 more: the scheme leaves its inputs float" in lines


def test_progress_takes_any_text(capfd: pytest.CaptureFixture[str]) -> None:
    """A path is printed as it is: brackets are no markup, long ones are not broken; --quiet drops it."""
    path = "runs/[/b][red]" + "x" * 200
    Display().say(path)
    Display(quiet=True).say(path)
    assert capfd.readouterr() == ("", path + "\n")


def test_progress_without_a_terminal_is_a_line_a_quarter(capfd: pytest.CaptureFixture[str]) -> None:
    """In a log file there are four lines a thing, not one an iteration; what is not told stays what it was."""
    with Display().progress() as progress:
        for done in range(401):
            progress("inversion", done, 400, 1.0 if done < 250 else math.nan)
        progress("basis", 1, 2, math.nan)
        progress("basis", 2, 2, 0.5)
    assert capfd.readouterr().err.splitlines() == [
        *(f"  inversion: {done}/400, loss 1.0000" for done in (100, 200, 300, 400)),
        "  basis: 1/2",
        "  basis: 2/2, rounding error 0.5000",
    ]


@pytest.mark.parametrize(("real", "engines"), [(True, True), (False, False)])
def test_report_says_what_the_manifest_says(real: bool, engines: bool, tmp_path: Path) -> None:
    """Without images, pictures or engines the page is whole too, and says so."""
    page = write_report(manifest(real, engines), tmp_path).read_text()
    assert "2 of 4 images are of one colour." in page
    assert '<span class="passed">passed</span>' in page
    assert ("50000 real pictures judged the result" in page) is real
    assert ("give some with <code>--val-data</code>" in page) is not real
    assert ("built, not executed" in page) is engines
    assert ("None was built" in page) is not engines
    assert "Synthetic pictures" not in page
    assert "tensorrt None" not in page
    for row in result_rows(manifest(real, engines)):
        first, *others = row.values()
        assert f'<th scope="row">{first}</th>' + "".join(f"<td>{value}</td>" for value in others) in page


def test_report_escapes_names(tmp_path: Path) -> None:
    """A name from outside is text, never markup."""
    found = manifest(name="<script>alert(1)</script>")
    assert "<script" not in write_report(found, tmp_path).read_text()


@pytest.mark.parametrize("passed", [True, False])
def test_junit_counts_failures(passed: bool, tmp_path: Path) -> None:
    """One test case a gate, with its value and its limit; what was judged stands in the properties."""
    write_junit(manifest(passed=passed), tmp_path / "j.xml")
    suite = ET.parse(tmp_path / "j.xml").getroot()
    assert (suite.tag, suite.get("tests"), suite.get("failures")) == ("testsuite", "2", "0" if passed else "1")
    assert [case.get("name") for case in suite.iter("testcase")] == ["synthetic_kl", "real_agreement"]
    limit = 75 if passed else 100
    assert [case.findtext("system-out") for case in suite.iter("testcase")] == [
        "value 0.01234, limit 0.5", f"value 99.8, limit {limit}",
    ]  # fmt: skip
    told = {each.get("name"): each.get("value") for each in suite.iter("property")}
    found = manifest(passed=passed)
    assert told["teacher"] == found.teacher.name
    assert told["bits"] == "w4a8"
    assert {told[f"digest.{stage.name}"] for stage in found.stages} == {stage.digest for stage in found.stages}
    assert suite.get("time") == f"{sum(stage.seconds for stage in found.stages):.3f}"
    failures = [failure.get("message") for failure in suite.iter("failure")]
    assert failures == ([] if passed else ["99.8 misses the limit 100"])


def test_a_summary_is_markdown(tmp_path: Path) -> None:
    """Headline, results and gates, those that failed first; what would be markup of its own is none."""
    append_summary(manifest(passed=False, name="a|<b>"), tmp_path / "s.md", tmp_path)
    lines = (tmp_path / "s.md").read_text().splitlines()
    assert lines[0] == "## a\\|&lt;b> to w4a8: failed: real_agreement"
    assert lines.index("| real_agreement | 99.8 | 100 | **failed** |") + 1 == lines.index(
        "| synthetic_kl | 0.01234 | 0.5 | passed |"
    )
    columns = {line.replace("\\|", "").count("|") for line in lines if line.startswith("|")}
    assert columns == {4, 5}


def test_what_is_left_follows_how_fast_it_went(capfd: pytest.CaptureFixture[str]) -> None:
    """A machine that takes twice as long for the first stage is expected to do so in the others; what is unchanged
    does not count, and nobody waits for less than nothing."""
    now = 0.0
    stages = Itinerary({"invert": 60, "quantize": 30, "export": 10}, lambda: now)
    stages.begin("invert")
    now = 20.0
    assert (stages.place, stages.left) == ("stage 1 of 3", 80)
    now = 120.0
    stages.begin("quantize")
    assert (stages.place, stages.left) == ("stage 2 of 3", 80)
    now = 500.0
    assert stages.left == 20
    display = Display()
    display.follow({"invert": 0, "quantize": 30})
    display.begins("quantize")
    assert capfd.readouterr().err == "stage 2 of 2: quantize; 30 seconds to the end\n"
    assert [duration(seconds) for seconds in (3, 200, 7200)] == ["3 seconds", "3.3 minutes", "2.0 hours"]
