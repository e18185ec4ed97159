"""Folders as people have them: hidden things, other formats, links, orders; and Parquet in its forms."""

from __future__ import annotations

import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from inversion.errors import InputError
from inversion.teacher import InputSpec
from pipeline.pictures.valdata import open_val_data
from tests.pipeline.pictures.test_valdata import SPEC, class_map, everything, folder, parquet, png, refusal


def spec(classes: int) -> InputSpec:
    return InputSpec((16, 16), (0.5,) * 3, (0.5,) * 3, "bicubic", 1.0, classes)


def test_two_orders_are_one_too_many(tmp_path: Path) -> None:
    """1..10 is 1, 10, 2 to torchvision and 1, 2, 3 to timm: a class map decides."""
    names = tuple(map(str, range(1, 11)))
    data = folder(tmp_path / "data", names, each=1)
    text = refusal(data, spec(10))
    assert "can be ordered in two ways, '10' before '2' (plain, as torchvision does)" in text
    assert "give --class-map FILE" in text
    found = open_val_data(data, spec(10), class_map(tmp_path / "map.txt", *names))
    assert sorted(everything(found)[1].tolist()) == list(range(10))
    assert "'B' before 'a'" in refusal(folder(tmp_path / "capitals", ("a", "B")), spec(2))


def test_all_formats_are_read(tmp_path: Path) -> None:
    """By their names, or without any by what they hold; each counts."""
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    picture = Image.new("RGB", (20, 20), (9, 99, 199))
    for end in ("png", "jpg", "JPEG", "webp", "bmp", "tif", "gif", "ppm"):
        picture.save(tmp_path / "a" / f"0.{end}")
    (tmp_path / "b" / "ILSVRC2012_val_1").write_bytes(png(0))
    (tmp_path / "b" / "notes.txt").write_text("not one")
    data = open_val_data(tmp_path, spec(2))
    assert everything(data)[1].tolist() == [0] * 8 + [1]
    assert data.left_out == (f"left out of {str(tmp_path)!r}: 1 that are no pictures, as 'b/notes.txt'.",)


def test_what_is_hidden_is_no_class(tmp_path: Path) -> None:
    """Nor a picture; it is left out, and said with its number."""
    data = folder(tmp_path / "data", ("a", "b", "c"))
    for name in (".ipynb_checkpoints", "__MACOSX", "@eaDir"):
        (data / name).mkdir()
        (data / name / "0.png").write_bytes(png(0))
    (data / "a" / "._0.png").write_bytes(b"resource fork")
    (data / "a" / "Thumbs.db").write_bytes(b"cache")
    found = open_val_data(data, SPEC)
    assert len(found) == 6
    assert "5 hidden or system files and folders" in found.left_out[0]
    (data / "c").rename(data / ".c")
    assert "holds 2 class folders, the teacher has 3 classes" in refusal(data)


def test_an_empty_class_keeps_its_number(tmp_path: Path) -> None:
    """Classes are folders, with pictures or not; that one has none is said."""
    data = folder(tmp_path, ("a", "c"))
    (data / "b").mkdir()
    found = open_val_data(data, SPEC)
    assert everything(found)[1].tolist() == [0, 0, 2, 2]
    assert found.left_out == ("1 class folders hold no picture, as 'b'.",)


def test_folders_in_class_folders_are_refused(tmp_path: Path) -> None:
    """train/cat and val/cat are two classes to some and one to others."""
    for split in ("train", "val"):
        folder(tmp_path / split, ("cat", "dog"), each=1)
    assert "lies two folders deep, and either may be its class" in refusal(tmp_path, spec(2))


def test_links_are_seen_as_the_reader_sees_them(tmp_path: Path) -> None:
    """Where links lead elsewhere, the fingerprint is another, though no link and no name changed."""
    store = folder(tmp_path / "store", ("x", "y", "z"), each=2)
    for name in ("x", "y", "z"):
        for path in (store / name).iterdir():
            os.utime(path, ns=(0, 0))
    (tmp_path / "data").mkdir()
    for name, target in zip("abc", "xyz", strict=True):
        (tmp_path / "data" / name).symlink_to(store / target)
    before = open_val_data(tmp_path / "data", SPEC)
    assert len(before) == 6
    assert open_val_data(tmp_path / "data", SPEC).fingerprint == before.fingerprint
    for old, new in (("x", "t"), ("y", "x"), ("t", "y")):
        (store / old).rename(store / new)
    assert open_val_data(tmp_path / "data", SPEC).fingerprint != before.fingerprint


def test_a_class_map_changes_the_fingerprint(tmp_path: Path) -> None:
    """Other classes for the same files are other data."""
    data = folder(tmp_path / "data", ("a", "b", "c"))
    prints = {
        open_val_data(data, SPEC, class_map(tmp_path / "m.txt", *order)).fingerprint for order in ("abc", "acb", "abc")
    }
    assert len(prints) == 2


def test_a_class_map_may_begin_with_a_byte_order_mark(tmp_path: Path) -> None:
    """As Windows editors write it."""
    (tmp_path / "map.txt").write_text("a\nb\n", encoding="utf-8-sig")
    data = folder(tmp_path / "data", ("a", "b"))
    assert everything(open_val_data(data, SPEC, tmp_path / "map.txt"))[1].tolist() == [0, 0, 1, 1]


def test_all_pictures_are_looked_at_before_work(tmp_path: Path) -> None:
    """`check` finds the one that ends early, of any format, without a pass through the model."""
    data = folder(tmp_path, ("a", "b", "c"))
    open_val_data(data, SPEC).check()
    Image.new("RGB", (400, 300), (9, 99, 199)).save(data / "c" / "9.jpg")
    whole = (data / "c" / "9.jpg").read_bytes()
    (data / "c" / "9.jpg").write_bytes(whole[: len(whole) // 2])
    done: list[int] = []
    with pytest.raises(InputError, match=r"c/9.jpg' cannot be read as a picture: replace or remove it"):
        open_val_data(data, SPEC).check(lambda _what, now, _total, _value: done.append(now))
    assert done == []


def test_a_folder_of_parquet_files_is_one_table(tmp_path: Path) -> None:
    """Its shards in order; splits that lie together are refused."""
    for number, labels in enumerate([(0, 1), (2,)]):
        parquet(tmp_path / f"test-0000{number}-of-00002.parquet", labels=labels)
    data = open_val_data(tmp_path, SPEC)
    assert everything(data)[1].tolist() == [0, 1, 2]
    parquet(tmp_path / "train-00000-of-00001.parquet")
    assert "several splits (test, train)" in refusal(tmp_path)


def test_columns_can_be_named(tmp_path: Path) -> None:
    """And a name that is not there is refused with those that are."""
    rows = [{"bytes": png(number), "path": None} for number in range(2)]
    pq.write_table(pa.table({"photo": rows, "fine_label": [2, 0], "label": [1, 1]}), tmp_path / "a.parquet")
    data = open_val_data(tmp_path / "a.parquet", SPEC, None, "photo", "fine_label")
    assert everything(data)[1].tolist() == [2, 0]
    with pytest.raises(InputError, match=r"has the columns photo, fine_label, label: it needs `photo`.* and `coarse`"):
        open_val_data(tmp_path / "a.parquet", SPEC, None, "photo", "coarse")


def test_a_row_with_a_path_alone_is_called_so(tmp_path: Path) -> None:
    """It is not unreadable: the picture lies elsewhere."""
    pq.write_table(pa.table({"image": [{"bytes": None, "path": "b.png"}], "label": [1]}), tmp_path / "a.parquet")
    assert "row 0 of" in refusal(tmp_path / "a.parquet")
    assert "holds the path 'b.png' and no picture" in refusal(tmp_path / "a.parquet")
