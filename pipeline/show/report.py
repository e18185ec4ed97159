"""report.html of a run folder, made from its manifest alone (and its images, for pictures)."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass
from pathlib import Path

import torch
from jinja2 import Environment, PackageLoader, StrictUndefined
from PIL import Image
from torch import Tensor

from inversion.errors import InputError
from inversion.images import SparseImages, load_images
from inversion.publish import publish
from pipeline.record.lock import require_no_way_out
from pipeline.record.manifest import Manifest, load_finished
from pipeline.show.display import kernel_lines, result_rows

SHOWN = 6  # trajectories


def write_report(manifest: Manifest, folder: Path) -> Path:
    """`report.html`: self-contained, no script, no network."""
    templates = Environment(loader=PackageLoader("pipeline.show"), autoescape=True, undefined=StrictUndefined)
    page = templates.get_template("report.html").render(
        manifest=manifest,
        verdict=manifest.verdict,
        rows=result_rows(manifest),
        kernels=kernel_lines(manifest.verdict.runtimes),
        warnings=[sentence for stage in manifest.stages for sentence in stage.warnings],
        trajectories=_pictures(folder / "images"),
    )
    path = folder / "report.html"
    publish(path, page.encode())
    return path


def rewrite_report(folder: Path) -> Path:
    """`report.html` of a finished run again; `InputError` where its manifest does not hold a whole verdict."""
    manifest = load_finished(folder)
    require_no_way_out(folder)
    return write_report(manifest, folder)


@dataclass(frozen=True)
class Trajectory:
    """Its class, and its pictures as data addresses."""

    label: int
    pictures: list[str]


def _pictures(folder: Path) -> list[Trajectory]:
    """The first trajectories: each detachment's sparse image, then the mosaic, as PNG data addresses."""
    try:
        images = load_images(folder)
    except InputError:
        return []
    shown = []
    for trajectory in images.trajectory.unique()[:SHOWN]:
        rows = images[images.trajectory == trajectory]
        pictures = [_png(picture, images) for picture in (*rows.dense(), *rows.mosaics())]
        shown.append(Trajectory(int(rows.labels[0]), pictures))
    return shown


def _png(picture: Tensor, images: SparseImages) -> str:
    mean, std = (
        torch.tensor([float(part) for part in images.metadata[key].split()]).view(-1, 1, 1) for key in ("mean", "std")
    )
    pixels = ((picture * std + mean).clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
    data = io.BytesIO()
    Image.fromarray(pixels.squeeze()).save(data, "PNG")
    return "data:image/png;base64," + base64.b64encode(data.getvalue()).decode()
