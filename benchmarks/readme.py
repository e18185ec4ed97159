"""Copy the tables of README.md and docs/ from the newest records.

    python benchmarks/readme.py

Between `<!-- record: NAME -->` and `<!-- end -->` stands what the newest `*_NAME.json` says; between `<!-- cost -->`
and `<!-- end -->` what a run takes, from those of `COSTS`.
"""

from __future__ import annotations

import json
import re
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pipeline.record.manifest import of_json
from pipeline.record.proof import Counts, Engine, Verdict

RECORDS = Path(__file__).parent / "records"
ROOT = Path(__file__).parent.parent
PAGES = (
    ROOT / "README.md",
    *(ROOT / "docs" / name for name in ("install.md", "results.md", "limits.md", "reproduction.md")),
)
WIDTH = 120
MARKED = re.compile(r"<!-- (record: (\w+)|cost) -->\n.*?<!-- end -->", re.DOTALL)
COSTS = {
    "demo": "`digits_vit`, all stages",
    "deit_tiny_w4a8_quick": "DeiT-Tiny, all stages",
    "quantize_time_deit_small_w4a8": "DeiT-Small, `quantize` alone",
    "quantize_time_deit_base_w4a8": "DeiT-Base, `quantize` alone",
}
"""Records of w4a8 by `--effort quick`, and what each of them timed."""


def main() -> None:
    for page in PAGES:
        page.write_text(filled(page.read_text()))


def filled(text: str) -> str:
    """`text` with every marked table made again from its record."""

    def fill(match: re.Match[str]) -> str:
        table = _table(match[2]) if match[2] else _costs()
        return f"<!-- {match[1]} -->\n{table}\n<!-- end -->"

    return MARKED.sub(fill, text)


def _newest(name: str) -> Path:
    return max(RECORDS.glob(f"????-??-??_{name}.json"))


def _table(name: str) -> str:
    path = _newest(name)
    record = json.loads(path.read_text())
    if "markdown" in record:
        return f"{record['markdown']}\n\nRecord: `benchmarks/records/{path.name}`."
    kind = _students if "runs" in record else _speed if "rows" in record else _run
    rows, about = kind(record)
    return f"{_rows(rows)}\n\n{_lines(f'{about} Record: `benchmarks/records/{path.name}`.')}"


def _rows(rows: list[tuple[str, ...]]) -> str:
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def _lines(text: str) -> str:
    """`text` in lines of a page's width."""
    return textwrap.fill(text, WIDTH, break_long_words=False, break_on_hyphens=False)


def _costs() -> str:
    """Minutes and memory of w4a8, a teacher a row."""
    rows: list[tuple[str, ...]] = [("w4a8, `--effort quick`", "minutes", "peak memory"), ("---", "---:", "---:")]
    records = {name: json.loads(_newest(name).read_text()) for name in COSTS}
    for name, record in records.items():
        seconds, peak = record["seconds"], record.get("peak_bytes")
        minutes = (sum(seconds.values()) if isinstance(seconds, dict) else seconds) / 60
        rows.append((COSTS[name], f"{minutes:.1f}", f"{peak / 1e9:.1f} GB" if peak else "not measured"))
    (machine,) = {record["machine"] for record in records.values()}
    named = ", ".join(f"`{name}`" for name in COSTS)
    return f"{_rows(rows)}\n\n{_lines(f'{machine}. Records: {named}.')}"


def _speed(record: dict[str, Any]) -> tuple[list[tuple[str, ...]], str]:
    """The bench of inversion: each method beside the paper's own ratios."""
    rows: list[tuple[str, ...]] = [
        ("method", "iterations/s", "against DMI", "the paper's", "GFLOP an iteration", "of the matrix-product rate"),
        ("---", *["---:"] * 5),
    ]
    rows += [
        (
            row["name"], f"{row['iterations_per_s']:.2f}", f"{row['speedup_over_dmi']:.1f} x",
            f"{row['paper_speedup_over_dmi']:.1f} x", f"{row['flops_per_iteration'] / 1e9:.0f}",
            f"{100 * row['share_of_matmul_rate']:.0f}%",
        )
        for row in record["rows"]
    ]  # fmt: skip
    machine = f"{record['machine']}, {record['rounds']} rounds."
    return rows, f"{record['images']} images an iteration, {record['precision']}, {machine}"


def _run(record: dict[str, Any]) -> tuple[list[tuple[str, ...]], str]:
    """A finished build: the quantized model beside the float one."""
    verdict = of_json(Verdict, record["validation"])
    assert verdict is not None
    real, runtime, engines = verdict.real, verdict.runtimes.onnxruntime, verdict.runtimes.engines
    assert real is not None
    low, high = real.agreement_interval
    engine = ", ".join(f"{e.backend} {e.arch} {e.bytes / 1e6:.1f} MB, {_status(e)}" for e in engines)
    rows = [
        ("", "FP32", record["recipe"]["bits"]),
        ("---", "---:", "---:"),
        (f"top-1, {real.n} real pictures", _percent(real.teacher_top1), _percent(real.top1)),
        (
            "agreement with the teacher (95% interval)",
            "",
            f"{_percent(real.agreement)} ({_percent(low)} to {_percent(high)})",
        ),
        ("KL to the teacher", "", f"{real.kl:.4f}"),
        ("ONNX file, MB", *(f"{model.bytes / 1e6:.2f}" for model in (runtime.float32, runtime.quantized))),
        *_latencies(verdict),
        ("linears on integer kernels, ONNX Runtime", "", _of(runtime.kernels.linears)),
        *((f"the same, {e.backend} {e.arch}", "", _of(e.kernels.linears)) for e in engines),
    ]
    minutes = sum(record["seconds"].values()) / 60
    about = f"{record['machine']}, ONNX Runtime {runtime.version}, {minutes:.1f} minutes in its stages."
    return rows, " ".join([f"{about} Engine: {engine}.", *([record["note"]] if "note" in record else [])])


def _latencies(verdict: Verdict) -> Iterator[tuple[str, ...]]:
    """Each way on a CPU beside the float model on ONNX Runtime."""
    ways = {"ONNX Runtime": verdict.runtimes.onnxruntime.latency}
    ways |= {way.in_words: way.latency for way in verdict.runtimes.others}
    for name, rows in ways.items():
        for row in rows:
            told = f"latency on {name}, {row.where}, FP32 on ONNX Runtime = 1"
            yield told, "1.00", f"{row.ratio:.2f}"


def _students(record: dict[str, Any]) -> tuple[list[tuple[str, ...]], str]:
    """Distillations side by side: what each came to, and after how long."""
    rows: list[tuple[str, ...]] = [
        ("student", "updates", "minutes", "top-1 of real pictures", "KL to the teacher"),
        ("---", *["---:"] * 4),
    ]
    for name, run in record["runs"].items():
        last = run["curve"][-1]
        minutes, top1 = f"{run['seconds'] / 60:.1f}", f"{100 * last['top1']:.1f}%"
        rows.append((name, str(run["batches"]), minutes, top1, f"{last['real_kl']:.3f}"))
    return rows, f"{record['machine']}."


def _of(counts: Counts) -> str:
    return f"{counts.integer} of {counts.all}"


def _percent(share: float | None) -> str:
    assert share is not None
    return f"{100 * share:.1f}%"


def _status(engine: Engine) -> str:
    return "executed" if engine.executed else "built, not executed"


if __name__ == "__main__":
    main()
