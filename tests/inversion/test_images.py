"""Sparse images on disk and in memory: nothing is lost, every patch has its place."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Generator, Tensor

from inversion.errors import InputError
from inversion.images import TYPES, SparseImages, join, load_images
from inversion.sparse import patchify

GRID, PATCH, CHANNELS = (2, 3), (4, 4), 2
METADATA = {"grid": "2x3", "patch_size": "4", "channels": "2", "method": "pri", "seed": "0", "teacher_sha256": "a" * 64}


def dense_pictures(count: int) -> Tensor:
    """[count, C, 8, 12], exact in float16 and nowhere 0."""
    values = torch.rand(count, CHANNELS, 8, 12, generator=Generator().manual_seed(0)) + 0.5
    return values.half().float()


def tiling(pictures: Tensor, parts: list[list[int]], first: int = 0) -> SparseImages:
    """Each picture cut into sparse images of the patches that `parts` names, padded to the longest."""
    longest, rows = max(map(len, parts)), []
    for number, patches in enumerate(patchify(pictures, PATCH), start=first):
        for stage, part in enumerate(parts, start=1):
            more = longest - len(part)
            rows.append(
                {
                    "patches": torch.nn.functional.pad(patches[part], (0, 0, 0, more)),
                    "kept": torch.tensor(part + [-1] * more, dtype=torch.int16),
                    "labels": torch.tensor(number % 10, dtype=torch.int32),
                    "stage": torch.tensor(stage, dtype=torch.int8),
                    "trajectory": torch.tensor(number, dtype=torch.int32),
                }
            )
    return SparseImages(**{name: torch.stack([row[name] for row in rows]) for name in TYPES}, metadata=METADATA)


ANOTHER = {"teacher_sha256": "b" * 64, "grid": "6x1", "patch_size": "2x8"}
RAGGED = [[5, 0], [1, 3], [2], [4]]


def test_shards_come_back_whole(tmp_path: Path) -> None:
    """Positions, labels, stages and strings are exact; pixels that float16 holds are, too."""
    images = tiling(dense_pictures(3), RAGGED)
    images.save(tmp_path / "a.safetensors")
    found = SparseImages.load(tmp_path / "a.safetensors")
    for name in TYPES:
        assert torch.equal(getattr(found, name), getattr(images, name))
    assert found.metadata == {**METADATA, "format": "patch-rebirth.images/1"}
    assert (found.grid, found.patch_size, len(found)) == (GRID, PATCH, 12)


def test_file_has_the_documented_types(tmp_path: Path) -> None:
    """A reader of the file alone finds five tensors, in the types that the format names, and string metadata."""
    path = tmp_path / "a.safetensors"
    tiling(dense_pictures(3), RAGGED).save(path)
    with safe_open(path, framework="pt") as file:
        found = {key: (file.get_tensor(key).dtype, tuple(file.get_tensor(key).shape)) for key in TYPES}
        assert set(file.keys()) == set(TYPES)
        assert file.metadata()["format"] == "patch-rebirth.images/1"
    assert found == {
        "patches": (torch.float16, (12, 2, 32)),
        "kept": (torch.int16, (12, 2)),
        "labels": (torch.int32, (12,)),
        "stage": (torch.int8, (12,)),
        "trajectory": (torch.int32, (12,)),
    }


def test_saving_what_was_loaded_gives_the_same_bytes(tmp_path: Path) -> None:
    """Load and save change nothing."""
    first, second = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    tiling(dense_pictures(2) / 3, RAGGED).save(first)
    SparseImages.load(first).save(second)
    assert first.read_bytes() == second.read_bytes()


@pytest.mark.parametrize(("text", "size"), [("4", (4, 4)), ("4x8", (4, 8))])
def test_patch_size_may_be_rectangular(text: str, size: tuple[int, int]) -> None:
    """One number is a square patch, two are height and width."""
    images = tiling(dense_pictures(1), RAGGED)
    assert replace(images, metadata={**METADATA, "patch_size": text}).patch_size == size


def test_mosaics_are_the_pictures() -> None:
    """The images of a trajectory, each patch in its place, are the dense picture they were cut from."""
    pictures = dense_pictures(3)
    assert torch.equal(tiling(pictures, RAGGED).mosaics(), pictures)


def test_mosaics_do_not_depend_on_row_order() -> None:
    """Rows in any order, and trajectories that start anywhere, give one mosaic a trajectory, in its order."""
    pictures = dense_pictures(3)
    images = tiling(pictures, RAGGED, first=40)
    shuffled = images[torch.randperm(len(images), generator=Generator().manual_seed(0))]
    assert torch.equal(shuffled.mosaics(), pictures)
    assert torch.equal(images[images.trajectory == 41].mosaics(), pictures[1:2])


def test_dense_leaves_absent_patches_at_zero() -> None:
    """Each row by itself: its patches in place, the mean colour elsewhere."""
    pictures = dense_pictures(1)
    dense = patchify(tiling(pictures, RAGGED).dense(), PATCH)
    whole = patchify(pictures, PATCH)[0]
    for row, part in zip(dense, RAGGED, strict=True):
        for position in range(6):
            assert torch.equal(row[position], whole[position] if position in part else torch.zeros(32))


def test_groups_hold_equally_many_patches() -> None:
    """Every row is in exactly one group; a group trims to a batch without padding."""
    images = tiling(dense_pictures(2), RAGGED)
    groups = list(images.by_count())
    assert sorted(torch.cat(groups).tolist()) == list(range(8))
    assert [images[rows].trimmed()[1].shape for rows in groups] == [(4, 1), (4, 2)]
    for rows in groups:
        patches, kept = images[rows].trimmed()
        assert kept.dtype == torch.int64
        assert int(kept.min()) >= 0
        assert patches.shape[:2] == kept.shape
        assert torch.equal(patches, images.patches[rows][:, : kept.shape[1]])


def test_joining_pads_to_the_longest() -> None:
    """Rows of several shards keep their patches; what is added is -1 and 0."""
    short, long = tiling(dense_pictures(1), [[0], [1]]), tiling(dense_pictures(1), [[0, 1, 2], [3]], first=1)
    both = join([short, long])
    assert both.kept.tolist() == [[0, -1, -1], [1, -1, -1], [0, 1, 2], [3, -1, -1]]
    assert torch.equal(both.patches[:2, :1], short.patches)
    assert not both.patches[both.kept < 0].any()
    assert both.trajectory.tolist() == [0, 0, 1, 1]


def test_a_folder_loads_in_order_of_shards(tmp_path: Path) -> None:
    """All shards' rows, by shard number, whatever else lies in the folder."""
    for number in (1, 0, 10):
        tiling(dense_pictures(1), RAGGED, first=number).save(tmp_path / f"shard-{number:05d}.safetensors")
    (tmp_path / ".shard-00002.safetensors.1.partial").write_bytes(b"x")
    (tmp_path / "notes.txt").write_text("x")
    assert load_images(tmp_path).trajectory.unique_consecutive().tolist() == [0, 1, 10]


def test_an_empty_folder_is_refused(tmp_path: Path) -> None:
    """No shard is no image."""
    for folder in (tmp_path, tmp_path / "missing"):
        message = f"{str(folder)!r} holds no shard-*.safetensors: make some with `pipeline invert`."
        with pytest.raises(InputError, match=f"^{re.escape(message)}$"):
            load_images(folder)


@pytest.mark.parametrize("key", ["teacher_sha256", "grid", "patch_size"])
def test_shards_that_do_not_belong_together_are_refused(tmp_path: Path, key: str) -> None:
    """One folder holds the images of one teacher."""
    images = tiling(dense_pictures(1), RAGGED)
    images.save(tmp_path / "shard-00000.safetensors")
    other = replace(images, metadata={**METADATA, key: ANOTHER[key]})
    other.save(tmp_path / "shard-00001.safetensors")
    with pytest.raises(InputError, match=rf"00001.safetensors' has another {key} than the first shard: keep one inv"):
        load_images(tmp_path)


def test_other_files_are_refused(tmp_path: Path) -> None:
    """A shard that is cut off, is noise, or holds something else is an `InputError` that says how to mend it."""
    good, path = tmp_path / "good", tmp_path / "shard-00000.safetensors"
    tiling(dense_pictures(1), RAGGED).save(good)
    tensors = {name: torch.zeros(1, 1, 1).to(dtype) for name, dtype in TYPES.items()}
    metadata = {**METADATA, "format": "patch-rebirth.images/1"}
    foreign = {
        "cut": lambda: path.write_bytes(good.read_bytes()[:-3]),
        "noise": lambda: path.write_bytes(bytes(range(256))),
        "without format": lambda: save_file(tensors, path),
        "other format": lambda: save_file(tensors, path, {"format": "patch-rebirth.images/2"}),
        "other types": lambda: save_file({**tensors, "patches": torch.zeros(1)}, path, metadata),
        "tensor missing": lambda: save_file({"kept": tensors["kept"]}, path, metadata),
        "tensor more": lambda: save_file({**tensors, "masks": torch.zeros(1)}, path, metadata),
    }
    for write in foreign.values():
        write()
        with pytest.raises(InputError, match=r"shard-00000.safetensors' .*: make it again with `pipeline invert`\.$"):
            SparseImages.load(path)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"kept": torch.zeros(4, 0)}, "the shapes of its tensors do not agree"),
        ({"labels": torch.zeros(3)}, "the shapes of its tensors do not agree"),
        ({"kept": torch.tensor([[0, 6], [1, 2], [3, 4], [5, -1]])}, "outside the grid of 2x3"),
        ({"kept": torch.tensor([[-1, 0], [1, 2], [3, 4], [5, -1]])}, "behind padding"),
        ({"labels": torch.tensor([0, 1, 2, -3])}, "a class is negative"),
        ({"patches": torch.full((4, 2, 32), torch.inf)}, "pixels are not finite numbers"),
        ({"metadata": {**METADATA, "grid": "2x9999999999"}}, "is none"),
        ({"metadata": {**METADATA, "grid": "900x900"}}, "it is all but empty"),
        ({"metadata": {**METADATA, "channels": "3"}}, "the shapes of its tensors do not agree"),
    ],
)
def test_a_shard_that_contradicts_itself_is_refused(tmp_path: Path, change: dict[str, Any], said: str) -> None:
    """Whole safetensors with tensors of the right types that no inversion makes; nothing is filled with them."""
    images = tiling(dense_pictures(1), RAGGED)
    replace(images, **change).save(tmp_path / "shard-00000.safetensors")
    with pytest.raises(InputError, match=said):
        load_images(tmp_path)
