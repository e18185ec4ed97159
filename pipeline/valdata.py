"""Real pictures with labels, for validation alone: the built-in digits, an image folder, a Parquet file."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from itertools import islice
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image
from timm.data.readers.reader_image_folder import find_images_and_targets
from torch import Tensor

from inversion.errors import InputError
from inversion.teacher import DIGITS_VIT, InputSpec, Teacher
from pipeline.preprocess import transform

DIGITS_HELD_OUT = 500
IMAGE_COLUMNS = ("image", "img")
LABEL_COLUMN = "label"
BATCH = 64
DECODERS = 2


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
    An unreadable picture raises `InputError` when its batch is reached.
    """

    count: int
    pictures: Callable[[], Iterable[Picture]]
    transform: Callable[[Image.Image], Tensor]

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return self.batches()

    def batches(self, size: int = BATCH) -> Iterator[tuple[Tensor, Tensor]]:
        """Batches of `size`, the last one shorter."""
        remaining = iter(self.pictures())
        with ThreadPoolExecutor(DECODERS) as pool:
            while part := list(islice(remaining, size)):
                images = torch.stack(list(pool.map(self._read, part)))
                yield images, torch.tensor([picture.label for picture in part])

    def _read(self, picture: Picture) -> Tensor:
        if isinstance(picture.source, Image.Image):
            return self.transform(picture.source)
        source = io.BytesIO(picture.source) if isinstance(picture.source, bytes) else picture.source
        # Pillow's codecs raise many classes for a broken file, SyntaxError among them
        try:
            with Image.open(source) as image:
                return self.transform(image)
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
    name: str, checkpoint: Path | str | None, val_data: str | None, class_map: str | None, teacher: Teacher
) -> ValData | None:
    """The pictures that judge a result and do nothing else: `val_data`, or the built-in teacher's own."""
    if val_data is not None:
        return open_val_data(val_data, teacher.spec, class_map)
    if class_map is not None:
        raise InputError(f"class map {class_map!r} needs pictures: add --val-data.")
    return digits_held_out(teacher.spec) if name == DIGITS_VIT and not checkpoint else None


def open_val_data(path: Path | str, spec: InputSpec, class_map: Path | str | None = None) -> ValData:
    """An image folder (a folder a class) or a Parquet file in the Hugging Face layout (`image.bytes`, `label`).

    `class_map` is a text file with one folder name a line in class order; without it the folders, in natural
    order, are the classes and there must be as many as the teacher has.

    Raises `InputError` for a path, class map, label or column that cannot be used.
    """
    path = Path(path)
    if path.is_dir():
        samples = _folder_pictures(path, spec.num_classes, None if class_map is None else Path(class_map))
        return ValData(len(samples), lambda: samples, transform(spec))
    if not path.is_file():
        raise InputError(f"validation data {str(path)!r} does not exist: give an image folder or a Parquet file.")
    if class_map is not None:
        raise InputError(
            f"class map {str(class_map)!r} does not go with the Parquet file {str(path)!r}, whose labels are numbers: "
            "leave --class-map out."
        )
    count, column = _check_parquet(path, spec.num_classes)
    return ValData(count, lambda: _parquet_pictures(path, column), transform(spec))


def _folder_pictures(folder: Path, num_classes: int, class_map: Path | None) -> list[Picture]:
    found, numbers = find_images_and_targets(str(folder))
    if not found:
        raise InputError(f"folder {str(folder)!r} holds no picture: give a folder that holds one folder a class.")
    if "" in numbers:
        loose = next(name for name, number in found if number == numbers[""])
        raise InputError(f"picture {loose!r} lies in no class folder: move it into the folder of its class.")
    if class_map is not None:
        classes = read_class_map(class_map, num_classes)
        unknown = next((name for name in numbers if name not in classes), None)
        if unknown is not None:
            raise InputError(
                f"class folder {unknown!r} is not in class map {str(class_map)!r}: add its line, or remove the folder."
            )
    elif len(numbers) != num_classes:
        raise InputError(
            f"{str(folder)!r} holds {len(numbers)} class folders with pictures, the teacher has {num_classes} classes: "
            "give --class-map FILE with one folder name a line in class order."
        )
    else:
        classes = numbers
    names = {number: name for name, number in numbers.items()}
    return [Picture(Path(file), classes[names[number]], f"picture {file!r}") for file, number in sorted(found)]


def read_class_map(path: Path, num_classes: int) -> dict[str, int]:
    """Folder name -> class. A line's number is its class, so a blank line counts too, as timm counts it."""
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(
            f"class map {str(path)!r} cannot be read as text: give a file with one folder name a line in class order."
        ) from error
    classes: dict[str, int] = {}
    for number, name in enumerate(lines):
        if name in classes:
            raise InputError(f"class map {str(path)!r} names {name!r} twice: give each class one line.")
        if name:
            classes[name] = number
    if not classes or max(classes.values()) >= num_classes:
        raise InputError(
            f"class map {str(path)!r} names {len(classes)} classes, the teacher has {num_classes}: "
            "give the map, or the teacher, that belongs to this data."
        )
    return classes


def _check_parquet(path: Path, num_classes: int) -> tuple[int, str]:
    """Row count and name of the picture column, once columns and labels are known to be usable."""
    try:
        with pq.ParquetFile(path) as file:
            column = _image_column(path, file.schema_arrow)
            labels = file.read([LABEL_COLUMN])[LABEL_COLUMN]
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise InputError(
            f"validation data {str(path)!r} is not a whole Parquet file: give an image folder or a Parquet file."
        ) from error
    if not len(labels):
        raise InputError(f"validation data {str(path)!r} has no rows: give a Parquet file with pictures.")
    for row, label in enumerate(labels.to_pylist()):
        if label is None or not 0 <= label < num_classes:
            raise InputError(
                f"row {row} of {str(path)!r} has label {label}, the teacher's classes are 0..{num_classes - 1}: "
                "give the data, or the teacher, that belong together."
            )
    return len(labels), column


def _image_column(path: Path, schema: pa.Schema) -> str:
    for name in IMAGE_COLUMNS:
        kind = schema.field(name).type if name in schema.names else None
        if kind is None or not pa.types.is_struct(kind) or kind.get_field_index("bytes") < 0:
            continue
        if LABEL_COLUMN in schema.names and pa.types.is_integer(schema.field(LABEL_COLUMN).type):
            return name
    raise InputError(
        f"Parquet file {str(path)!r} has the columns {', '.join(schema.names)}: it needs `image` (a struct with "
        "`bytes`) and `label` (whole numbers), as Hugging Face datasets store them."
    )


def _parquet_pictures(path: Path, column: str) -> Iterator[Picture]:
    row = 0
    try:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(BATCH, columns=[f"{column}.bytes", LABEL_COLUMN]):
                for item in batch.to_pylist():
                    picture = item[column] and item[column]["bytes"]
                    yield Picture(picture or b"", item[LABEL_COLUMN], f"row {row} of {str(path)!r}")
                    row += 1
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise InputError(f"validation data {str(path)!r} is damaged behind row {row}: copy it again.") from error
