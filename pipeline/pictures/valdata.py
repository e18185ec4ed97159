"""Real pictures with labels, for validation alone: the built-in digits, an image folder, Parquet files."""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from itertools import islice
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from inversion.errors import InputError
from inversion.progress import Progress, quiet
from inversion.teacher import DIGITS_VIT, InputSpec, Teacher
from pipeline.pictures.depth import eight_bits
from pipeline.pictures.folders import read_folder
from pipeline.pictures.parquet import open_table, parquet_files
from pipeline.pictures.preprocess import transform
from pipeline.recipe.recipe import PictureSource
from pipeline.show.display import Display

DIGITS_HELD_OUT = 500
BATCH = 64
DECODERS = 2

T = TypeVar("T")


@dataclass(frozen=True)
class Picture:
    """One labelled picture, not yet decoded; `name` is what an error calls it."""

    source: Path | bytes | Image.Image
    label: int
    name: str


@dataclass(frozen=True)
class ValData:
    """`count` labelled pictures in an order that never changes; iterate as often as needed.

    Iterating gives batches (images [B, C, H, W] normalised float32, labels [B] int64); only one is in memory.
    An unreadable picture raises `InputError` when its batch is reached, or when `check` looks at all of them.
    `left_out` says in sentences what lay there and is no picture; `fingerprint` changes when the pictures do.
    """

    count: int
    pictures: Callable[[], Iterable[Picture]]
    transform: Callable[[Image.Image], Tensor]
    left_out: tuple[str, ...] = ()
    fingerprint: str | None = None

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return self.batches()

    def batches(self, size: int = BATCH) -> Iterator[tuple[Tensor, Tensor]]:
        """Batches of `size`, the last one shorter."""
        for part in self._parts(size, self._read):
            yield torch.stack([image for image, _ in part]), torch.tensor([picture.label for _, picture in part])

    def check(self, progress: Progress = quiet) -> None:
        """Look at every picture, to its end, before any work rests on them."""
        done = 0
        for part in self._parts(BATCH, self._glance):
            done += len(part)
            progress("pictures", done, self.count, math.nan)

    def _parts(self, size: int, look: Callable[[Picture], T]) -> Iterator[list[tuple[T, Picture]]]:
        remaining = iter(self.pictures())
        with ThreadPoolExecutor(DECODERS) as pool:
            while part := list(islice(remaining, size)):
                yield list(zip(pool.map(look, part), part, strict=True))

    def _read(self, picture: Picture) -> Tensor:
        return _decode(picture, self.transform)

    def _glance(self, picture: Picture) -> None:
        """All bytes are read, but a JPEG's pixels are put together at an eighth of its size: a third of the time."""

        def look(image: Image.Image) -> None:
            image.draft(None, (1, 1))
            eight_bits(image, "RGB")

        _decode(picture, look)


def _decode(picture: Picture, use: Callable[[Image.Image], T]) -> T:
    if isinstance(picture.source, Image.Image):
        return use(picture.source)
    source = io.BytesIO(picture.source) if isinstance(picture.source, bytes) else picture.source
    # Pillow's codecs raise many classes for a broken file, SyntaxError among them
    try:
        with Image.open(source) as image:
            return use(image)
    except InputError as error:
        raise InputError(f"{picture.name} {error}") from error
    except Exception as error:
        raise InputError(f"{picture.name} cannot be read as a picture: replace or remove it.") from error


@cache
def digits_split() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """scikit-learn's 1,797 handwritten digits, split for ever: 1,297 for training `digits_vit`, 500 held out.

    Returns train pictures [1297, 8, 8] uint8 (0 black paper, 255 full ink), train labels [1297] int64, held-out
    pictures [500, 8, 8] and labels [500]. Every digit has the same share of both parts, to one picture.
    """
    from sklearn.datasets import load_digits  # takes seconds to import

    digits = load_digits()
    pictures = np.rint(digits.images * (255 / 16)).astype(np.uint8)
    labels = digits.target.astype(np.int64)
    # RandomState's stream is frozen by NumPy's policy, a Generator's is not: another split would leak
    order = np.random.RandomState(0).permutation(len(labels))
    order = order[np.argsort(labels[order], kind="stable")]
    held = np.zeros(len(order), dtype=bool)
    # evenly spaced in an order by label: a stratified draw
    held[np.arange(DIGITS_HELD_OUT) * len(order) // DIGITS_HELD_OUT] = True
    train, test = np.sort(order[~held]), np.sort(order[held])
    return pictures[train], labels[train], pictures[test], labels[test]


def digits_held_out(spec: InputSpec) -> ValData:
    """The 500 digits that `digits_vit` never saw, resized to the teacher's input."""
    if spec.num_classes != 10:
        raise InputError(f"the digits have 10 classes, the teacher {spec.num_classes}: give --val-data of your own.")
    return ValData(DIGITS_HELD_OUT, _held_out_pictures, transform(spec))


def _held_out_pictures() -> list[Picture]:
    _, _, pictures, labels = digits_split()
    return [
        Picture(Image.fromarray(picture), int(label), f"digit {row}")
        for row, (picture, label) in enumerate(zip(pictures, labels, strict=True))
    ]


def judging_pictures(
    teacher: Teacher, checkpoint: Path | str | None, chosen: PictureSource, display: Display
) -> ValData | None:
    """The pictures that judge a result and do nothing else, or the built-in teacher's own; every one was looked at."""
    if chosen.val_data is not None:
        places = (chosen.class_map, chosen.image_column, chosen.label_column)
        data = open_val_data(chosen.val_data, teacher.spec, *places)
        with display.progress() as progress:
            data.check(progress)
        return data
    for what, value in (
        ("class map", chosen.class_map), ("image column", chosen.image_column),
        ("label column", chosen.label_column),
    ):  # fmt: skip
        if value is not None:
            raise InputError(f"{what} {value!r} needs pictures: add --val-data.")
    return digits_held_out(teacher.spec) if teacher.name == DIGITS_VIT and not checkpoint else None


def open_val_data(
    path: Path | str,
    spec: InputSpec,
    class_map: Path | str | None = None,
    image_column: str | None = None,
    label_column: str | None = None,
) -> ValData:
    """An image folder (a folder a class), a Parquet file in the Hugging Face layout (`image.bytes`, `label`), or a
    folder of such files.

    `class_map` is a text file with one folder name a line in class order; without it the folders, in the order of
    their names, are the classes and there must be as many as the teacher has. The columns are those of a Parquet file.

    Raises `InputError` for a path, class map, label or column that cannot be used.
    """
    path = Path(path)
    if not path.exists():
        raise InputError(f"validation data {str(path)!r} does not exist: give an image folder or a Parquet file.")
    files = parquet_files(path)
    if not files:
        if image_column or label_column:
            raise InputError(f"{str(path)!r} is an image folder, which has no columns: leave their names out.")
        found = read_folder(path, spec.num_classes, None if class_map is None else Path(class_map))
        pictures = [Picture(file, label, f"picture {str(file)!r}") for file, label in found.pictures]
        return ValData(len(pictures), lambda: pictures, transform(spec), found.left_out, found.fingerprint)
    if class_map is not None:
        raise InputError(
            f"class map {str(class_map)!r} does not go with the Parquet file {str(files[0])!r}, whose labels are "
            "numbers: leave --class-map out."
        )
    table = open_table(files, spec.num_classes, image_column, label_column)
    return ValData(
        len(table.labels), lambda: (Picture(*row) for row in table.rows()), transform(spec), (), table.fingerprint
    )
