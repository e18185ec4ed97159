"""The network that distillation trains: another plain ViT, or the teacher's own with a fresh head."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Generator, Tensor
from torch.nn import functional as F

from inversion.checkpoint import read_weights
from inversion.errors import InputError
from inversion.names import as_timm
from inversion.plainvit import HEADS, PlainViT
from inversion.teacher import (
    DIGITS_VIT,
    DIGITS_WEIGHTS,
    InputSpec,
    Teacher,
    config_beside,
    create_model,
    create_pretrained,
    digits_vit,
    input_spec,
    load_state,
    patches_of,
    require_alike,
    require_plain_vit,
    require_same_heads,
    timm_name_of,
)

Loaded = tuple[PlainViT, bool, tuple[str, ...]]
"""A model, whether its head knows nothing yet, and what was chosen or left out of its checkpoint."""
TEACHERS_OWN = "teacher"
HEAD_STD = 0.02


@dataclass(frozen=True)
class Student:
    """A plain ViT in training, and how the teacher's patches become its own."""

    model: PlainViT
    spec: InputSpec
    name: str
    notes: tuple[str, ...] = ()
    """What was chosen or left out of its checkpoint, in sentences."""

    @property
    def patch_size(self) -> tuple[int, int]:
        return self.model.patch_embed.patch_size


def load_student(
    name: str,
    teacher: Teacher,
    checkpoint: Path | None = None,
    size: int | None = None,
    *,
    fresh_head: bool = False,
    random_weights: bool = False,
    seed: int = 0,
) -> Student:
    """The student `name` for the teacher's classes, on the teacher's grid.

    `name` is one that a teacher could have, or `teacher`: the teacher's own weights with a fresh head. Weights come
    from `checkpoint`, else from the package or timm, else they are random. The head is fresh, drawn from `seed`, where
    `fresh_head` asks for it or the weights are for other classes. `size` is the side of the student's pictures in
    pixels, the teacher's by default.

    Raises `InputError` where the grids, the channels or the checkpoint do not fit.
    """
    notes: tuple[str, ...] = ()
    if name == TEACHERS_OWN:
        if checkpoint or size:
            raise InputError("the student 'teacher' is the teacher itself: leave its checkpoint and size out.")
        model, fresh = _own(teacher, random_weights, seed), True
    elif name == DIGITS_VIT:
        model, fresh, notes = _digits(checkpoint, random_weights, seed)
    else:
        model, fresh, notes = _timms(name, teacher, checkpoint, size, random_weights, seed)
    student = Student(model.train().requires_grad_(True), input_spec(model), name, notes)
    _require_fit(student, teacher)
    if fresh or fresh_head:
        _draw_head(model, seed)
    return student


def adapt(patches: Tensor, teacher: Teacher, student: Student) -> Tensor:
    """The teacher's normalised `patches` [B, K, C*P*P] as the student's: its patch size, its normalisation."""
    if _alike(teacher.spec, student.spec) and student.patch_size == teacher.patch_size:
        return patches
    pixels = patches.unflatten(-1, (-1, *teacher.patch_size)).flatten(0, 1)
    return _adapted(pixels, teacher.spec, student.spec, student.patch_size).flatten(1).view(*patches.shape[:2], -1)


def adapt_pictures(pictures: Tensor, teacher: Teacher, student: Student) -> Tensor:
    """The same for whole `pictures` [B, C, H, W]."""
    return _adapted(pictures, teacher.spec, student.spec, student.spec.size)


def _adapted(pixels: Tensor, theirs: InputSpec, mine: InputSpec, size: tuple[int, int]) -> Tensor:
    if not _alike(theirs, mine):
        mean, std, new_mean, new_std = (
            torch.tensor(part, device=pixels.device).view(-1, 1, 1)
            for part in (theirs.mean, theirs.std, mine.mean, mine.std)
        )
        pixels = (pixels * std + mean - new_mean) / new_std
    if tuple(pixels.shape[-2:]) != tuple(size):
        pixels = F.interpolate(pixels, size, mode="bilinear", antialias=True)
    return pixels


def _alike(one: InputSpec, other: InputSpec) -> bool:
    return (one.mean, one.std) == (other.mean, other.std)


def _own(teacher: Teacher, random_weights: bool, seed: int) -> PlainViT:
    model = copy.deepcopy(teacher.model).cpu()
    if random_weights:
        _draw_all(model, seed)
    return model


def _digits(checkpoint: Path | None, random_weights: bool, seed: int) -> Loaded:
    model = digits_vit()
    if random_weights:
        _draw_all(model, seed)
        return model, True, ()
    path = checkpoint or DIGITS_WEIGHTS
    state, notes = read_weights(path)
    state, left_out = as_timm(state, model.state_dict().keys())
    load_state(model, {key: value.float() for key, value in state.items()}, DIGITS_VIT, path)
    if config := config_beside(path, DIGITS_VIT):
        model.pretrained_cfg = {**model.pretrained_cfg, **config.settings}
    return model, False, (*notes, *left_out)


def _timms(
    name: str, teacher: Teacher, checkpoint: Path | None, size: int | None, random_weights: bool, seed: int
) -> Loaded:
    timm_name = timm_name_of(name)
    shape = {"num_classes": teacher.spec.num_classes, "img_size": (size, size) if size else teacher.spec.size}
    if checkpoint is None and not random_weights:
        probe = create_model(timm_name)
        require_plain_vit(probe, name)
        model = create_pretrained(timm_name, name, "--student-checkpoint FILE", **shape)
        return model, probe.num_classes != teacher.spec.num_classes, ()
    config = config_beside(checkpoint, timm_name) if checkpoint else None
    model = create_model(timm_name, **(config.model_args if config else {}) | shape)
    require_plain_vit(model, name)
    if checkpoint is None:
        _draw_all(model, seed)
        return model, True, ()
    require_same_heads(model, config, name, checkpoint)
    if config:
        model.pretrained_cfg = {**model.pretrained_cfg, **config.settings}
    state, notes = read_weights(checkpoint)
    state, left_out = as_timm(state, model.state_dict().keys())
    require_alike(model, state, name, checkpoint)
    patches_of(model, state, name, checkpoint)
    found = state.get("head.weight")
    fresh = found is None or found.ndim != 2 or len(found) != teacher.spec.num_classes
    heads = {key for key in model.state_dict() if key.split(".")[0] in HEADS} if fresh else set()
    kept = {key: value for key, value in state.items() if key.split(".")[0] not in HEADS} if fresh else state
    load_state(model, kept, name, checkpoint, absent=heads)
    return model, fresh, (*notes, *left_out)


def _require_fit(student: Student, teacher: Teacher) -> None:
    model = student.model
    if model.patch_embed.grid_size != teacher.grid:
        ours, theirs = (f"{rows}x{columns} patches" for rows, columns in (model.patch_embed.grid_size, teacher.grid))
        side = teacher.grid[0] * student.patch_size[0]
        raise InputError(
            f"student {student.name!r} sees {ours}, the teacher's images are {theirs}: take --student-size {side}."
        )
    if student.spec.channels != teacher.spec.channels:
        raise InputError(
            f"student {student.name!r} takes {student.spec.channels} channels, the teacher's images have "
            f"{teacher.spec.channels}: take another student."
        )
    if model.num_classes != teacher.spec.num_classes:
        raise InputError(
            f"student {student.name!r} knows {model.num_classes} classes, the teacher {teacher.spec.num_classes}: "
            "take another student."
        )


@torch.no_grad()
def _draw_head(model: PlainViT, seed: int) -> None:
    generator = Generator().manual_seed(seed)
    for name in HEADS:
        head = getattr(model, name, None)
        if isinstance(head, torch.nn.Linear):
            head.weight.copy_(torch.randn(head.weight.shape, generator=generator).clamp(-2, 2) * HEAD_STD)
            head.bias.zero_()


def _draw_all(model: PlainViT, seed: int) -> None:
    """timm's own initial weights, from `seed`."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model.init_weights()
