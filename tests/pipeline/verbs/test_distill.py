"""`pipeline distill`: what it leaves in its folder, going on after a stop, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import pipeline.run.distilling as distillation
from calib.distillation.distiller import Distiller
from inversion.images import SparseImages
from inversion.teacher import load_teacher
from tests.shell import run

pytestmark = pytest.mark.usefixtures("few_digits")

SHORT = "distill --teacher digits_vit --student teacher --batches 4 --batch 8 --iterations 4 --checks 2 --quiet"
GENTLE = "--set distillation.learning_rate=0.01"


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("distilled") / "out"
    assert run(f"{SHORT} {GENTLE} --out {out}") == 0
    return out


def test_a_student_comes_out(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A checkpoint that loads as a teacher, the curve with wall time, a picture of it; no images are left."""
    assert {path.name for path in finished.iterdir()} - {".lock"} == {
        "student.safetensors", "distillation.json", "config.json", "curve.png",
    }  # fmt: skip
    student = load_teacher("digits_vit", finished / "student.safetensors")
    result = json.loads((finished / "distillation.json").read_text())
    assert result["student"]["sha256"] == student.sha256
    assert result["batches"] == 4
    assert [point["batch"] for point in result["curve"]] == [0, 2, 4]
    assert [point["seconds"] for point in result["curve"]] == sorted(point["seconds"] for point in result["curve"])
    last = result["curve"][-1]
    assert 0 <= last["top1"] <= 1
    assert last["teacher_top1"] > 0.95
    assert last["kl"] > 0
    assert result["identity"]["inversion"]["division_factor"] == 2
    assert capsys.readouterr().err == ""


def test_finished_it_is_not_done_again(
    finished: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The same command gives the same figures without a single update; another one is refused."""
    before = (finished / "student.safetensors").read_bytes()
    monkeypatch.setattr(Distiller, "learn", lambda *_: pytest.fail("it learns again"))
    assert run(f"{SHORT} {GENTLE} --out {finished}") == 0
    assert "top-1" in capsys.readouterr().out
    assert (finished / "student.safetensors").read_bytes() == before
    assert run(f"{SHORT} --set distillation.learning_rate=0.02 --out {finished}") == 2
    assert "holds a distillation with another settings" in capsys.readouterr().err


def test_interrupted_it_ends_the_same(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stopped in the third batch, the next call goes on behind the second and makes the same student."""
    out, real = tmp_path / "out", Distiller.learn

    def stop(self: Distiller, images: SparseImages, number: int) -> float:
        if number == 2:
            raise KeyboardInterrupt
        return real(self, images, number)

    monkeypatch.setattr(distillation, "SAVE_EVERY_S", 0.0)
    monkeypatch.setattr(Distiller, "learn", stop)
    assert run(f"{SHORT} {GENTLE} --out {out}") != 0
    assert (out / "progress.safetensors").is_file()
    learned: list[int] = []

    def learn(self: Distiller, images: SparseImages, number: int) -> float:
        learned.append(number)
        return real(self, images, number)

    monkeypatch.setattr(Distiller, "learn", learn)
    assert run(f"{SHORT} {GENTLE} --out {out}") == 0
    assert learned == [2, 3]
    mine, theirs = (load_file(folder / "student.safetensors") for folder in (out, finished))
    assert all(torch.equal(value, theirs[name]) for name, value in mine.items())
    assert not (out / "progress.safetensors").exists()
    curves = [json.loads((folder / "distillation.json").read_text())["curve"] for folder in (out, finished)]
    assert [point["kl"] for point in curves[0]] == [point["kl"] for point in curves[1]]


def test_kept_images_teach_again(tmp_path: Path) -> None:
    """Every batch is a shard; a folder of shards can be shown for epochs in place of an inversion."""
    assert run(f"{SHORT} {GENTLE} --keep-images --out {tmp_path / 'a'}") == 0
    assert len(list((tmp_path / "a/images").glob("shard-*.safetensors"))) == 4
    line = f"distill --teacher digits_vit --student teacher --images {tmp_path / 'a/images'} --batch 16 --epochs 3"
    assert run(f"{line} {GENTLE} --checks 3 --quiet --out {tmp_path / 'b'}") == 0
    result = json.loads((tmp_path / "b/distillation.json").read_text())
    assert result["batches"] == 6
    assert result["identity"]["epochs"] == 3


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("--batches 0", "--batches must be at least 1, not 0"),
        ("--student resnet50", "resnet50"),
        ("--student teacher --student-size 64", "the student 'teacher' is the teacher itself"),
        ("--images nowhere", "holds no shard"),
        ("--set training.updates=3", "`pipeline distill` does not read 'training'"),
        ("--set distillation.momentum=2", "momentum must be at least 0 and below 1"),
        ("--method smi --iterations 200", "end before SMI's last pruning"),
        ("--class-map x.txt", "needs pictures: add --val-data"),
    ],
)
def test_what_cannot_be_done_is_refused(
    line: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One sentence, exit code 2, before anything is inverted."""
    assert run(f"{SHORT} --out {tmp_path / 'out'} {line}") == 2
    err = capsys.readouterr().err
    assert said in err
    assert len(err.splitlines()) == 1


def test_images_of_another_teacher_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Their digest says whose they are."""
    assert run(f"{SHORT} {GENTLE} --keep-images --out {tmp_path / 'a'}") == 0
    for path in (tmp_path / "a/images").iterdir():
        images = SparseImages.load(path)
        images.metadata["teacher_sha256"] = "0" * 64
        images.save(path)
    line = f"distill --teacher digits_vit --student teacher --images {tmp_path / 'a/images'} --out {tmp_path / 'b'}"
    assert run(line) == 2
    assert "was made from another teacher than 'digits_vit'" in capsys.readouterr().err


def test_a_student_is_a_teacher_for_the_next_command(tmp_path: Path) -> None:
    """OUT holds config.json in timm's layout: architecture, preprocessing; `local-dir:` takes the folder as it is."""
    line = (
        f"distill --teacher digits_vit --student teacher --batches 1 --batch 8 --iterations 4 --checks 1 --quiet "
        f"--out {tmp_path / 'student'}"
    )
    assert run(line) == 0
    config = json.loads((tmp_path / "student" / "config.json").read_text())
    assert (config["architecture"], config["num_classes"]) == ("digits_vit", 10)
    assert config["pretrained_cfg"]["mean"] == [0.5]
    by_folder = load_teacher(f"local-dir:{tmp_path / 'student'}")
    by_file = load_teacher("digits_vit", tmp_path / "student" / "student.safetensors")
    assert by_folder.sha256 == by_file.sha256
    assert by_folder.spec == by_file.spec


def test_a_teacher_with_pixels_of_its_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """--checkpoint-key, --mean and --std reach the teacher; config.json tells them to the next command; others of them
    are another distillation."""
    state = load_teacher("digits_vit").model.state_dict()
    torch.save({"model": {key: value * 0 for key, value in state.items()}, "ema": state}, tmp_path / "a.pth")
    out = tmp_path / "student"
    line = (
        f"distill --teacher digits_vit --checkpoint {tmp_path / 'a.pth'} --checkpoint-key ema --student teacher "
        f"--batches 1 --batch 8 --iterations 4 --checks 1 --quiet --out {out}"
    )
    assert run(f"{line} --mean 0.25 --std 0.25 --crop 0.75") == 0
    result = json.loads((out / "distillation.json").read_text())
    assert result["identity"]["teacher"] == load_teacher("digits_vit").sha256
    spec = load_teacher("digits_vit", out / "student.safetensors").spec
    assert (spec.mean, spec.std, spec.crop) == ((0.25,), (0.25,), 0.75)
    assert load_teacher(f"local-dir:{out}").spec == spec
    capsys.readouterr()
    assert run(f"{line} --mean 0.5 --std 0.25 --crop 0.75") == 2
    assert "holds a distillation with another mean or std: take another --out" in capsys.readouterr().err
    assert run(f"{line} --mean 128") == 2
    assert "mean 128 is not within 0..1" in capsys.readouterr().err
