"""report.html of a run folder, made from its manifest (and its images, for pictures)."""

from __future__ import annotations

from pathlib import Path

from inversion.publish import publish
from pipeline.record.lock import require_no_way_out
from pipeline.record.manifest import Manifest, load_finished
from pipeline.show.page.page import page_of


def write_report(manifest: Manifest, folder: Path) -> Path:
    """`report.html`: self-contained, no script, no network."""
    path = folder / "report.html"
    publish(path, page_of(manifest, folder).encode())
    return path


def rewrite_report(folder: Path) -> Path:
    """`report.html` of a finished run again; `InputError` where its manifest does not hold a whole verdict."""
    manifest = load_finished(folder)
    require_no_way_out(folder)
    return write_report(manifest, folder)
