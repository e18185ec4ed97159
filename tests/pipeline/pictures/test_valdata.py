"""Validation data: right pixels, right labels, fixed order; every bad input gets its sentence."""

import hashlib
import io
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from inversion.errors import InputError
from inversion.teacher import InputSpec
from pipeline.pictures.preprocess import transform
from pipeline.pictures.valdata import ValData, digits_held_out, digits_split, open_val_data

SPEC = InputSpec((16, 16), (0.5,) * 3, (0.5,) * 3, "bicubic", 1.0, 3)
DIGITS = InputSpec((32, 32), (0.5,), (0.5,), "bicubic", 1.0, 10)
HELD_SHA256 = "08deb87fe675b2fbf31caaabb49e9876c117dc76d3aeebccf9cbbe40f1eb755e"


def picture(number: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(number).integers(0, 256, (20, 24, 3), dtype=np.uint8))


def png(number: int) -> bytes:
    buffer = io.BytesIO()
    picture(number).save(buffer, "PNG")
    return buffer.getvalue()


def folder(root: Path, names: tuple[str, ...] = ("n1", "n2", "n10"), each: int = 2) -> Path:
    for index, name in enumerate(names):
        (root / name).mkdir(parents=True)
        for number in range(each):
            (root / name / f"{number}.png").write_bytes(png(index * each + number))
    return root


def parquet(path: Path, column: str = "image", labels: tuple[int | None, ...] = (2, 0, 1, 1, 0)) -> Path:
    rows = [{"bytes": png(number), "path": None} for number in range(len(labels))]
    pq.write_table(pa.table({column: rows, "label": labels}), path, row_group_size=2)
    return path


def everything(data: ValData, size: int = 64) -> tuple[torch.Tensor, torch.Tensor]:
    images, labels = zip(*data.batches(size), strict=True)
    return torch.cat(images), torch.cat(labels)


def class_map(path: Path, *names: str) -> Path:
    path.write_text("\n".join(names) + "\n")
    return path


def refusal(path: Path, spec: InputSpec = SPEC, names: Path | None = None) -> str:
    """The one sentence with which this data is refused."""
    with pytest.raises(InputError) as caught:
        list(open_val_data(path, spec, names))
    text = str(caught.value)
    assert text.endswith(".")
    assert "\n" not in text
    return text


def test_digits_split_never_changes() -> None:
    """The held-out digits are the same 500 on every machine and version, or the teacher was trained on them."""
    train, train_labels, held, held_labels = digits_split()
    assert train.shape == (1297, 8, 8)
    assert held.shape == (500, 8, 8)
    assert hashlib.sha256(held.tobytes() + held_labels.tobytes()).hexdigest() == HELD_SHA256
    assert len(train_labels) == 1297


def test_digits_split_is_stratified_and_disjoint() -> None:
    """Each digit's share of the held-out part is its share of the whole, to one picture, and no picture is in both."""
    train, train_labels, held, held_labels = digits_split()
    counts = np.bincount(held_labels, minlength=10)
    whole = counts + np.bincount(train_labels, minlength=10)
    assert np.abs(counts - whole * 500 / 1797).max() <= 1
    assert not {part.tobytes() for part in train} & {part.tobytes() for part in held}


def test_digits_held_out_is_prepared_for_the_teacher() -> None:
    """The 500 arrive normalised, 32x32, in the split's order."""
    data = digits_held_out(DIGITS)
    images, labels = everything(data)
    _, _, pictures, expected = digits_split()
    assert data.count == len(data) == 500
    assert images.shape == (500, 1, 32, 32)
    assert images.dtype == torch.float32
    assert labels.tolist() == expected.tolist()
    assert torch.equal(images[7], transform(DIGITS)(Image.fromarray(pictures[7])))
    assert -1 <= float(images.min()) < float(images.max()) <= 1


def test_digits_need_ten_classes() -> None:
    """The digits are refused for a teacher that knows other classes."""
    with pytest.raises(InputError, match="10 classes, the teacher 1000: give --val-data"):
        digits_held_out(InputSpec((224, 224), (0.5,) * 3, (0.5,) * 3, "bicubic", 0.9, 1000))


def test_folder_without_class_map_takes_the_order_of_names(tmp_path: Path) -> None:
    """Folders are classes in the order of their names, where natural and plain order are the same."""
    data = open_val_data(folder(tmp_path, ("n1", "n2", "n3")), SPEC)
    images, labels = everything(data)
    paths = sorted(tmp_path.glob("*/*.png"))
    assert data.count == 6
    assert labels.tolist() == [{"n1": 0, "n2": 1, "n3": 2}[path.parent.name] for path in paths]
    for image, path in zip(images, paths, strict=True):
        assert torch.equal(image, transform(SPEC)(Image.open(path)))


def test_folder_with_class_map(tmp_path: Path) -> None:
    """The class map's line numbers are the labels, and classes without a folder are no error."""
    names = class_map(tmp_path / "map.txt", "n10", "other", "n1")
    data = open_val_data(folder(tmp_path / "data", ("n1", "n10")), SPEC, names)
    assert everything(data)[1].tolist() == [2, 2, 0, 0]


@pytest.mark.parametrize("column", ["image", "img"])
def test_parquet(tmp_path: Path, column: str) -> None:
    """A Hugging Face Parquet file gives its rows in order, under either name of the picture column."""
    data = open_val_data(parquet(tmp_path / "a.parquet", column), SPEC)
    images, labels = everything(data)
    assert data.count == 5
    assert labels.tolist() == [2, 0, 1, 1, 0]
    assert labels.dtype == torch.int64
    assert all(torch.equal(image, transform(SPEC)(picture(row))) for row, image in enumerate(images))


def test_order_and_pixels_do_not_depend_on_the_batch(tmp_path: Path) -> None:
    """Any batch size, and a second pass, give the same pictures in the same order; a batch is never larger."""
    data = open_val_data(parquet(tmp_path / "a.parquet"), SPEC)
    once, twice = everything(data), everything(data, 2)
    assert torch.equal(once[0], twice[0])
    assert torch.equal(once[1], twice[1])
    assert [len(labels) for _, labels in data.batches(2)] == [2, 2, 1]


def test_path_missing(tmp_path: Path) -> None:
    """A path that is not there is named."""
    assert "/none' does not exist: give an image folder or a Parquet file" in refusal(tmp_path / "none")


def test_folder_without_pictures(tmp_path: Path) -> None:
    """An empty folder is refused, empty class folders or not."""
    (tmp_path / "cat").mkdir()
    assert "holds no picture: give a folder that holds one folder a class" in refusal(tmp_path)


def test_picture_outside_class_folders(tmp_path: Path) -> None:
    """A picture without a class is named, not counted as a class of its own."""
    folder(tmp_path)
    (tmp_path / "loose.png").write_bytes(png(0))
    assert "loose.png' lies in no class folder: move it" in refusal(tmp_path)


@pytest.mark.parametrize("classes", [2, 4])
def test_class_count_without_class_map(tmp_path: Path, classes: int) -> None:
    """Without a class map, more or fewer folders than classes is refused: labels would be wrong in silence."""
    spec = InputSpec((16, 16), (0.5,) * 3, (0.5,) * 3, "bicubic", 1.0, classes)
    text = refusal(folder(tmp_path), spec)
    assert f"3 class folders, the teacher has {classes} classes: give --class-map" in text


def test_class_folder_not_in_class_map(tmp_path: Path) -> None:
    """A folder that the map lacks is named, not skipped."""
    names = class_map(tmp_path / "map.txt", "n1", "n2")
    assert "class folder 'n10' is not in class map" in refusal(folder(tmp_path / "data"), names=names)


def test_class_map_with_more_classes_than_the_teacher(tmp_path: Path) -> None:
    """A map for another teacher is refused with both counts."""
    names = class_map(tmp_path / "map.txt", "n1", "n2", "n10", "n11")
    assert "names 4 classes, the teacher has 3" in refusal(folder(tmp_path / "data"), names=names)


def test_class_map_missing_binary_empty_or_doubled(tmp_path: Path) -> None:
    """A class map that is no list of distinct names is refused."""
    data = folder(tmp_path / "data")
    assert "none.txt' cannot be read as text" in refusal(data, names=tmp_path / "none.txt")
    (tmp_path / "binary.txt").write_bytes(b"\xff\xfe\x00")
    assert "binary.txt' cannot be read as text" in refusal(data, names=tmp_path / "binary.txt")
    assert "names 0 classes" in refusal(data, names=class_map(tmp_path / "empty.txt"))
    assert "names 'n1' twice" in refusal(data, names=class_map(tmp_path / "twice.txt", "n1", "n1"))


def test_class_map_with_parquet(tmp_path: Path) -> None:
    """A class map beside numbered labels would be ignored, so it is refused."""
    names = class_map(tmp_path / "map.txt", "n1", "n2", "n10")
    assert "leave --class-map out" in refusal(parquet(tmp_path / "a.parquet"), names=names)


@pytest.mark.parametrize("label", [3, -1, None])
def test_label_out_of_range(tmp_path: Path, label: int | None) -> None:
    """A label that the teacher does not have is named with its row, before anything is decoded."""
    path = parquet(tmp_path / "a.parquet", labels=(0, 1, label))
    with pytest.raises(InputError, match=rf"row 2 of .* has label {label}, the teacher's classes are 0\.\.2"):
        open_val_data(path, SPEC)


def test_not_a_parquet(tmp_path: Path) -> None:
    """Another file, or half of one, is called what it is not."""
    (tmp_path / "a.parquet").write_bytes(b"PAR1 no")
    assert "is not a whole Parquet file" in refusal(tmp_path / "a.parquet")
    whole = parquet(tmp_path / "b.parquet").read_bytes()
    (tmp_path / "b.parquet").write_bytes(whole[: len(whole) // 2])
    assert "is not a whole Parquet file" in refusal(tmp_path / "b.parquet")


@pytest.mark.parametrize(
    "columns",
    [
        {"picture": [{"bytes": b""}], "label": [0]},
        {"image": [{"bytes": b""}], "target": [0]},
        {"image": [b""], "label": [0]},
        {"image": [{"bytes": b""}], "label": ["cat"]},
    ],
)
def test_parquet_of_another_layout(tmp_path: Path, columns: dict[str, list[object]]) -> None:
    """A Parquet file without `image.bytes` and a numbered `label` is refused with the columns it has."""
    pq.write_table(pa.table(columns), tmp_path / "a.parquet")
    text = refusal(tmp_path / "a.parquet")
    assert f"has the columns {', '.join(columns)}: it needs `image`" in text


def test_parquet_without_rows(tmp_path: Path) -> None:
    """A Parquet file with no rows is refused."""
    path = parquet(tmp_path / "a.parquet")
    pq.write_table(pq.read_table(path).slice(0, 0), path)
    assert "has no rows" in refusal(path)


def test_unreadable_picture_is_named(tmp_path: Path) -> None:
    """A broken picture is named by its path, or its row."""
    folder(tmp_path / "data", ("n1", "n2", "n3"))
    (tmp_path / "data" / "n2" / "1.png").write_bytes(png(0)[:200])
    assert "n2/1.png' cannot be read as a picture" in refusal(tmp_path / "data")
    rows = [{"bytes": png(0), "path": "a"}, {"bytes": None, "path": "b"}]
    pq.write_table(pa.table({"image": rows, "label": [0, 1]}), tmp_path / "a.parquet")
    assert "row 1 of" in refusal(tmp_path / "a.parquet")
