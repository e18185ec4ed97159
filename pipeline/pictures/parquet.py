"""Pictures in Parquet files as Hugging Face datasets store them: a struct with `bytes`, and a whole number."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from inversion.errors import InputError
from pipeline.pictures.folders import file_state

IMAGE_COLUMNS = ("image", "img")
LABEL_COLUMNS = ("label", "labels")
AT_ONCE = 64
SPLIT = re.compile(r"(.+?)-\d+-of-\d+$")
"""A shard's name, as in validation-00000-of-00014."""


@dataclass(frozen=True)
class Table:
    """Files that hold one table together; `labels` are those of all rows."""

    files: tuple[Path, ...]
    image: str
    label: str
    labels: tuple[int, ...]
    fingerprint: str

    def rows(self) -> Iterator[tuple[bytes, int, str]]:
        """(the picture's file, its label, what an error calls it) of each row."""
        for path in self.files:
            yield from _rows(path, self.image, self.label)


def parquet_files(path: Path) -> tuple[Path, ...]:
    """The Parquet files that `path` names: itself, or the shards of one split in a folder; none where it is neither."""
    if not path.is_dir():
        return (path,)
    files = tuple(sorted(each for each in path.glob("*.parquet") if each.is_file() and not each.name.startswith(".")))
    splits = {match[1] if (match := SPLIT.fullmatch(each.stem)) else "" for each in files}
    if len(splits) > 1:
        names = ", ".join(sorted(split or "others" for split in splits))
        raise InputError(
            f"{str(path)!r} holds the Parquet files of several splits ({names}): put those of one split into a folder."
        )
    return files


def open_table(files: Sequence[Path], num_classes: int, image: str | None = None, label: str | None = None) -> Table:
    """The table in `files`, once columns and labels are known to be usable; columns are found where none is named.

    Raises `InputError` for columns, labels, or files that cannot be used.
    """
    labels: list[int] = []
    digest, chosen = hashlib.sha256(), ("", "")
    for path in files:
        try:
            with pq.ParquetFile(path) as file:
                here = _columns(path, file.schema_arrow, image, label)
                found = file.read([here[1]])[here[1]].to_pylist()
        except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
            raise InputError(
                f"validation data {str(path)!r} is not a whole Parquet file: give an image folder or a Parquet file."
            ) from error
        if labels and here != chosen:
            raise InputError(f"{str(path)!r} has other columns than {str(files[0])!r}: give the files of one table.")
        _require_labels(path, found, num_classes)
        chosen = here
        labels += found
        digest.update(f"{file_state(path)} {here}\n".encode())
    if not labels:
        raise InputError(f"validation data {str(files[0])!r} has no rows: give a Parquet file with pictures.")
    return Table(tuple(files), *chosen, tuple(labels), digest.hexdigest())


def _require_labels(path: Path, labels: Sequence[int | None], num_classes: int) -> None:
    for row, label in enumerate(labels):
        if label is None or not 0 <= label < num_classes:
            raise InputError(
                f"row {row} of {str(path)!r} has label {label}, the teacher's classes are 0..{num_classes - 1}: "
                "give the data, or the teacher, that belong together."
            )


def _columns(path: Path, schema: pa.Schema, image: str | None, label: str | None) -> tuple[str, str]:
    pictures = (image,) if image else IMAGE_COLUMNS
    numbers = (label,) if label else LABEL_COLUMNS
    for picture in pictures:
        for number in numbers:
            if _is_picture(schema, picture) and _is_number(schema, number):
                return picture, number
    raise InputError(
        f"Parquet file {str(path)!r} has the columns {', '.join(schema.names)}: it needs {_either(pictures)} (a struct "
        f"with `bytes`) and {_either(numbers)} (whole numbers), as Hugging Face datasets store them; name others with "
        "--image-column and --label-column."
    )


def _either(names: Sequence[str]) -> str:
    return " or ".join(f"`{name}`" for name in names)


def _is_picture(schema: pa.Schema, name: str) -> bool:
    kind = schema.field(name).type if name in schema.names else None
    return kind is not None and pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0


def _is_number(schema: pa.Schema, name: str) -> bool:
    return name in schema.names and pa.types.is_integer(schema.field(name).type)


def _rows(path: Path, image: str, label: str) -> Iterator[tuple[bytes, int, str]]:
    row = 0
    try:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(AT_ONCE, columns=[image, label]):
                for item in batch.to_pylist():
                    name = f"row {row} of {str(path)!r}"
                    yield _bytes(item[image], name), item[label], name
                    row += 1
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise InputError(f"validation data {str(path)!r} is damaged behind row {row}: copy it again.") from error


def _bytes(cell: dict[str, object] | None, name: str) -> bytes:
    """The picture in a cell; `InputError` where it only says where one lies."""
    if cell and isinstance(picture := cell["bytes"], bytes) and picture:
        return picture
    if cell and cell.get("path"):
        raise InputError(
            f"{name} holds the path {cell['path']!r} and no picture: store the pictures themselves in the file, or "
            "give an image folder."
        )
    raise InputError(f"{name} holds no picture: remove the row.")
