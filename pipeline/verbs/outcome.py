"""Where a verdict is told beside the screen: JSON, JUnit XML, Markdown."""

from __future__ import annotations

from dataclasses import dataclass
from json import dumps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pipeline.verbs.options import require_place

if TYPE_CHECKING:
    from pipeline.record.manifest import Manifest
    from pipeline.show.display import Display

STDOUT = Path("-")

Json = Annotated[
    Path | None,
    typer.Option(help="File for all figures; -: stdout, where nothing else goes. None by default."),
]
Junit = Annotated[Path | None, typer.Option(help="Gates as JUnit XML, beside the run folder's own. None by default.")]
SummaryMd = Annotated[
    Path | None, typer.Option(help="Markdown to append the verdict to, as $GITHUB_STEP_SUMMARY. None by default.")
]


@dataclass(frozen=True)
class Outcome:
    """The files that a command was asked to write its verdict to. Raises `InputError` where one could not be."""

    json: Path | None = None
    junit: Path | None = None
    summary: Path | None = None

    def __post_init__(self) -> None:
        for path, flag in ((self.json, "--json"), (self.junit, "--junit"), (self.summary, "--summary-md")):
            if path and not (flag == "--json" and path == STDOUT):
                require_place(path, flag)

    @property
    def on_stdout(self) -> bool:
        """Whether stdout is a program's."""
        return self.json == STDOUT

    @property
    def stale(self) -> list[Path]:
        """Files that tell an earlier verdict until this one is written; a summary is added to."""
        return [path for path in (self.json, self.junit) if path and path != STDOUT]

    def write(self, manifest: Manifest, display: Display, folder: Path | None = None) -> None:
        """The verdict in all of them, and on the screen."""
        from pipeline.record.manifest import to_json
        from pipeline.show.junit import write_junit
        from pipeline.show.summary import append_summary

        if self.junit:
            write_junit(manifest, self.junit)
        if self.summary:
            append_summary(manifest, self.summary, folder)
        display.results(manifest)
        if self.json:
            self.tell(dumps(to_json(manifest.verdict), indent=2))

    def tell(self, text: str) -> None:
        """JSON where it was asked for."""
        if self.on_stdout:
            typer.echo(text)
        elif self.json:
            self.json.write_text(text + "\n")
