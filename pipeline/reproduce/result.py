"""What a reproduction gives: rows of figures with the paper's beside them, written as JSON, Markdown and pictures."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from matplotlib.figure import Figure
from rich.table import Table

from inversion.publish import publish
from pipeline.show.gallery import png


@dataclass(frozen=True)
class Cell:
    """One measure of one row: a value a seed, and what the paper has there; empty where nothing could be run."""

    ours: tuple[float, ...] = ()
    paper: float | None = None

    @property
    def mean(self) -> float | None:
        return statistics.fmean(self.ours) if self.ours else None

    @property
    def spread(self) -> float | None:
        """Standard deviation over seeds; None of one seed."""
        return statistics.stdev(self.ours) if len(self.ours) > 1 else None


@dataclass
class Result:
    """A table: `rows` of `Cell`s by measure, with `digits` after the point. `notes` say what is missing, and why."""

    name: str
    title: str
    rows: dict[str, dict[str, Cell]]
    digits: int = 2
    notes: list[str] = field(default_factory=list)
    details: Mapping[str, object] = field(default_factory=dict)
    figures: dict[str, Figure] = field(default_factory=dict)

    @property
    def measures(self) -> list[str]:
        """Columns, in order of first appearance."""
        return list(dict.fromkeys(measure for row in self.rows.values() for measure in row))

    def write(self, out: Path, about: Mapping[str, object]) -> list[Path]:
        """`<name>.json`, `<name>.md` and a PNG a figure in `out`; returns the paths."""
        out.mkdir(parents=True, exist_ok=True)
        pictures = {out / f"{name}.png": png(figure) for name, figure in self.figures.items()}
        texts = {
            out / f"{self.name}.json": json.dumps(self._to_dict(about), indent=2),
            out / f"{self.name}.md": self.markdown(),
        }
        for path, data in pictures.items():
            publish(path, data)
        for path, text in texts.items():
            publish(path, (text + "\n").encode())
        return [*texts, *pictures]

    def markdown(self) -> str:
        """The table with the paper's number in the column after ours, then the notes."""
        header, *lines = self._cells()
        rows = [header, ["---", *["---:"] * (len(header) - 1)], *lines]
        notes = [f"\n{note}" for note in self.notes]
        return "\n".join([f"# {self.title}\n", *(f"| {' | '.join(row)} |" for row in rows), *notes])

    def table(self) -> Table:
        """The same for a terminal."""
        header, *lines = self._cells()
        table = Table(*header, title=self.title, caption="\n".join(self.notes) or None, pad_edge=False)
        for column in table.columns[1:]:
            column.justify = "right"
        for line in lines:
            table.add_row(*line)
        return table

    def _cells(self) -> list[list[str]]:
        # a measure that the paper has nowhere needs no column for it
        shown = {
            name: any(row.get(name, Cell()).paper is not None for row in self.rows.values()) for name in self.measures
        }
        header = [""]
        for name, paper in shown.items():
            header += [name, "paper"] if paper else [name]
        lines = [header]
        for label, row in self.rows.items():
            line = [label]
            for name, paper in shown.items():
                cell = row.get(name, Cell())
                line += [self._ours(cell), *([self._number(cell.paper)] if paper else [])]
            lines.append(line)
        return lines

    def _ours(self, cell: Cell) -> str:
        spread = "" if cell.spread is None else f" ± {cell.spread:.{self.digits}f}"
        return self._number(cell.mean, "not run") + spread

    def _number(self, value: float | None, missing: str = "none") -> str:
        return missing if value is None else f"{value:.{self.digits}f}"

    def _to_dict(self, about: Mapping[str, object]) -> dict[str, object]:
        rows = {
            label: {
                name: {"ours": list(cell.ours), "mean": cell.mean, "spread": cell.spread, "paper": cell.paper}
                for name, cell in row.items()
            }
            for label, row in self.rows.items()
        }
        return {"name": self.name, "title": self.title, **about, "rows": rows, "notes": self.notes, **self.details}


def each(values: Sequence[float], times: float = 1.0) -> tuple[float, ...]:
    """A value a seed, as plain numbers, `times` so large."""
    return tuple(times * float(value) for value in values)
