"""What a person sees while a run works: a bar with ETA for every long step, one table at the end."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

Advance = Callable[[int, str], None]
"""Called with (steps done, a short remark such as the loss)."""
OnPhase = Callable[[str, int, int, float], None]


class Display:
    """Progress goes to stderr, results to stdout; `quiet` drops progress."""

    def __init__(self, quiet: bool = False) -> None:
        self.out = Console()
        self.progress_console = Console(stderr=True, quiet=quiet)

    def say(self, text: str) -> None:
        self.progress_console.print(text, highlight=False)

    @contextmanager
    def steps(self, title: str, total: int) -> Iterator[Advance]:
        """A bar of `total` steps; where there is no terminal, a line at each quarter."""
        if not self.progress_console.is_terminal:
            yield self._lines(title, total)
            return
        columns = (
            TextColumn("{task.description:<12}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
            TextColumn("ETA"), TimeRemainingColumn(), TextColumn("{task.fields[remark]}"),
        )  # fmt: skip
        with Progress(*columns, console=self.progress_console) as progress:
            task = progress.add_task(title, total=total, remark="")
            yield lambda done, remark: progress.update(task, completed=done, remark=remark)

    @contextmanager
    def phases(self) -> Iterator[OnPhase]:
        """For work that tells (phase, steps done, steps, KL): a bar a phase, from its first step on."""
        current = ""
        advance: Advance
        with ExitStack() as stack:

            def on_phase(phase: str, done: int, total: int, kl: float) -> None:
                nonlocal current, advance
                if phase != current:
                    stack.close()
                    current, advance = phase, stack.enter_context(self.steps(phase, total))
                advance(done, f"KL {kl:.4f}")

            yield on_phase

    def _lines(self, title: str, total: int) -> Advance:
        reached = 0

        def advance(done: int, remark: str) -> None:
            nonlocal reached
            quarter = done * 4 // max(total, 1)
            if quarter > reached:
                reached = quarter
                self.say(f"  {title}: {done}/{total}{f', {remark}' if remark else ''}")

        return advance

    def stage(self, record: dict[str, Any]) -> None:
        """One line for a finished stage."""
        how = "unchanged, not run again" if record["cached"] else f"{record['seconds']:.1f} s"
        self.say(f"{record['name']}: {how}")

    def results(self, manifest: dict[str, Any]) -> None:
        """The table of results, the gates, and the verdict."""
        table = Table(title=f"{manifest['teacher']['name']} {manifest['recipe']['bits']}")
        rows = result_rows(manifest)
        for column in rows[0]:
            table.add_column(column, justify="left" if column == "model" else "right")
        for row in rows:
            table.add_row(*row.values())
        self.out.print(table)
        validation = manifest["validation"]
        for gate in validation["gates"]:
            mark = "passed" if gate["passed"] else "FAILED"
            self.out.print(
                f"gate {gate['name']}: {gate['value']:.4g} (limit {gate['limit']:.4g}) {mark}", highlight=False
            )
        for engine in validation["runtimes"]["tensorrt"] or []:
            status = "executed" if engine["executed"] else "built, not executed"
            self.out.print(f"engine {engine['path']} ({engine['bytes'] / 1e6:.1f} MB): {status}", highlight=False)


def result_rows(manifest: dict[str, Any]) -> list[dict[str, str]]:
    """Accuracy, agreement, size and latency of the float and the quantized ONNX, as text."""
    validation = manifest["validation"]
    runtime, real, synthetic = validation["runtimes"]["onnxruntime"], validation["real"], validation["synthetic"]
    rows = []
    for key, title in (("float", "FP32 ONNX"), ("quantized", f"{manifest['recipe']['bits']} ONNX")):
        ours = key == "quantized"
        row = {"model": title}
        if real:
            row["top-1 %"] = f"{100 * (real['top1'] if ours else real['teacher_top1']):.2f}"
            row[f"agreement % (n={real['n']})"] = f"{100 * real['agreement']:.2f}" if ours else ""
            row["KL"] = f"{real['kl']:.4f}" if ours else ""
        row[f"synthetic agreement % (n={synthetic['n']})"] = f"{100 * synthetic['agreement']:.2f}" if ours else ""
        row["synthetic KL"] = f"{synthetic['kl']:.4f}" if ours else ""
        row["MB"] = f"{runtime[key]['bytes'] / 1e6:.2f}"
        row["ms"] = f"{runtime[key]['median_ms']:.2f}"
        rows.append(row)
    return rows
