"""Pictures as a model takes them, by its own preprocess.json: dead leaves, and real ones. Needs no torch."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import onnx
from PIL import Image

from export.edge.backend import Runtime
from inversion.drawing import NumpyDice, draw_leaves
from inversion.errors import InputError
from pipeline.deploy.classify import RESAMPLING, prepare
from pipeline.pictures.folders import read_folder
from pipeline.recipe.recipe import PictureSource

Array = npt.NDArray[Any]
Steps = dict[str, Any]
"""preprocess.json."""
T = TypeVar("T")

AT_ONCE = 25
MOST_SIDE = 8192
STEPS = "preprocess.json"
CHANNELS = {"L": 1, "RGB": 3}


@dataclass(frozen=True)
class Prepared:
    """`count` pictures of one kind; `batches` gives them as the model takes them, [B, ...]. `labels` [count] are their
    classes where they are known; `left_out` says in sentences what lay beside them and is no picture."""

    kind: str
    count: int
    batches: Callable[[], Iterable[Array]]
    labels: npt.NDArray[np.int64] | None = None
    left_out: tuple[str, ...] = ()


def steps_of(model: Path) -> Steps:
    """What is done to a picture before `model`, as its metadata or the preprocess.json beside it says; `InputError`
    where neither does."""
    told = metadata_of(model).get("preprocess")
    beside = model.resolve().parent / STEPS
    try:
        steps = json.loads(told or beside.read_text(encoding="utf-8"))
        _require_sound(steps)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{str(model)!r} does not say how pictures enter it: put the {STEPS} of its run beside it."
        ) from error
    return dict(steps)


def _require_sound(steps: Steps) -> None:
    """Raises `ValueError` and its like where a picture could not be prepared so, or would fill the memory."""
    channels, height, width = shape_of(steps)
    shorter = steps["resize"]["shorter_side"]
    normalise = steps.get("normalise", {"mean": [0.0] * channels, "std": [1.0] * channels})
    mean, std = (np.array(normalise[key], np.float32) for key in ("mean", "std"))
    sound = (
        1 <= height <= shorter <= MOST_SIDE and 1 <= width <= shorter and steps["resize"]["interpolation"] in RESAMPLING
    )
    if not (sound and mean.shape == std.shape == (channels,) and np.isfinite(mean).all() and (std > 0).all()):
        raise ValueError("no picture can be prepared so")


def require_fit(steps: Steps, runtime: Runtime, model: Path) -> None:
    """Raises `InputError` where the pictures that `steps` make are not those that `model`, open in `runtime`, takes."""
    (channels, height, width), (shape, *others) = shape_of(steps), runtime.inputs.values()
    made = (channels, height, width) if "normalise" in steps else (height, width, channels)
    if others or shape[1:] != made:
        raise InputError(
            f"{str(model)!r} takes {runtime.inputs}, and its {STEPS} makes pictures of {made}: put that of its run "
            "beside it."
        )


def metadata_of(model: Path) -> dict[str, str]:
    """What an ONNX file says of itself."""
    return {entry.key: entry.value for entry in onnx.load(model, load_external_data=False).metadata_props}


def shape_of(steps: Steps) -> tuple[int, int, int]:
    """Channels, height and width of a prepared picture."""
    return CHANNELS[steps["colour"]["mode"]], int(steps["crop"]["height"]), int(steps["crop"]["width"])


def leaves(steps: Steps, count: int, seed: int) -> Prepared:
    """`count` dead leaves. Each depends on `seed` and its number alone; they are not those of `inversion.leaves`, whose
    numbers are torch's."""
    shape = shape_of(steps)
    return Prepared("leaves", count, lambda: _batches(range(count), lambda number: _leaf(steps, shape, seed, number)))


def real(source: PictureSource, steps: Steps, classes: int) -> Prepared:
    """The pictures that `source` names: a folder a class or Parquet, with labels; or loose in a folder, without.

    Raises `InputError` for what is not there or cannot be read, at once or when its batch is reached.
    """
    assert source.val_data is not None
    path, class_map = Path(source.val_data), source.class_map
    if not path.exists():
        raise InputError(f"validation data {str(path)!r} does not exist: give a folder of pictures or a Parquet file.")
    if not path.is_dir() or any(path.glob("*.parquet")):
        return _of_parquet(path, source, steps, classes)
    known = Image.registered_extensions()
    loose = [each for each in sorted(path.iterdir()) if each.is_file() and each.suffix.lower() in known]
    if loose and class_map is None:
        return Prepared("pictures", len(loose), lambda: _batches(loose, lambda file: _picture(file, str(file), steps)))
    found = read_folder(path, classes, None if class_map is None else Path(class_map))
    files = [file for file, _ in found.pictures]
    labels = np.array([label for _, label in found.pictures], np.int64)
    batches = lambda: _batches(files, lambda file: _picture(file, str(file), steps))  # noqa: E731
    return Prepared("real", len(files), batches, labels, found.left_out)


def _of_parquet(path: Path, source: PictureSource, steps: Steps, classes: int) -> Prepared:
    from pipeline.pictures.parquet import open_table, parquet_files  # pyarrow is none of an edge install's packages

    table = open_table(parquet_files(path), classes, source.image_column, source.label_column)

    def batches() -> Iterator[Array]:
        return _batches(table.rows(), lambda row: _picture(io.BytesIO(row[0]), row[2], steps))

    return Prepared("real", len(table.labels), batches, np.array(table.labels, np.int64))


def _batches(things: Iterable[T], made: Callable[[T], Array]) -> Iterator[Array]:
    remaining = iter(things)
    while part := list(islice(remaining, AT_ONCE)):
        yield np.stack([made(each) for each in part])


def _picture(file: Path | io.BytesIO, name: str, steps: Steps) -> Array:
    # Pillow's codecs raise many classes for a broken file, SyntaxError among them
    try:
        with Image.open(file) as picture:
            return prepare(picture, steps)
    except Exception as error:
        raise InputError(f"{name!r} cannot be read as a picture ({error}): replace or remove it.") from error


def _leaf(steps: Steps, shape: tuple[int, int, int], seed: int, number: int) -> Array:
    picture = draw_leaves(shape, NumpyDice((seed, number))).clip(0, 1)
    if "normalise" not in steps:  # the model takes bytes [height, width, channels]
        return np.rint(255 * picture).astype(np.uint8).transpose(1, 2, 0)
    mean, std = (np.array(steps["normalise"][key], np.float32).reshape(-1, 1, 1) for key in ("mean", "std"))
    return np.asarray((picture - mean) / std)
