"""A run's pictures: each patch where and as it was, nothing stale, and what cannot be drawn is said."""

import io
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image
from torch import Generator, Tensor

from inversion.confidence import target_confidence
from inversion.errors import InputError
from inversion.folder import PROGRESS_FORMAT
from inversion.images import TYPES, SparseImages, load_images
from inversion.inverter import invert_into
from inversion.job import Inversion
from inversion.shards import PROGRESS
from inversion.sparse import patchify, sparse_forward
from inversion.teacher import Teacher, load_teacher
from inversion.tensorfile import read_tensors, write_tensors
from pipeline.show.display import Display
from pipeline.show.gallery import (
    ABSENT,
    confidence_figure,
    contact_sheet,
    denormalise,
    gallery,
    mosaics_sheet,
    only,
    png,
    rebirth_sheet,
    rebirths,
    sparse_pictures,
    spread,
    stages_sheet,
)

GRID, PATCH = (2, 3), (4, 2)  # pictures of 8 by 6 pixels
RAGGED = [[5, 0], [1, 4], [2, 3]], [[0, 1], [2], [3, 4, 5]]
"""Patches of each stage, of even and of odd trajectories: an odd one's last stage holds more."""
ALL = ["stages.png", "mosaics.png", "rebirth.png", "confidence.png"]


class Listener(Display):
    """Keeps what is said, but for lines of progress."""

    def __init__(self) -> None:
        super().__init__(quiet=True)
        self.said: list[str] = []

    def say(self, text: str) -> None:
        if not text.startswith("  confidence: "):
            self.said.append(text)


def metadata(channels: int, method: str = "pri") -> dict[str, str]:
    mean, std = (" ".join(["0.5"] * channels), " ".join(["0.25"] * channels))
    return {
        "grid": "2x3", "patch_size": "4x2", "method": method, "mean": mean, "std": std, "teacher_sha256": "a" * 64,
        "format": "patch-rebirth.images/1",
    }  # fmt: skip


def canvases(trajectories: int, stages: int = 3, channels: int = 3) -> Tensor:
    """[v, R, C, 8, 6]: whole pictures at each detachment point, all different, exact in float16, inside 0..1."""
    pixels = torch.rand(stages, trajectories, channels, 8, 6, generator=Generator().manual_seed(0))
    return (pixels * 2 - 1).half().float()


def detached(canvas: Tensor, parts: tuple[list[list[int]], ...] = RAGGED, first: int = 0) -> SparseImages:
    """The images that leave `canvas` at each point, padded to the longest; target class 5, 6, ..."""
    rows = []
    for number in range(canvas.shape[1]):
        for stage, part in enumerate(parts[number % len(parts)], start=1):
            more = 6 - len(part)
            patches = patchify(canvas[stage - 1, number : number + 1], PATCH)[0, part]
            rows.append(
                {
                    "patches": torch.nn.functional.pad(patches, (0, 0, 0, more)),
                    "kept": torch.tensor(part + [-1] * more, dtype=torch.int16),
                    "labels": torch.tensor(number + 5, dtype=torch.int32),
                    "stage": torch.tensor(stage, dtype=torch.int8),
                    "trajectory": torch.tensor(number + first, dtype=torch.int32),
                }
            )
    tensors = {name: torch.stack([row[name] for row in rows]) for name in TYPES}
    return SparseImages(**tensors, metadata=metadata(canvas.shape[2], "pri" if len(parts[0]) > 1 else "smi"))


def drawn(axes: Axes) -> Tensor:
    """Pixels [C, H, W] of a panel."""
    pixels = torch.from_numpy(axes.images[0].get_array().data)
    return pixels.permute(2, 0, 1) if pixels.ndim == 3 else pixels.unsqueeze(0)


def titles(figure: Figure) -> list[str]:
    return [axes.get_title() for axes in figure.axes]


def shown(picture: Tensor, part: list[int]) -> Tensor:
    """Pixels [C, 8, 6] by definition: normalised `picture` in 0..1 at the patches of `part`, grey elsewhere."""
    found = torch.full_like(picture, ABSENT)
    for position in part:
        row, column = divmod(position, 3)
        place = slice(row * 4, row * 4 + 4), slice(column * 2, column * 2 + 2)
        found[:, *place] = picture[:, *place] * 0.25 + 0.5
    return found


@pytest.fixture(scope="module")
def teacher() -> Teacher:
    return load_teacher("digits_vit")


@pytest.fixture(scope="module")
def inverted(teacher: Teacher, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two shards of PRI, v=3: stages of 21, 21 and 22 patches."""
    folder = tmp_path_factory.mktemp("pri")
    invert_into(teacher, Inversion(images=24, batch=12, iterations=6, division_factor=3), folder)
    return folder


@pytest.fixture
def shards(inverted: Path, tmp_path: Path) -> Path:
    """A copy of `inverted` to spoil."""
    folder = tmp_path / "shards"
    folder.mkdir()
    for path in inverted.glob("*.safetensors"):
        (folder / path.name).write_bytes(path.read_bytes())
    return folder


def test_pixels_come_back_to_the_unit_range() -> None:
    """By each channel's own mean and std; what no real picture holds is clipped."""
    about = {"mean": "0.5 0.25", "std": "0.25 0.5"}
    pictures = torch.tensor([[-2.0, 0.0, 2.0, 3.0], [-0.5, 0.0, 1.5, -9.0]]).view(1, 2, 1, 4)
    assert denormalise(pictures, about).flatten(2).tolist() == [[[0.0, 0.5, 1.0, 1.0], [0.0, 0.25, 1.0, 0.0]]]


def test_absent_patches_are_grey() -> None:
    """Patches that an image holds stay exactly, all others are grey; padding is no patch, the last one least of all."""
    pictures = torch.rand(2, 3, 8, 6, generator=Generator().manual_seed(0))
    found = only(pictures, torch.tensor([[4, 0], [2, -1]], dtype=torch.int16), GRID)
    for picture, before, part in zip(found, pictures, ([0, 4], [2]), strict=True):
        patches, whole = patchify(picture[None], PATCH)[0], patchify(before[None], PATCH)[0]
        for position in range(6):
            assert torch.equal(patches[position], whole[position] if position in part else torch.full((24,), ABSENT))


def test_sparse_pictures_are_the_patches_in_place() -> None:
    """Of ragged images on a rectangular grid with rectangular patches."""
    canvas = canvases(2)
    expected = [shown(canvas[stage, number], part) for number in range(2) for stage, part in enumerate(RAGGED[number])]
    assert torch.equal(sparse_pictures(detached(canvas)), torch.stack(expected))


def test_rebirth_shows_the_detached_set_at_both_times() -> None:
    """Before, the patches that leave at t_k as they were at t_(k-1); after, as they left; in order, without t_1."""
    canvas = canvases(4)
    images = detached(canvas, first=40)
    images = images[torch.randperm(len(images), generator=Generator().manual_seed(1))]
    before, after = rebirths(images, canvas[:, [3, 1]].half(), torch.tensor([43, 41], dtype=torch.int32))
    assert after.trajectory.tolist() == before.trajectory.tolist() == [41, 41, 43, 43]
    assert after.stage.tolist() == before.stage.tolist() == [2, 3, 2, 3]
    for row, (number, stage) in enumerate([(1, 2), (1, 3), (3, 2), (3, 3)]):
        part = RAGGED[1][stage - 1]
        assert torch.equal(sparse_pictures(before)[row], shown(canvas[stage - 2, number], part))
        assert torch.equal(sparse_pictures(after)[row], shown(canvas[stage - 1, number], part))
    assert not before.patches[before.kept < 0].any()


def test_progress_of_an_inversion_is_what_it_detached(inverted: Path) -> None:
    """Read one point later, the pictures that inversion leaves hold exactly the patches of its images."""
    tensors, about = read_tensors(inverted / PROGRESS, PROGRESS_FORMAT, "")
    assert tensors["canvas"].shape == (3, 4, 1, 32, 32)
    images = load_images(inverted)
    at_the_time, after = rebirths(images, tensors["canvas"].roll(-1, 0), tensors["trajectory"])
    assert torch.equal(at_the_time.patches, after.patches)
    earlier, _ = rebirths(images, tensors["canvas"], tensors["trajectory"])
    assert (earlier.patches != after.patches).any(dim=(1, 2)).all()
    assert about["mean"] == images.metadata["mean"]


def test_confidence_is_the_teachers_in_each_images_class(teacher: Teacher, inverted: Path) -> None:
    """Whatever the number of patches and the order of rows; progress counts every image once."""
    images = load_images(inverted)
    images = images[torch.randint(len(images), (150,), generator=Generator().manual_seed(0))]
    steps: list[int] = []
    found = target_confidence(teacher, images, lambda _what, done, _total, _value: steps.append(done))
    counts = (images.kept >= 0).sum(1)
    assert steps == [64, int((counts == 21).sum()), 150]
    for row in range(len(images)):
        live = images.kept[row] >= 0
        logits = sparse_forward(teacher.model, images.patches[row, live][None], images.kept[row, live].long()[None])
        expected = float(logits.softmax(-1)[0, images.labels[row]])
        # a batch sums in another order than one image
        assert float(found[row]) == pytest.approx(expected, abs=1e-5)


def test_few_stages_stand_for_many() -> None:
    """All where they fit; else evenly apart, with both ends."""
    assert spread(torch.tensor([2, 1, 2, 3]), 3) == [1, 2, 3]
    assert spread(torch.tensor([4]), 16) == [4]
    assert spread(torch.arange(1, 197), 4) == [1, 66, 131, 196]


def test_stages_are_columns_and_trajectories_rows() -> None:
    """At most 8 trajectories; titles name the point and its patches, labels the class, numbers the confidence."""
    canvas = canvases(10)
    images, sure = detached(canvas, RAGGED[1:]), torch.arange(30) / 100
    order = torch.randperm(30, generator=Generator().manual_seed(0))
    figure = stages_sheet(images[order], sure[order])
    assert len(figure.axes) == 8 * 3
    assert titles(figure) == ["t1\n2 patches", "t2\n1 patches", "t3\n3 patches"] + [""] * 21
    assert [axes.get_ylabel() for axes in figure.axes[::3]] == [f"class {label}" for label in range(5, 13)]
    assert not any(axes.get_ylabel() for axes in figure.axes[1::3] + figure.axes[2::3])
    assert [axes.get_xlabel() for axes in figure.axes] == [f"{row / 100:.3f}" for row in range(24)]
    for row, axes in enumerate(figure.axes):
        number, stage = divmod(row, 3)
        assert torch.equal(drawn(axes), shown(canvas[stage, number], RAGGED[1][stage]))


def test_images_of_one_stage_are_wrapped() -> None:
    """DMI and SMI have one detachment point: at most 32 images, each titled with its class, no row of its own."""
    figure = stages_sheet(detached(canvases(40, stages=1), ([[0, 3]],)))
    assert titles(figure) == [f"class {label}" for label in range(5, 37)]
    assert len({round(axes.get_subplotspec().colspan.start) for axes in figure.axes}) == 8
    assert not any(axes.get_ylabel() or axes.get_xlabel() for axes in figure.axes)
    for few in (3, 11):
        found = stages_sheet(detached(canvases(few, stages=1), ([[0, 3]],)))
        assert titles(found) == [f"class {label}" for label in range(5, 5 + few)]


def test_mosaics_are_whole_pictures() -> None:
    """At most 32, titled with their class; each patch as it was when it left."""
    canvas = canvases(35)
    figure = mosaics_sheet(detached(canvas))
    assert titles(figure) == [f"class {label}" for label in range(5, 37)]
    for number, axes in enumerate(figure.axes):
        found = drawn(axes)
        for stage, part in enumerate(RAGGED[number % 2]):
            expected = shown(canvas[stage, number], part)
            assert torch.equal(only(found[None], torch.tensor([part]), GRID)[0], expected)


@pytest.mark.parametrize("channels", [1, 2])
def test_grey_pictures_are_grey(channels: int) -> None:
    """One channel is drawn from black to white, whatever the picture's own range; of two, their mean."""
    figure = mosaics_sheet(detached(canvases(2, channels=channels)))
    (picture,) = figure.axes[0].images
    assert (picture.get_cmap().name, picture.get_clim(), picture.get_array().ndim) == ("gray", (0, 1), 2)
    pixels = Image.open(io.BytesIO(png(figure))).convert("RGB")
    colours: Any = pixels.getcolors(1 << 24)
    assert all(red == green == blue for _, (red, green, blue) in colours)


def test_rebirth_pairs_stand_side_by_side() -> None:
    """Left as it was, right as it left, a line between; a row a trajectory, a column a point after the first."""
    canvas = canvases(4)
    pairs = rebirths(detached(canvas), canvas, torch.arange(4, dtype=torch.int32))
    figure = rebirth_sheet(*pairs, torch.zeros(8), torch.arange(8) / 10)
    assert len(figure.axes) == 4 * 2
    assert titles(figure) == ["set of t2:\nat t1, at t2", "set of t3:\nat t2, at t3"] + [""] * 6
    assert [axes.get_ylabel() for axes in figure.axes[::2]] == ["class 5", "class 6", "class 7", "class 8"]
    assert [axes.get_xlabel() for axes in figure.axes] == [f"0.000 to {row / 10:.3f}" for row in range(8)]
    for row, axes in enumerate(figure.axes):
        number, stage = divmod(row, 2)[0], row % 2 + 2
        found, part = drawn(axes), RAGGED[number % 2][stage - 1]
        assert torch.equal(found[..., :6], shown(canvas[stage - 2, number], part))
        assert torch.equal(found[..., -6:], shown(canvas[stage - 1, number], part))
        assert (found[..., 6:-6] == 1).all()
    assert not any(axes.get_xlabel() for axes in rebirth_sheet(*pairs).axes)


def test_histograms_have_scales_of_their_own() -> None:
    """One a stage, with its mean and number, as high as its fullest bar; every image is in exactly one bar, confidence
    0 and 1 too."""
    images = detached(canvases(5))
    sure = torch.tensor([[0.0, 0.5, 1.0]] * 4 + [[0.0, 0.5, 0.0]]).flatten()
    figure = confidence_figure(images, sure)
    assert titles(figure) == [f"t{k}: mean {mean}, n = 5" for k, mean in ((1, "0.000"), (2, "0.500"), (3, "0.800"))]
    assert len({axes.get_xlim() for axes in figure.axes}) == 1
    assert (figure.get_supxlabel(), figure.get_supylabel()) == ("confidence", "images (each panel on its own scale)")
    bars = [[bar.get_height() for bar in panel.patches] for panel in cast(Any, figure.axes)]
    assert [axes.get_ylim()[1] for axes in figure.axes] == pytest.approx([1.05 * max(found) for found in bars])
    assert [(len(found), sum(found), found[place]) for found, place in zip(bars, (0, 10, 19), strict=True)] == [
        (20, 5, 5), (20, 5, 5), (20, 5, 4),
    ]  # fmt: skip


@pytest.mark.parametrize(("height", "width", "count", "columns"), [(8, 64, 20, 16), (64, 8, 20, 16), (9, 9, 2, 8)])
def test_sheets_stay_of_a_sensible_size(height: int, width: int, count: int, columns: int) -> None:
    """However many panels and whatever their shape: at most 2000 pixels wide, and no taller than its rows."""
    sheet = contact_sheet("title", torch.rand(count, 3, height, width), columns, ["t1\n12 patches"] * columns, [], [])
    found = Image.open(io.BytesIO(png(sheet)))
    assert 150 < found.width <= 2000
    assert 80 < found.height <= 260 * -(-count // columns) + 100


def test_the_gallery_of_a_folder_of_shards(teacher: Teacher, inverted: Path, tmp_path: Path) -> None:
    """Four PNG files; a second call writes the same bytes."""
    display, out = Listener(), tmp_path / "deep" / "gallery"
    paths = gallery(inverted, out, display, teacher)
    assert paths == [out / name for name in ALL]
    assert not display.said
    first = [path.read_bytes() for path in paths]
    for path in paths:
        with Image.open(path) as picture:
            picture.load()
            assert (picture.format, picture.width <= 2000) == ("PNG", True)
            assert not cast(Any, picture).text
    assert gallery(inverted, out, display, teacher) == paths
    assert [path.read_bytes() for path in paths] == first
    assert {path.name for path in out.iterdir()} == set(ALL)


def test_files_of_an_earlier_call_go(teacher: Teacher, shards: Path) -> None:
    """What is not drawn this time is not left from last time; files that are not the gallery's stay."""
    display, out = Listener(), shards / "gallery"
    gallery(shards, None, display, teacher)
    (out / "notes.txt").write_text("mine")
    (shards / PROGRESS).unlink()
    assert gallery(shards, None, display) == [out / name for name in ALL[:2]]
    assert {path.name for path in out.iterdir()} == {*ALL[:2], "notes.txt"}
    assert display.said == [
        f"confidences are left out without --teacher: {str(shards)!r} holds no manifest.json of schema 2: "
        "make one with `pipeline build`.",
        f"rebirth.png is left out: {str(shards / PROGRESS)!r} is missing, which a new `pipeline invert` makes.",
    ]


def test_one_stage_has_no_mosaics_and_no_rebirth(tmp_path: Path) -> None:
    """They would be the sparse images again: nothing to draw, nothing to say."""
    images = detached(canvases(3, stages=1), ([[0, 3]],))
    images.save(tmp_path / "shard-00000.safetensors")
    display = Listener()
    assert gallery(tmp_path, None, display) == [tmp_path / "gallery" / "stages.png"]
    assert len(display.said) == 1


@pytest.mark.parametrize("checkpoint", [None, "gone.safetensors"])
def test_a_run_folder_names_its_teacher(checkpoint: str | None, shards: Path, tmp_path: Path) -> None:
    """Its manifest says where confidences come from; a teacher that is gone costs these alone, and is said."""
    run = tmp_path / "run"
    run.mkdir()
    shards.rename(run / "images")
    recipe = {"teacher": "digits_vit", "checkpoint": checkpoint, "input": {"mean": [0.5], "crop": None}}
    rest = {
        "schema": 2,
        "teacher": {"name": "digits_vit", "sha256": ""},
        "versions": {},
        "stages": [],
        "validation": None,
    }
    (run / "manifest.json").write_text(json.dumps({**rest, "recipe": recipe}))
    display = Listener()
    paths = gallery(run, None, display)
    assert paths == [run / "gallery" / name for name in (ALL[:3] if checkpoint else ALL)]
    assert [line for line in display.said if "gone.safetensors" in line] == display.said
    assert len(display.said) == bool(checkpoint)


def test_an_unfit_place_is_refused(shards: Path, tmp_path: Path) -> None:
    """A file is no folder, and has none in it; it stays as it was."""
    file = tmp_path / "file"
    file.write_text("mine")
    for out in (file, file / "gallery"):
        with pytest.raises(InputError, match=rf"^the gallery's place {re.escape(repr(str(out)))} is not a folder"):
            gallery(shards, out, Listener())
    assert file.read_text() == "mine"


def test_a_folder_without_shards_is_refused(tmp_path: Path) -> None:
    """Missing, empty or foreign: no gallery is made."""
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "manifest.json").write_text("{}")
    for name in ("missing", "foreign"):
        with pytest.raises(InputError, match=r"holds no shard-\*\.safetensors: make some with `pipeline invert`\.$"):
            gallery(tmp_path / name, None, Listener())
        assert not (tmp_path / name / "gallery").exists()


def test_another_teacher_is_refused(teacher: Teacher, shards: Path) -> None:
    """Confidences of a teacher that did not make the images would mislead."""
    other = replace(teacher, name="other", sha256="b" * 64)
    with pytest.raises(
        InputError, match=r"shards' comes from another teacher than 'other': give its own checkpoint\.$"
    ):
        gallery(shards, None, Listener(), other)


def test_foreign_progress_is_refused(shards: Path) -> None:
    """Whole pictures of another inversion, or half a file, are not shown as re-birth; earlier pictures stay."""
    gallery(shards, None, Listener())
    before = (shards / "gallery" / "rebirth.png").read_bytes()
    tensors, about = read_tensors(shards / PROGRESS, PROGRESS_FORMAT, "")
    write_tensors(shards / PROGRESS, tensors, {**about, "seed": "7"})
    with pytest.raises(InputError, match=r"progress.safetensors' does not belong to the shards beside it: make both"):
        gallery(shards, None, Listener())
    (shards / PROGRESS).write_bytes((shards / PROGRESS).read_bytes()[:-9])
    with pytest.raises(
        InputError, match=r"is not a whole safetensors file .* again with `pipeline invert` in an empty"
    ):
        gallery(shards, None, Listener())
    assert (shards / "gallery" / "rebirth.png").read_bytes() == before
