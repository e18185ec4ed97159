"""Before any work: one place, one teacher on it, and everything refused that could not be done."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import torch

from inversion.errors import InputError
from inversion.machine import settle_sums
from inversion.teacher import Teacher, load_teacher
from pipeline.cluster.connect import Cluster
from pipeline.pictures.valdata import ValData, judging_pictures
from pipeline.recipe.recipe import Recipe
from pipeline.run.job import Job, Places
from pipeline.run.stage import Stage
from pipeline.show.display import Display


def preflight(
    recipe: Recipe, place: torch.device, places: Places, display: Display, stages: Sequence[Stage] = (),
    judged: bool = False, cluster: Cluster | None = None,
) -> Job:  # fmt: skip
    """The job of `stages`, after each has refused what it could not do. With `judged`, real pictures judge where the
    recipe names some, and each was looked at. With a `cluster`, stages that can work on it do."""
    recipe = dataclasses.replace(recipe, threads=settle_sums(recipe.threads))
    for stage in stages:
        stage.check_recipe(recipe)
    job = Job(recipe, teacher_of(recipe, place, display), places, display, cluster=cluster)
    for stage in stages:
        stage.check(job)
    return dataclasses.replace(job, pictures=real_pictures(recipe, job.teacher, display)) if judged else job


def teacher_of(recipe: Recipe, place: torch.device, display: Display, random_weights: bool = False) -> Teacher:
    """The teacher that a recipe names, at `place`; what was assumed of it is said."""
    teacher = load_teacher(
        recipe.teacher, recipe.checkpoint, checkpoint_key=recipe.checkpoint_key, given=recipe.input,
        random_weights=random_weights, device=str(place),
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
