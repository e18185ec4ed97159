"""Synthetic pictures inside a page: some trajectories with the teacher's confidence, and pictures that are disputed.

No picture of anyone's is among them: they come out of the run's shards, or are drawn from a seed.
"""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from inversion.confidence import target_confidence
from inversion.errors import InputError
from inversion.images import SparseImages, load_images
from inversion.leaves import dead_leaves
from inversion.teacher import InputSpec, Teacher
from pipeline.record.manifest import Manifest

SHOWN, MOST_STAGES, MOST_DISPUTED = 6, 7, 8
"""Trajectories in a page, images of each, and pictures with both answers."""
SIDE, LARGE = 160, 224
"""Pixels of a picture in a page at most, and of a mosaic: larger ones would make a file of megabytes."""
QUALITY = 80
WIDEST, SEEDS = 1024, 2**40
"""Of a picture that is drawn anew, and of its seed or number: a forged manifest may ask for anything."""
LEAVES = "leaves"


@dataclass(frozen=True)
class Shown:
    """A trajectory that a page shows: how sure the teacher is of the class `label` by its images in order of
    detachment, and by its mosaic, each in 0..1."""

    trajectory: int
    label: int
    confidence: tuple[float, ...]
    mosaic: float


@dataclass(frozen=True)
class Picture:
    """Its address, its size in pixels, what it shows in words, and what stands under it."""

    address: str
    width: int
    height: int
    alt: str
    caption: str

    @property
    def tiny(self) -> bool:
        """Its pixels are to be seen as squares."""
        return max(self.width, self.height) <= SIDE // 2


@dataclass(frozen=True)
class Row:
    """The images of one trajectory by detachment point, and the mosaic that they tile, where they are several."""

    title: str
    pictures: list[Picture]
    mosaic: Picture | None


@dataclass(frozen=True)
class Dispute:
    """A picture and both answers to it."""

    picture: Picture
    teacher: str
    quantized: str
    source: str
    kl: float


class Labels:
    """What the classes are called, where a run knows it."""

    def __init__(self, folder: Path) -> None:
        try:
            said = json.loads((folder / "preprocess.json").read_bytes())
        except (OSError, ValueError):
            said = {}
        names = said.get("labels") if isinstance(said, dict) else None
        self.names = [str(name) for name in names] if isinstance(names, list) else []

    def __call__(self, number: int) -> str:
        """`goldfish (class 1)`, of several names the first; `class 1` where none is known, or it says no more."""
        name = self.names[number].split(",")[0].strip() if number < len(self.names) else ""
        return f"{name} (class {number})" if name not in ("", str(number)) else f"class {number}"


def chosen(images: SparseImages) -> list[int]:
    """The trajectories that a page shows: the first of each class, and where there are too few classes, of any."""
    firsts: dict[int, int] = {}
    pairs = dict(zip(images.trajectory.tolist(), images.labels.tolist(), strict=True))
    for trajectory, label in sorted(pairs.items()):
        firsts.setdefault(label, trajectory)
    found = sorted(firsts.values())[:SHOWN]
    return sorted(found + [each for each in sorted(pairs) if each not in found][: SHOWN - len(found)])


def shown_of(teacher: Teacher, images: SparseImages) -> list[Shown]:
    """The trajectories that a page shows, with the teacher's confidence."""
    found = []
    for trajectory in chosen(images):
        rows = images[images.trajectory == trajectory]
        rows = rows[rows.stage.argsort()]
        label = int(rows.labels[0])
        mosaic = float(teacher.logits(rows.mosaics()).softmax(1)[0, label])
        sure = tuple(round(float(value), 4) for value in target_confidence(teacher, rows))
        found.append(Shown(trajectory, label, sure, round(mosaic, 4)))
    return found


def images_of(folder: Path) -> SparseImages | None:
    """The shards of a run, where they still lie in its `folder`."""
    try:
        return load_images(folder / "images")
    except InputError:
        return None


def album(images: SparseImages, shown: Sequence[Shown], labels: Labels) -> list[Row]:
    """A row a trajectory; without confidences where none are `shown`."""
    present = set(images.trajectory.tolist())
    known = {each.trajectory: each for each in shown if each.trajectory in present}
    return [_row(images, number, known.get(number), labels) for number in list(known)[:SHOWN] or chosen(images)]


def disputes(manifest: Manifest, images: SparseImages | None, seed: int, labels: Labels) -> list[Dispute]:
    """The disputed pictures that can still be had: mosaics of `images`, and leaves drawn from `seed`."""
    found = []
    for each in manifest.verdict.disputed[:MOST_DISPUTED]:
        if each.kind == LEAVES:
            pixels, source = _leaf(manifest, seed, each.number), f"dead leaves, number {each.number}"
        else:
            pixels, source = _mosaic(images, each.number), f"mosaic of trajectory {each.number}"
        if pixels is None:
            continue
        sides = (each.teacher, each.teacher_confidence), (each.quantized, each.quantized_confidence)
        teacher, quantized = (f"{labels(number)}, {100 * sure:.0f}%" for number, sure in sides)
        alt = f"{source}: the teacher says {teacher}; the quantized model says {quantized}"
        found.append(Dispute(picture_of(pixels, None, alt, ""), teacher, quantized, source, each.kl))
    return found


def _mosaic(images: SparseImages | None, trajectory: int) -> Tensor | None:
    """Its pixels [C, H, W] in 0..1."""
    if images is None or not (rows := images[images.trajectory == trajectory]):
        return None
    return denormalise(rows.mosaics(), rows.metadata)[0]


def _leaf(manifest: Manifest, seed: int, number: int) -> Tensor | None:
    """Its pixels [C, H, W] in 0..1; None of a manifest that says what no run has."""
    shape = manifest.teacher.input_size or ()
    if len(shape) != 3 or not all(0 < side <= WIDEST for side in shape) or not 0 <= seed < SEEDS or number >= SEEDS:
        return None
    channels, height, width = shape
    plain = InputSpec((height, width), (0.0,) * channels, (1.0,) * channels, "bicubic", 1.0, 1)
    return dead_leaves(plain, 1, seed, number)[0]


def _row(images: SparseImages, number: int, known: Shown | None, labels: Labels) -> Row:
    rows = images[images.trajectory == number]
    rows = rows[rows.stage.argsort()]
    label, several = labels(int(rows.labels[0])), len(rows) > 1
    stages, sure = spread(rows.stage, MOST_STAGES), known.confidence if known else ()
    pictures = []
    for place, stage in enumerate(rows.stage.tolist()):
        if stage in stages:
            caption = _caption(f"t{stage}" if several else "", sure[place] if len(sure) == len(rows) else None)
            what, side = (f"{label}, t{stage}", SIDE) if several else (label, LARGE)
            pictures.append(_sparse(rows[torch.tensor([place])], what, caption, side))
    return Row(label, pictures, _whole(rows, known, label) if several else None)


def _sparse(image: SparseImages, what: str, caption: str, side: int) -> Picture:
    """Of the one image in `image`, see-through where it has no patch."""
    kept, (rows, columns) = image.kept[0][image.kept[0] >= 0].long(), image.grid
    pixels = denormalise(image.dense(), image.metadata)[0]
    held = torch.zeros(rows * columns, dtype=torch.bool)
    held[kept] = True
    height, width = pixels.shape[1] // rows, pixels.shape[2] // columns
    held = held.view(rows, columns).repeat_interleave(height, 0).repeat_interleave(width, 1)
    return picture_of(pixels, held, f"{what}: {len(kept)} of {rows * columns} patches", caption, side)


def _whole(rows: SparseImages, known: Shown | None, label: str) -> Picture:
    pixels = denormalise(rows.mosaics(), rows.metadata)[0]
    caption = _caption("mosaic", known.mosaic if known else None)
    return picture_of(pixels, None, f"{label}: the mosaic of these images", caption, LARGE)


def _caption(name: str, confidence: float | None) -> str:
    return ", ".join([*([name] if name else []), *([] if confidence is None else [f"{100 * confidence:.0f}%"])])


def picture_of(pixels: Tensor, held: Tensor | None, alt: str, caption: str, side: int = SIDE) -> Picture:
    """`pixels` [C, H, W] in 0..1, see-through where [H, W] is not `held`, as WebP of `side` pixels at most: small ones
    to the last bit."""
    colours = pixels if len(pixels) == 3 else pixels.mean(0, keepdim=True).expand(3, -1, -1)
    bytes_ = (colours.clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
    image = Image.fromarray(np.ascontiguousarray(bytes_))
    if held is not None and not bool(held.all()):
        image.putalpha(Image.fromarray(held.numpy().astype(np.uint8) * 255))
    small = max(image.size) <= SIDE // 2
    image.thumbnail((side, side), Image.Resampling.LANCZOS)
    data = io.BytesIO()
    image.save(data, "WEBP", lossless=small, quality=QUALITY, method=4)
    address = "data:image/webp;base64," + base64.b64encode(data.getvalue()).decode()
    return Picture(address, image.width, image.height, alt, caption)


def denormalise(pictures: Tensor, metadata: dict[str, str]) -> Tensor:
    """Normalised `pictures` [M, C, H, W] in 0..1, by the `mean` and `std` of a shard's metadata."""
    mean, std = (
        torch.tensor([float(part) for part in metadata[key].split()]).view(-1, 1, 1) for key in ("mean", "std")
    )
    return (pictures * std + mean).clamp(0, 1)


def spread(values: Tensor, most: int) -> list[int]:
    """At most `most` of the distinct values [n], evenly apart, the first and the last among them."""
    distinct = values.unique().tolist()
    places = np.linspace(0, len(distinct) - 1, min(most, len(distinct)))
    return [distinct[place] for place in places.round().astype(int)]
