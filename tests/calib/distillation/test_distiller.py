"""Distillation: one update is what the formulas say, students fit their teacher, and nothing is lost by stopping."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file

from calib.augment import flip_patches
from calib.distillation.distiller import Distiller, Stored, Streamed
from calib.distillation.student import Student, adapt, adapt_pictures, load_student
from calib.fidelity import kl_to_teacher
from calib.settings import Distillation
from inversion.errors import InputError, NumericalError
from inversion.images import SparseImages
from inversion.inverter import Inverter
from inversion.job import Inversion
from inversion.sparse import patchify, sparse_forward, unpatchify
from inversion.teacher import Teacher, input_spec, load_teacher

JOB = Inversion("pri", images=36, iterations=6, batch=12, division_factor=3)
PLAIN = Distillation(learning_rate=0.05, clip_norm=0.0, flips=False)


@pytest.fixture(scope="module")
def teacher() -> Teacher:
    return load_teacher("digits_vit")


@pytest.fixture(scope="module")
def batches(teacher: Teacher) -> Streamed:
    return Streamed(Inverter(teacher, JOB))


@pytest.fixture(scope="module")
def images(batches: Streamed) -> SparseImages:
    """PRI, v = 3: two images of 21 patches for each of 22."""
    return batches.batch(0)


def weights(student: Student) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in student.model.state_dict().items()}


def assert_equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys()
    assert all(torch.equal(value, other[name]) for name, value in one.items())


def test_one_update_is_sgd_on_the_mean_kl(teacher: Teacher, images: SparseImages) -> None:
    """Images of different counts weigh alike; the first step of SGD is rate x (gradient + decay x weight)."""
    student = load_student("teacher", teacher)
    twin = copy.deepcopy(student.model).double()
    total = torch.zeros((), dtype=torch.double)
    for row in range(len(images)):
        count = int((images.kept[row] >= 0).sum())
        patches, kept = images.patches[row : row + 1, :count].double(), images.kept[row : row + 1, :count].long()
        target = sparse_forward(copy.deepcopy(teacher.model).double(), patches, kept)
        total = total + kl_to_teacher(sparse_forward(twin, patches, kept), target) / len(images)
    total.backward()
    found = Distiller(teacher, student, PLAIN).learn(images, 0)
    assert found == pytest.approx(float(total.detach()), rel=1e-4)
    for name, value in student.model.named_parameters():
        before = twin.get_parameter(name)
        expected = before - 0.05 * (before.grad + 1e-4 * before)
        torch.testing.assert_close(value.double(), expected, rtol=1e-3, atol=1e-6)


def test_the_teacher_stays_what_it_was(teacher: Teacher, images: SparseImages) -> None:
    """Its own body is copied, not trained."""
    before = {name: value.clone() for name, value in teacher.model.state_dict().items()}
    Distiller(teacher, load_student("teacher", teacher), PLAIN).learn(images, 0)
    assert_equal(before, dict(teacher.model.state_dict()))


def test_stopped_and_taken_up_again_it_ends_the_same(teacher: Teacher, batches: Streamed) -> None:
    """Weights and momentum go on bit for bit, flips included."""
    settings = Distillation(learning_rate=0.02)
    whole = Distiller(teacher, load_student("teacher", teacher), settings)
    for number in range(3):
        whole.learn(batches.batch(number), number)
    first = Distiller(teacher, load_student("teacher", teacher), settings)
    first.learn(batches.batch(0), 0)
    second = Distiller(teacher, load_student("teacher", teacher, seed=5), settings)
    second.restore({name: value.clone() for name, value in first.state().items()})
    for number in (1, 2):
        second.learn(batches.batch(number), number)
    assert_equal(weights(whole.student), weights(second.student))


def test_learning_brings_the_student_nearer(teacher: Teacher, batches: Streamed) -> None:
    """Twelve updates on the same batch halve its KL."""
    distiller, shown = Distiller(teacher, load_student("teacher", teacher), PLAIN), batches.batch(1)
    losses = [distiller.learn(shown, 0) for _ in range(12)]
    assert losses[-1] < losses[0] / 2


def test_a_loss_that_is_not_finite_stops_it(teacher: Teacher, images: SparseImages) -> None:
    """With the batch, the rate and the mend; the weights are not touched by that batch."""
    student = load_student("teacher", teacher)
    before = weights(student)
    spoilt = replace(images, patches=images.patches.clone().fill_(float("nan")))
    with pytest.raises(NumericalError, match=r"not finite at batch 7: lower distillation.learning_rate \(0.1\)"):
        Distiller(teacher, student, Distillation()).learn(spoilt, 7)
    assert_equal(before, weights(student))


def test_the_gradient_is_bounded_where_asked(teacher: Teacher, images: SparseImages) -> None:
    """Of norm 1 at most: with rate 1, no decay and no momentum a step is no longer than that."""
    student = load_student("teacher", teacher)
    before = weights(student)
    settings = Distillation(learning_rate=1.0, momentum=0.0, weight_decay=0.0, clip_norm=1e-3)
    Distiller(teacher, student, settings).learn(images, 0)
    moved = sum(
        float((value.detach() - before[name]).square().sum()) for name, value in student.model.named_parameters()
    )
    assert moved**0.5 == pytest.approx(1e-3, rel=1e-2)


def test_flipped_images_are_flipped_pictures(images: SparseImages) -> None:
    """Patches move to the mirrored column and are mirrored themselves; twice is nothing."""
    pictures = images.mosaics()
    patches = patchify(pictures, images.patch_size)
    kept = torch.arange(patches.shape[1]).expand(len(patches), -1)
    flipped, moved = flip_patches(patches, kept, images.grid, images.patch_size)
    placed = torch.zeros_like(flipped).scatter(1, moved.unsqueeze(-1).expand_as(flipped), flipped)
    assert torch.equal(unpatchify(placed, images.grid, images.patch_size), pictures.flip(-1))
    again = flip_patches(flipped, moved, images.grid, images.patch_size)
    assert torch.equal(again[0], patches)
    assert torch.equal(again[1], kept)


def test_stored_images_come_once_an_epoch(images: SparseImages) -> None:
    """Every image once in each epoch, in another order each; the last batch of an epoch may be smaller."""
    stored = Stored(images, 5, epochs=2, seed=3)
    assert len(stored) == 6
    epochs = [[stored.batch(number) for number in numbers] for numbers in (range(3), range(3, 6))]
    assert [len(part) for part in epochs[0]] == [5, 5, 2]
    orders = [torch.cat([part.trajectory * 10 + part.stage for part in epoch]) for epoch in epochs]
    assert not torch.equal(*orders)
    for order in orders:
        assert torch.equal(order.sort().values, (images.trajectory * 10 + images.stage).sort().values)
    with pytest.raises(InputError, match="batch 0 and epochs 1"):
        Stored(images, 0, 1)


def test_streamed_batches_leave_nothing_unless_asked(teacher: Teacher, tmp_path: Path) -> None:
    """A kept batch is the dropped one, and is read again instead of made again."""
    inverter = Inverter(teacher, JOB)
    kept = Streamed(inverter, tmp_path / "images")
    first, dropped = kept.batch(2), Streamed(inverter).batch(2)
    assert [path.name for path in (tmp_path / "images").iterdir()] == ["shard-00002.safetensors"]
    assert torch.equal(first.kept, dropped.kept.to(first.kept.dtype))
    torch.testing.assert_close(first.patches, dropped.patches, rtol=1e-3, atol=2e-3)  # stored as float16
    seen: list[int] = []
    kept.batch(2, lambda _what, done, *_: seen.append(done))
    assert seen == []


def test_a_fresh_head_knows_nothing(teacher: Teacher) -> None:
    """The teacher's body, a head drawn from the seed; another seed, another head."""
    one, same, other = (load_student("teacher", teacher, seed=seed).model for seed in (0, 0, 1))
    assert torch.equal(one.head.weight, same.head.weight)
    assert not torch.equal(one.head.weight, other.head.weight)
    assert not one.head.bias.any()
    assert torch.equal(one.blocks[3].mlp.fc1.weight, teacher.model.blocks[3].mlp.fc1.weight)
    assert one.training
    assert all(parameter.requires_grad for parameter in one.parameters())


def test_random_weights_follow_the_seed(teacher: Teacher) -> None:
    """Nothing of the teacher is left."""
    one, same = (load_student("digits_vit", teacher, random_weights=True, seed=4).model for _ in range(2))
    assert torch.equal(one.blocks[0].attn.qkv.weight, same.blocks[0].attn.qkv.weight)
    assert not torch.equal(one.blocks[0].attn.qkv.weight, teacher.model.blocks[0].attn.qkv.weight)


TINY = "vit_tiny_patch16_224"


@pytest.fixture(scope="module")
def timms(tmp_path_factory: pytest.TempPathFactory) -> tuple[Teacher, Path]:
    """A teacher at 64 px with 5 classes, and a checkpoint of the same architecture at 224 with 1000."""
    folder = tmp_path_factory.mktemp("timm")
    torch.manual_seed(0)
    small = timm.create_model(TINY, img_size=64, num_classes=5, depth=2)
    save_file(timm.create_model(TINY, depth=2).state_dict(), folder / "large.safetensors")
    model = small.eval().requires_grad_(False)
    return Teacher(model, input_spec(model), TINY, "0" * 64), folder / "large.safetensors"


@pytest.fixture(autouse=True)
def shallow(monkeypatch: pytest.MonkeyPatch) -> None:
    """timm's tiny ViT with two blocks in place of twelve."""
    real = timm.create_model
    monkeypatch.setattr(timm, "create_model", lambda name, **given: real(name, **{"depth": 2, **given}))


def test_another_checkpoint_gets_the_teachers_classes_and_grid(timms: tuple[Teacher, Path]) -> None:
    """Positions are resampled from 14x14 to 4x4, the head of 1000 classes is dropped for a fresh one."""
    teacher, path = timms
    student = load_student(TINY, teacher, path)
    assert student.model.patch_embed.grid_size == (4, 4)
    assert student.model.head.weight.shape == (5, 192)
    assert torch.equal(student.model.blocks[1].mlp.fc2.weight, load_file(path)["blocks.1.mlp.fc2.weight"])


def test_grids_that_differ_are_refused(timms: tuple[Teacher, Path]) -> None:
    """With the size that would fit."""
    teacher, _ = timms
    with pytest.raises(InputError, match=r"sees 8x8 patches, the teacher's images are 4x4 patches: .* 32\.$"):
        load_student("vit_small_patch8_224", teacher, random_weights=True)
    student = load_student("vit_small_patch8_224", teacher, size=32, random_weights=True)
    assert student.model.patch_embed.grid_size == teacher.grid


def test_other_channels_and_classes_are_refused(teacher: Teacher, timms: tuple[Teacher, Path]) -> None:
    """A grey student of a coloured teacher."""
    coloured = load_student(TINY, timms[0], random_weights=True)
    grey = replace(timms[0], spec=replace(teacher.spec, num_classes=10), model=coloured.model)
    with pytest.raises(InputError, match=r"sees 8x8 patches, the teacher's images are 4x4"):
        load_student("digits_vit", grey)
    with pytest.raises(InputError, match="is the teacher itself: leave its checkpoint and size out"):
        load_student("teacher", teacher, size=64)


def test_patches_are_adapted_to_the_students_eyes(timms: tuple[Teacher, Path]) -> None:
    """Another patch size and another normalisation: the picture is the same, smaller."""
    teacher, _ = timms
    student = load_student("vit_small_patch8_224", teacher, size=32, random_weights=True)
    student = replace(student, spec=replace(student.spec, mean=(0.3, 0.4, 0.5), std=(0.2, 0.2, 0.3)))
    flat = torch.rand(2, 3, 1, 1).expand(2, 3, 64, 64)
    mean, std = (torch.tensor(part).view(-1, 1, 1) for part in (teacher.spec.mean, teacher.spec.std))
    pictures = (flat - mean) / std
    patches = adapt(patchify(pictures, teacher.patch_size), teacher, student)
    expected = (flat[..., :32, :32] - torch.tensor((0.3, 0.4, 0.5)).view(-1, 1, 1)) / torch.tensor(
        (0.2, 0.2, 0.3)
    ).view(-1, 1, 1)
    torch.testing.assert_close(unpatchify(patches, (4, 4), (8, 8)), expected)
    torch.testing.assert_close(adapt_pictures(pictures, teacher, student), expected)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"learning_rate": -1.0}, "distillation.learning_rate must be at least 0 and finite, not -1.0"),
        ({"momentum": 1.0}, "momentum must be at least 0 and below 1, not 1.0"),
        ({"temperature": 0.0}, "distillation.temperature must be above 0 and finite, not 0.0"),
    ],
)
def test_settings_that_cannot_be_are_refused(values: dict[str, Any], said: str) -> None:
    """With the value."""
    with pytest.raises(InputError, match=said):
        Distillation(**values)
