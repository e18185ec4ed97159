"""Pictures of a run's synthetic images as PNG files: by stage, as mosaics, before and after re-birth, by confidence."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from inversion.confidence import target_confidence
from inversion.errors import InputError, PatchRebirthError
from inversion.folder import PROGRESS_FORMAT
from inversion.images import SparseImages, load_images
from inversion.machine import choose_device
from inversion.publish import publish
from inversion.shards import PROGRESS
from inversion.sparse import patchify, take
from inversion.teacher import Teacher, load_teacher
from inversion.tensorfile import read_tensors
from pipeline.recipe.resolve import read_back
from pipeline.record.lock import require_no_way_out
from pipeline.record.manifest import load_manifest
from pipeline.show.display import Display
from pipeline.show.page.album import denormalise, spread

FILES = ("stages.png", "mosaics.png", "rebirth.png", "confidence.png")
MOST_TRAJECTORIES, MOST_STAGES, MOST_PAIRS, MOST_PICTURES = 8, 16, 6, 32
WRAP = 8  # panels a row where rows mean nothing
ABSENT = 0.5  # grey of a patch that an image does not hold: black and white are what real pixels are clipped to
DPI, WIDEST, TALLEST_PANEL, NARROWEST_PANEL = 100, 18.8, 2.0, 0.9  # inches


def gallery(run: Path, out: Path | None, display: Display, teacher: Teacher | None = None) -> list[Path]:
    """PNG files of the images in `run`, a run folder or a folder of shards; returns their paths.

    Files of an earlier call in `out` (`run`/gallery by default) are replaced; what cannot be drawn is left out, and
    said. Without `teacher`, confidences come from the one that the manifest names. Raises `InputError` where there
    are no shards, they are another teacher's, or `out` is no folder.
    """
    folder, out = (run / "images" if (run / "images").is_dir() else run), out or run / "gallery"
    if not next(path for path in (out, *out.parents) if path.exists()).is_dir():
        raise InputError(f"the gallery's place {str(out)!r} is not a folder, nor in one: give another with --out.")
    require_no_way_out(run)
    images = load_images(folder)
    figures, sure = {}, None
    if teacher := teacher or _teacher_of(run, display):
        if teacher.sha256 != images.metadata["teacher_sha256"]:
            raise InputError(f"{str(run)!r} comes from another teacher than {teacher.name!r}: give its own checkpoint.")
        with display.progress() as progress:
            sure = target_confidence(teacher, images, progress)
        figures["confidence.png"] = confidence_figure(images, sure)
    figures["stages.png"] = stages_sheet(images, sure)
    if images.stage.max() > 1:
        figures["mosaics.png"] = mosaics_sheet(images)
        if pairs := _rebirths_of(folder, images, display):
            figures["rebirth.png"] = rebirth_sheet(
                *pairs, *(target_confidence(teacher, half) for half in pairs if teacher)
            )
    files = {name: png(figures[name]) for name in FILES if name in figures}
    out.mkdir(parents=True, exist_ok=True)
    for name, data in files.items():
        publish(out / name, data)
    for stale in set(FILES) - set(files):
        (out / stale).unlink(missing_ok=True)
    return [out / name for name in files]


def only(pictures: Tensor, kept: Tensor, grid: tuple[int, int]) -> Tensor:
    """`pictures` [M, C, H, W] in 0..1 with every patch that is not in `kept` [M, K] grey; -1 in `kept` is padding."""
    rows, columns = grid
    held = torch.zeros(len(pictures), rows * columns, dtype=torch.bool)
    row, place = (kept >= 0).nonzero(as_tuple=True)
    held[row, kept[row, place].long()] = True
    height, width = pictures.shape[2] // rows, pictures.shape[3] // columns
    pixels = held.view(-1, 1, rows, columns).repeat_interleave(height, 2).repeat_interleave(width, 3)
    return torch.where(pixels, pictures, ABSENT)


def sparse_pictures(images: SparseImages) -> Tensor:
    """[M, C, H, W] in 0..1, each image with grey where it has no patch."""
    return only(denormalise(images.dense(), images.metadata), images.kept, images.grid)


def rebirths(images: SparseImages, canvas: Tensor, trajectory: Tensor) -> tuple[SparseImages, SparseImages]:
    """Images detached at t_k, k >= 2, with their patches as they were at t_(k-1), and as they are (Figures 2 and A2).

    `canvas` [v, R, C, H, W] are the whole pictures of `trajectory` [R] at t_1..t_v, normalised. Both results are in
    order of (trajectory, stage).
    """
    found = images[torch.isin(images.trajectory, trajectory)]
    after = found[_index(found, len(found), range(2, len(canvas) + 1))]
    which = (after.trajectory.unsqueeze(1) == trajectory).int().argmax(1)
    pictures = canvas[after.stage.long() - 2, which].float()
    patches = take(patchify(pictures, images.patch_size), after.kept.long().clamp(min=0))
    return replace(after, patches=patches * (after.kept >= 0).unsqueeze(-1)), after


def stages_sheet(images: SparseImages, sure: Tensor | None = None) -> Figure:
    """A row a trajectory, a column a detachment point; of a method with one point, images side by side."""
    stages = spread(images.stage, MOST_STAGES)
    alone = len(stages) == 1
    index = _index(images, MOST_PICTURES if alone else MOST_TRAJECTORIES, stages)
    shown = images[index]
    counts, classes = (shown.kept >= 0).sum(1).tolist(), _classes(shown)
    above = [f"t{stage}\n{count} patches" for stage, count in zip(stages, counts, strict=False)]
    below = [] if sure is None else [f"{value:.3f}" for value in sure[index]]
    layout = (WRAP, classes, []) if alone else (len(stages), above, classes[:: len(stages)])
    return contact_sheet(f"{_method(images)}: sparse images", sparse_pictures(shown), *layout, below)


def mosaics_sheet(images: SparseImages) -> Figure:
    """The images of each trajectory put together."""
    stages = images.stage.unique().tolist()
    shown = images[_index(images, MOST_PICTURES, stages)]
    mosaics = denormalise(shown.mosaics(), shown.metadata)
    return contact_sheet(f"{_method(images)}: mosaics", mosaics, WRAP, _classes(shown)[:: len(stages)], [], [])


def rebirth_sheet(before: SparseImages, after: SparseImages, *sure: Tensor) -> Figure:
    """A row a trajectory; in each panel what `rebirths` gives, side by side; `sure` of both, each [M]."""
    stages = spread(after.stage, MOST_PAIRS)
    index = _index(after, MOST_TRAJECTORIES, stages)
    old, new = (sparse_pictures(half[index]) for half in (before, after))
    line = torch.ones_like(old[..., : max(1, old.shape[-1] // 16)])
    above = [f"set of t{stage}:\nat t{stage - 1}, at t{stage}" for stage in stages]
    below = [
        " to ".join(f"{value:.3f}" for value in pair) for pair in zip(*(half[index] for half in sure), strict=True)
    ]
    title, left = f"{_method(after)}: patches before and after re-birth", _classes(after[index])[:: len(stages)]
    return contact_sheet(title, torch.cat([old, line, new], dim=-1), len(stages), above, left, below)


def confidence_figure(images: SparseImages, sure: Tensor) -> Figure:
    """Histograms of the teacher's confidence `sure` [M] on the target class by stage (Figures 5 and 6), each as high as
    its own fullest bin."""
    stages = spread(images.stage, MOST_STAGES)
    figure, panels = _panels(len(stages), 4, (2.6, 2.2), sharex=True)
    for panel, stage in zip(panels, stages, strict=True):
        values = sure[images.stage == stage].numpy()
        panel.hist(values, bins=np.linspace(0, 1, 21).tolist())
        panel.set_title(f"t{stage}: mean {values.mean():.3f}, n = {len(values)}", fontsize=9)
        panel.tick_params(labelbottom=True, labelsize=7)
    figure.suptitle(f"{_method(images)}: images by the teacher's confidence in their class", fontsize=9)
    figure.supxlabel("confidence", fontsize=8)
    figure.supylabel("images (each panel on its own scale)", fontsize=8)
    return figure


def contact_sheet(
    title: str, pictures: Tensor, columns: int, above: list[str], left: list[str], below: list[str]
) -> Figure:
    """Pictures [n, C, H, W] in 0..1, in rows of `columns`, as large as the widest figure allows.

    What stands `above` and `below` is by picture, and may end early; what stands on the `left` is by row.
    """
    columns, (count, channels, tall, wide) = min(columns, len(pictures)), pictures.shape
    width = min(max(TALLEST_PANEL * wide / tall, NARROWEST_PANEL), WIDEST / columns)
    size = width, min(TALLEST_PANEL, width * tall / wide) + 0.4
    figure, panels = _panels(count, columns, size)
    for number, (panel, picture) in enumerate(zip(panels, pictures, strict=True)):
        colour = picture.permute(1, 2, 0) if channels == 3 else picture.mean(0)
        panel.imshow(colour.numpy(), cmap="gray", vmin=0, vmax=1)
        panel.set(xticks=[], yticks=[])
        panel.set_title(above[number] if number < len(above) else "", fontsize=8, pad=3)
        panel.set_xlabel(below[number] if number < len(below) else "", fontsize=7, labelpad=2)
        panel.set_ylabel(left[number // columns] if left and number % columns == 0 else "", fontsize=8)
    figure.suptitle(title + ("\nbelow: the teacher's confidence in the class" if below else ""), fontsize=9)
    return figure


def png(figure: Figure) -> bytes:
    """The same figure gives the same bytes: no date, no version."""
    data = io.BytesIO()
    figure.savefig(data, format="png", dpi=DPI, bbox_inches="tight", metadata={"Software": None})
    return data.getvalue()


def _teacher_of(run: Path, display: Display) -> Teacher | None:
    """The one that the manifest names, if there is a manifest and the teacher is to be had."""
    try:
        recipe = read_back(load_manifest(run).recipe)
        return load_teacher(
            recipe.teacher, recipe.checkpoint, checkpoint_key=recipe.checkpoint_key, given=recipe.input,
            device=str(choose_device()),
        )  # fmt: skip
    except PatchRebirthError as error:
        display.say(f"confidences are left out without --teacher: {error}")
        return None


def _rebirths_of(folder: Path, images: SparseImages, display: Display) -> tuple[SparseImages, SparseImages] | None:
    path, mend = folder / PROGRESS, "make both again with `pipeline invert` in an empty folder."
    if not path.exists():
        display.say(f"rebirth.png is left out: {str(path)!r} is missing, which a new `pipeline invert` makes.")
        return None
    tensors, metadata = read_tensors(path, PROGRESS_FORMAT, mend)
    if metadata != {**images.metadata, "format": PROGRESS_FORMAT}:
        raise InputError(f"{str(path)!r} does not belong to the shards beside it: {mend}")
    return rebirths(images, tensors["canvas"], tensors["trajectory"])


def _panels(count: int, columns: int, size: tuple[float, float], **axes: Any) -> tuple[Figure, list[Axes]]:
    """A figure of `count` panels in rows of `columns`, each of `size` (width, height) in inches."""
    columns = min(columns, count)
    rows = -(-count // columns)
    figure = Figure(figsize=(max(size[0] * columns + 1, 4), size[1] * rows + 0.6), layout="compressed")
    panels = list(figure.subplots(rows, columns, squeeze=False, **axes).flat)
    for unused in panels[count:]:
        unused.remove()
    return figure, panels[:count]


def _index(images: SparseImages, trajectories: int, stages: Sequence[int]) -> Tensor:
    """Rows of these stages of the first `trajectories`, in order of (trajectory, stage)."""
    wanted = torch.isin(images.trajectory, images.trajectory.unique()[:trajectories])
    index = (wanted & torch.isin(images.stage, torch.tensor(stages))).nonzero().squeeze(1)
    return index[torch.argsort(images.trajectory[index].long() * 1000 + images.stage[index])]


def _classes(images: SparseImages) -> list[str]:
    return [f"class {label}" for label in images.labels.tolist()]


def _method(images: SparseImages) -> str:
    return images.metadata["method"].upper()
