"""What a Python program imports from inversion: the names, and what they do to live models and in memory."""

import copy
import doctest
import importlib
import math
import pkgutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import timm
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

import inversion
from inversion import InputError, Inversion, SparseImages, Teacher, invert, load_images
from inversion.inverter import Inverter
from inversion.sparse import patchify
from tests.small import small_teacher, small_vit

OFFERED = """GivenInput InputError InputSpec Inversion MachineError NumericalError PatchRebirthError SparseImages
             Teacher dead_leaves invert load_images load_teacher"""
JOB = Inversion(images=8, batch=4, iterations=4, precision="float32")
"""Two shards of one trajectory."""


def test_the_offered_names_are_these() -> None:
    """Adding or dropping one is a change of what others rely on; each is there and says what it is."""
    assert inversion.__all__ == OFFERED.split() == dir(inversion)
    for name in inversion.__all__:
        assert getattr(inversion, name).__doc__, name
        assert getattr(inversion, name).__name__ == name
    with pytest.raises(AttributeError, match="module 'inversion' has no attribute 'nothing': it offers GivenInput, "):
        _ = inversion.nothing


def test_no_module_hides_an_offered_name() -> None:
    """A module of the same name would take its place as soon as anybody imports it."""
    modules = {found.name for found in pkgutil.iter_modules(inversion.__path__)}
    assert not modules & set(inversion.__all__)
    for module in modules:
        importlib.import_module(f"inversion.{module}")
    assert all(not isinstance(getattr(inversion, name), ModuleType) for name in inversion.__all__)


def test_importing_it_loads_nothing_heavy() -> None:
    """Neither torch nor timm, until something is asked for; a job still needs neither."""
    code = "import sys, inversion; inversion.Inversion(); print({'torch', 'timm', 'numpy'} & sys.modules.keys())"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"


@pytest.mark.parametrize("package", ["inversion", "calib", "export", "pipeline"])
def test_types_ship(package: str) -> None:
    """Each package says that its annotations hold."""
    assert (Path(inversion.__file__).parents[1] / package / "py.typed").is_file()


WITH_EXAMPLES: tuple[Callable[..., object], ...] = (
    Teacher, Teacher.from_model, SparseImages, SparseImages.to_pil, invert, load_images, Inversion,
    inversion.GivenInput, inversion.InputSpec, inversion.load_teacher, inversion.dead_leaves,
)  # fmt: skip


@pytest.mark.parametrize(
    "thing",
    WITH_EXAMPLES,
    ids=lambda thing: thing.__qualname__,
)
def test_the_example_in_the_docstring_runs(
    thing: Callable[..., object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each has one, and gives what it says."""
    monkeypatch.chdir(tmp_path)
    example = doctest.DocTestParser().get_doctest(str(thing.__doc__), {}, thing.__qualname__, None, None)
    assert example.examples
    assert doctest.DocTestRunner(verbose=False).run(example).failed == 0


def test_a_live_model_becomes_a_teacher_and_stays_as_it_was() -> None:
    """The copy is frozen, in eval mode and of the same weights; gradients, mode and configuration of the model stay."""
    model = timm.create_model("vit_tiny_patch16_224", img_size=32, num_classes=5, depth=1).train()
    model.blocks[0].norm1.weight.requires_grad_(False)
    flags, cfg = [weight.requires_grad for weight in model.parameters()], dict(model.pretrained_cfg)
    teacher = Teacher.from_model(model, "mine", mean=(0.1, 0.2, 0.3))
    assert (teacher.name, teacher.spec.mean, teacher.spec.std) == ("mine", (0.1, 0.2, 0.3), tuple(cfg["std"]))
    assert (teacher.spec.size, teacher.spec.num_classes) == ((32, 32), 5)
    assert not teacher.model.training
    assert not any(weight.requires_grad for weight in teacher.model.parameters())
    images = torch.randn(2, 3, 32, 32)
    assert torch.equal(teacher.logits(images), copy.deepcopy(model).eval()(images).detach())
    assert model.training
    assert [weight.requires_grad for weight in model.parameters()] == flags
    assert dict(model.pretrained_cfg) == cfg


def test_a_teacher_by_hand_says_how_pictures_enter_it() -> None:
    """A model that timm did not configure tells neither mean nor std; both given, it is inverted."""
    model = small_vit()
    with pytest.raises(InputError, match=r"^teacher 'VisionTransformer' does not say its mean and std: give them for"):
        Teacher.from_model(model)
    with pytest.raises(InputError, match=r"takes 1 channels and has 3 numbers of mean: give --mean with 1\.$"):
        Teacher.from_model(model, mean=(0.5, 0.5, 0.5), std=(0.5,))
    teacher = Teacher.from_model(model.half(), mean=(0.5,), std=(0.5,), crop=0.9)
    assert (teacher.spec.crop, teacher.model.pos_embed.dtype) == (0.9, torch.float32)
    assert len(invert(teacher, JOB)) == 8


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (nn.Linear(2, 2), "teacher 'Linear' cannot be inverted: it is a Linear; a plain Vision Transformer works: "),
        (VisionTransformer(32, 8, num_classes=0, embed_dim=8, depth=1, num_heads=1), "it has no classifier; "),
    ],
    ids=["linear", "headless"],
)
def test_other_models_are_refused(model: nn.Module, reason: str) -> None:
    """By the sentences of `load_teacher`."""
    with pytest.raises(InputError, match=reason):
        Teacher.from_model(model)


def test_images_in_memory_are_those_of_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every tensor is equal; and with a folder, what lies there is not made again."""
    teacher = small_teacher()
    told: list[tuple[str, int, int, float]] = []
    memory = invert(teacher, JOB, progress=lambda *given: told.append(given))
    assert (told[-1][:3], math.isfinite(told[-1][3])) == (("inversion", 8, 8), True)
    kept = invert(teacher, JOB, folder=tmp_path / "images")
    for name in ("patches", "kept", "labels", "stage", "trajectory"):
        assert torch.equal(getattr(memory, name), getattr(kept, name)), name
    assert len(list((tmp_path / "images").glob("shard-*.safetensors"))) == 2
    monkeypatch.setattr(Inverter, "shard", lambda *_: pytest.fail("it is made again"))
    assert torch.equal(invert(teacher, JOB, folder=str(tmp_path / "images")).patches, memory.patches)


def by_hand(pixels: Tensor, kept: list[list[int]], mean: str, std: str) -> SparseImages:
    """One trajectory of `pixels` [1, C, 4, 4] in 0..1, patches of 2x2, cut into images of the positions `kept`."""
    centre, spread = (torch.tensor([*map(float, part.split())]).view(-1, 1, 1) for part in (mean, std))
    patches = patchify((pixels - centre) / spread, (2, 2))[0]
    longest = max(map(len, kept))
    rows = torch.tensor([part + [-1] * (longest - len(part)) for part in kept])
    one = torch.ones(len(kept), dtype=torch.int32)
    metadata = {"grid": "2x2", "patch_size": "2", "mean": mean, "std": std}
    live = patches[rows.clamp(min=0)] * (rows >= 0).unsqueeze(-1)
    return SparseImages(live, rows.to(torch.int16), one, one, one, metadata)


def test_pictures_are_shown_as_they_are_and_removed_patches_grey() -> None:
    """Of an image the patches that it has, in their colours; of a trajectory all; nothing leaves 0..255."""
    pixels = torch.rand(1, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    images = by_hand(pixels, [[0, 3], [1, 2]], "0.5 0.4 0.3", "0.2 0.3 0.5")
    first, second = images.to_pil()
    want = (pixels[0] * 255).round().to(torch.uint8)
    shown = torch.tensor(np.asarray(first)).permute(2, 0, 1)
    assert torch.equal(shown[:, :2, :2], want[:, :2, :2])
    assert torch.equal(shown[:, 2:, 2:], want[:, 2:, 2:])
    assert set(shown[:, :2, 2:].flatten().tolist()) == {128}
    assert (first.mode, second.getpixel((0, 0))) == ("RGB", (128, 128, 128))
    (mosaic,) = images.to_pil(mosaics=True)
    assert torch.equal(torch.tensor(np.asarray(mosaic)).permute(2, 0, 1), want)
    bright = replace(images, patches=images.patches + 9)
    assert bright.to_pil()[0].getpixel((0, 0)) == (255, 255, 255)


@pytest.mark.parametrize("channels", [1, 2])
def test_pictures_of_other_channels_are_grey(channels: int) -> None:
    """The mean of the channels; padding of shorter rows is no patch."""
    pixels = torch.full((1, channels, 4, 4), 0.2)
    half = " ".join(["0.5"] * channels)
    picture, other = by_hand(pixels, [[0, 1, 2], [3]], half, half).to_pil()
    assert (picture.mode, picture.getpixel((0, 0)), picture.getpixel((3, 3))) == ("L", 51, 128)
    assert (other.getpixel((0, 0)), other.getpixel((3, 3))) == (128, 51)
