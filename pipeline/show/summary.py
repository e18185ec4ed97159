"""A verdict as Markdown, as CI systems show it beside a job."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from pipeline.record.manifest import Manifest
from pipeline.show.display import result_rows


def append_summary(manifest: Manifest, path: Path, folder: Path | None = None) -> None:
    """Put the verdict behind what `path` holds already: a job's steps write into one file."""
    with path.open("a", encoding="utf-8") as file:
        file.write("\n".join(summary_lines(manifest, folder)) + "\n\n")


def summary_lines(manifest: Manifest, folder: Path | None = None) -> list[str]:
    """Headline, results, gates, and where the run lies; the gates that failed stand first."""
    verdict = manifest.verdict
    failed = [gate.name for gate in verdict.gates if not gate]
    said = f"failed: {', '.join(failed)}" if failed else "passed"
    rows = result_rows(manifest)
    lines = [f"## {_cell(manifest.teacher.name)} to {_cell(manifest.bits)}: {said}", ""]
    lines += _table(list(rows[0]), [list(row.values()) for row in rows])
    gates = sorted(verdict.gates, key=bool)
    lines += _table(
        ["gate", "value", "limit", ""],
        [[gate.name, f"{gate.value:.4g}", f"{gate.limit:.4g}", "passed" if gate else "**failed**"] for gate in gates],
    )
    lines += [f"- warning: {_cell(sentence)}" for sentence in verdict.warnings]
    if minutes := sum(stage.seconds for stage in manifest.stages) / 60:
        lines.append(f"- {minutes:.1f} minutes in {len(manifest.stages)} stages")
    if folder:
        lines.append(f"- run folder `{folder}`: open `report.html`, copy `deploy/`")
    return lines


def _table(head: list[str], rows: Iterable[list[str]]) -> list[str]:
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return [*(f"| {' | '.join(map(_cell, line))} |" for line in lines), ""]


def _cell(text: str) -> str:
    """As one cell of a table, and no markup of its own."""
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")
