"""What a person sees while a run works: a bar with ETA for every long step, one table at the end."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bars
from rich.table import Table

from export.edge.kernels import sentences
from inversion.progress import Progress
from pipeline.record.manifest import Manifest, StageRecord
from pipeline.record.proof import ExecutedEngine, Fidelity, Runtimes, Times
from pipeline.show.itinerary import Itinerary, duration

MEANT = {"basis": "rounding error", "inversion": "loss"}
"""What the value of a progress is, where it is no KL."""


class Display:
    """Progress goes to stderr, results to stdout; `quiet` drops progress, `verbose` adds the lines of `run.log`;
    where stdout is a program's, results go to stderr."""

    def __init__(self, quiet: bool = False, verbose: bool = False, results_to_stderr: bool = False) -> None:
        self.out, self.verbose = Console(stderr=results_to_stderr), verbose
        self.progress_console = Console(stderr=True, quiet=quiet)
        self.itinerary: Itinerary | None = None

    def say(self, text: str) -> None:
        self.progress_console.print(text, highlight=False, markup=False, soft_wrap=True)

    def warn(self, sentence: str) -> None:
        """Also when `quiet`: it is no progress."""
        Console(stderr=True).print(f"warning: {sentence}", highlight=False, markup=False, soft_wrap=True)

    def log(self, line: str) -> None:
        if self.verbose:
            self.say(line)

    def follow(self, expected: Mapping[str, float]) -> None:
        """Say from here on which of these stages runs, and how long it is to the end of all: each is expected to take
        so many seconds."""
        self.itinerary = Itinerary(expected)

    def begins(self, stage: str) -> None:
        """A stage begins to work."""
        if self.itinerary:
            self.itinerary.begin(stage)
            self.say(f"{self.itinerary.place}: {stage}{self._to_the_end()}")

    def _to_the_end(self) -> str:
        return f"; {duration(self.itinerary.left)} to the end" if self.itinerary and self.itinerary.begun else ""

    @contextmanager
    def progress(self) -> Iterator[Progress]:
        """A bar for each thing that is being done, from its first step on; where there is no terminal, a line at each
        quarter. A value that is not told stays what it was."""
        current = remark = ""
        advance: Callable[[int, str], None] = _nothing
        with ExitStack() as stack:

            def told(what: str, done: int, total: int, value: float) -> None:
                nonlocal current, remark, advance
                if what != current:
                    stack.close()
                    current, remark, advance = what, "", stack.enter_context(self._bar(what, total))
                if value == value:
                    remark = f"{MEANT.get(what, 'KL')} {value:.4f}"
                advance(done, remark)

            yield told

    @contextmanager
    def _bar(self, title: str, total: int) -> Iterator[Callable[[int, str], None]]:
        if not self.progress_console.is_terminal:
            yield self._lines(title, total)
            return
        columns = (
            TextColumn("{task.description:<12}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
            TextColumn("ETA"), TimeRemainingColumn(), TextColumn("{task.fields[remark]}{task.fields[whole]}"),
        )  # fmt: skip
        with Bars(*columns, console=self.progress_console) as bars:
            task = bars.add_task(title, total=total, remark="", whole="")
            yield lambda done, remark: bars.update(task, completed=done, remark=remark, whole=self._to_the_end())

    def _lines(self, title: str, total: int) -> Callable[[int, str], None]:
        reached = 0

        def advance(done: int, remark: str) -> None:
            nonlocal reached
            quarter = done * 4 // max(total, 1)
            if quarter > reached:
                reached = quarter
                self.say(f"  {title}: {done}/{total}{f', {remark}' if remark else ''}{self._to_the_end()}")

        return advance

    def stage(self, record: StageRecord) -> None:
        """One line for a finished stage."""
        how = "unchanged, not run again" if record.cached else f"{record.seconds:.1f} s"
        self.say(f"{record.name}: {how}")

    def results(self, manifest: Manifest) -> None:
        """The table of results, the gates, and the engines; a line that is too wide is wrapped by the terminal."""
        rows, verdict = result_rows(manifest), manifest.verdict
        table = Table(*rows[0], title=f"{manifest.teacher.name} {manifest.bits}")
        for column in table.columns[1:]:
            column.justify = "right"
        for row in rows:
            table.add_row(*row.values())
        self.out.print(table)
        for gate in verdict.gates:
            mark = "passed" if gate else "FAILED"
            self._line(f"gate {gate.name}: {gate.value:.4g} (limit {gate.limit:.4g}) {mark}")
        for line in engine_lines(verdict.runtimes):
            self._line(line)
        for line in kernel_lines(verdict.runtimes):
            self._line(line)

    def lines(self, lines: Iterable[str]) -> None:
        """A result that is text."""
        for line in lines:
            self._line(line)

    def table(self, table: Table) -> None:
        """A table that is too wide for the terminal is cut by it."""
        self.out.print(table)

    def _line(self, text: str) -> None:
        self.out.print(text, highlight=False, markup=False, soft_wrap=True)


def engine_lines(runtimes: Runtimes) -> list[str]:
    """Each engine, and how fast it is beside FP16's where it ran."""
    lines = []
    for engine in runtimes.engines:
        status = "executed" if engine.executed else "built, not executed"
        lines.append(f"engine {engine.path} ({engine.bytes / 1e6:.1f} MB): {status}")
        for row in engine.latency if isinstance(engine, ExecutedEngine) else ():
            low, high = row.ratio_interval
            lines.append(
                f"  batch {row.batch}: {row.quantized.median_ms:.3f} ms, FP16 {row.float16.median_ms:.3f} ms, "
                f"ratio {row.ratio:.2f} [{low:.2f}, {high:.2f}]"
            )
    return lines


def kernel_lines(runtimes: Runtimes) -> list[str]:
    """What each runtime computes with integers, and why not the rest."""
    return [line for kernels in runtimes.kernels for line in sentences(asdict(kernels))]


def result_rows(manifest: Manifest) -> list[dict[str, str]]:
    """Accuracy, agreement, size and latency as text: a row a measure, a column a model."""
    verdict, runtime = manifest.verdict, manifest.verdict.runtimes.onnxruntime
    real, plain = verdict.real, verdict.float32
    measures: list[tuple[str, ...]] = []
    if real:
        plain_real = plain.real if plain else None
        tops = plain_real.top1 if plain_real else real.teacher_top1, real.top1
        measures.append((f"top-1, % of {real.n} real", *("" if top is None else f"{100 * top:.2f}" for top in tops)))
        measures += _fidelity(plain_real, real, "real")
    for kind, found in verdict.kinds.items():
        measures += _fidelity(plain.synthetic.kinds.get(kind) if plain else None, found, kind)
    models = runtime.float32, runtime.quantized
    measures.append(("file, MB", *(f"{model.bytes / 1e6:.2f}" for model in models)))
    measures.append(("peak memory, MB", *(f"{model.peak_bytes / 1e6:.0f}" for model in models)))
    for number, row in enumerate(runtime.latency):
        times = (_times(one) for one in (row.float32, row.quantized))
        measures.append((f"latency (p95), ms, {row.where}", *times))
        for way in verdict.runtimes.others:
            own = _times(way.own_latency[number].float32) if way.own_latency else ""
            measures.append((f"latency there, {way.in_words}", own, _times(way.latency[number].quantized)))
    names = "", "FP32 ONNX", f"{manifest.bits} ONNX"
    return [dict(zip(names, measure, strict=True)) for measure in measures]


def _times(times: Times) -> str:
    return f"{times.median_ms:.2f} ({times.p95_ms:.2f})"


def _fidelity(plain: Fidelity | None, quantized: Fidelity, kind: str) -> list[tuple[str, ...]]:
    """Of both files: agreement with the teacher, the quantized one's with its 95% interval, and KL."""
    low, high = quantized.agreement_interval
    agreement = f"{100 * quantized.agreement:.2f} [{100 * low:.1f}, {100 * high:.1f}]"
    return [
        (
            f"agreement, % of {quantized.n} {kind} [95%]",
            f"{100 * plain.agreement:.2f}" if plain else "",
            agreement,
        ),
        (f"KL, nats, {kind}", f"{plain.kl:.4f}" if plain else "", f"{quantized.kl:.4f}"),
    ]


def _nothing(_done: int, _remark: str) -> None:
    """Before the first step there is no bar."""
