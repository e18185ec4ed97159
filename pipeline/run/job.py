"""What a stage works on: one value, made before any work and handed on."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from export.edge.registry import choose_backend
from inversion.errors import InputError
from inversion.machine import settle_sums
from inversion.teacher import Teacher, load_teacher
from pipeline.pictures.labels import known_labels
from pipeline.pictures.valdata import ValData, judging_pictures
from pipeline.recipe.recipe import Recipe
from pipeline.run.stage import Stage
from pipeline.show.display import Display

QUANTIZED = "quantized.safetensors"
TRAINING = "training.safetensors"
"""What interrupted training goes on from; a finished stage leaves none."""


@dataclass(frozen=True)
class Places:
    """Where files lie: the models in `folder`, the shards in `images`; `training` is there while training goes on."""

    folder: Path
    images: Path
    quantized: Path
    training: Path

    @classmethod
    def run(cls, folder: Path) -> Places:
        """Those of a run folder."""
        return cls(folder, folder / "images", folder / QUANTIZED, folder / TRAINING)


@dataclass(frozen=True)
class Job:
    """A recipe on this machine, with its teacher where it is to run: every stage works where the teacher is.

    `pictures` are the real ones that judge. `made` are the records of stages that are done, by name.
    """

    recipe: Recipe
    teacher: Teacher
    places: Places
    display: Display
    pictures: ValData | None = None
    made: dict[str, dict[str, Any]] = field(default_factory=dict)

    @cached_property
    def backend(self) -> str | None:
        """The engine's, or None where none is built."""
        return choose_backend(self.recipe.engine.backend, self.recipe.engine.arch)

    @cached_property
    def labels(self) -> tuple[str, ...] | None:
        """What the classes are called, where that is known."""
        found = known_labels(self.teacher, self.recipe.checkpoint, self.recipe.class_map)
        return tuple(found) if found else None


def preflight(
    recipe: Recipe, place: torch.device, places: Places, display: Display, stages: Sequence[Stage] = (),
    judged: bool = False,
) -> Job:  # fmt: skip
    """The job of `stages`, after each has refused what it could not do. With `judged`, real pictures judge where the
    recipe names some, and each was looked at."""
    recipe = dataclasses.replace(recipe, threads=settle_sums(recipe.threads))
    for stage in stages:
        stage.check_recipe(recipe)
    job = Job(recipe, teacher_of(recipe, place, display), places, display)
    for stage in stages:
        stage.check(job)
    return dataclasses.replace(job, pictures=real_pictures(recipe, job.teacher, display)) if judged else job


def teacher_of(recipe: Recipe, place: torch.device, display: Display, random_weights: bool = False) -> Teacher:
    """The teacher that a recipe names, at `place`; what was assumed of it is said."""
    teacher = load_teacher(
        recipe.teacher, recipe.checkpoint, checkpoint_key=recipe.checkpoint_key, given=recipe.input,
        random_weights=random_weights, device=place.type,
    )  # fmt: skip
    for sentence in teacher.notes:
        display.warn(sentence)
    return teacher


def real_pictures(recipe: Recipe, teacher: Teacher, display: Display) -> ValData | None:
    """The pictures that judge a run, each looked at once."""
    return judging_pictures(teacher, recipe.checkpoint, recipe.judges, display)


def require_same_teacher(teacher: Teacher, sha256: str | None, path: Path) -> None:
    """Raises `InputError` where `path` was made from another teacher."""
    if sha256 != teacher.sha256:
        raise InputError(f"{str(path)!r} was made from another teacher than {teacher.name!r}: give its own checkpoint.")
