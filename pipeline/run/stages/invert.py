"""Teacher in, shards of sparse synthetic images out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from inversion.confidence import confidence_between, confidence_by_stage, target_confidence, warnings_of
from inversion.errors import InputError
from inversion.folder import remove_others
from inversion.images import SparseImages, join
from inversion.inverter import Inverter, invert_into, plan, settle
from inversion.job import AUTO_BATCH, Inversion
from inversion.machine import require_memory
from inversion.shards import JOB, PROGRESS, Part, shard_path
from inversion.teacher import Teacher
from inversion.tensorfile import read_metadata
from pipeline.cluster.inverting import invert_into as cluster_invert_into
from pipeline.recipe.recipe import Recipe
from pipeline.record.manifest import Facts, warnings_in
from pipeline.run import reads
from pipeline.run.job import Job
from pipeline.run.pace import Pace
from pipeline.run.stage import Stage, StageResult
from pipeline.show.display import Display
from pipeline.show.page.album import shown_of

LEAST_TRAJECTORIES = 2
"""Of a run: one learns, one judges."""


class Invert(Stage):
    """Teacher -> `images/shard-*.safetensors`, and what their re-birth looked like."""

    name = "invert"
    version = 4
    libraries = ("torch", "timm")
    unfinished = ("images/*.safetensors", f"images/{JOB}")

    def __init__(self, part: Part | None = None) -> None:
        """With a `part`, only those shards are made, beside whatever other processes make."""
        self.part = part

    def reads(self, job: Job) -> Facts:
        return {
            "teacher": reads.of_teacher(job.teacher),
            "pixels": reads.of_pixels(job.teacher),
            "threads": job.recipe.threads,
            **reads.settings(job.recipe, "inversion"),
        }

    def check(self, job: Job) -> None:
        plan(job.teacher, job.recipe.inversion)
        if job.cluster and job.recipe.inversion.batch == AUTO_BATCH:
            raise InputError("--ray needs the same shards on every machine: give --batch as a number, not auto.")
        device = job.teacher.device
        require_memory(job.teacher.model, settle(job.teacher, job.recipe.inversion), device)

    def cost(self, job: Job, pace: Pace) -> float:
        """Shards that are there already cost nothing; a cluster makes as many at once as it has room for."""
        inversion = settle(job.teacher, job.recipe.inversion)
        left, shards = self._missing(job, inversion), inversion.shards()
        at_once = min(len(left), job.cluster.slots(job.recipe.threads)) if job.cluster else 1
        trajectories = sum(len(shards[number]) for number in left)
        seconds = trajectories * pace.trajectory(inversion) / max(at_once, 1) if left else 0.0
        return seconds + inversion.trajectories * inversion.images_per_trajectory * pace.forward

    def _missing(self, job: Job, inversion: Inversion) -> list[int]:
        """Numbers of the shards that are still to be made."""
        inverter = Inverter(job.teacher, inversion)
        paths = ((number, shard_path(job.places.images, number)) for number in range(len(inversion.shards())))
        return [number for number, path in paths if not inverter.made(path, number)]

    def run(self, job: Job) -> StageResult:
        paths = self._paths(job)
        progress = job.places.images / PROGRESS
        return StageResult([*paths, *([progress] if progress.exists() else [])], describe_images(job.teacher, paths))

    def _paths(self, job: Job) -> list[Path]:
        recipe, folder = job.recipe, job.places.images
        if job.cluster is None:
            return invert_with_bar(job.teacher, recipe.inversion, folder, job.display, self.part)
        with job.display.progress() as progress:
            paths = cluster_invert_into(job.cluster, job.teacher, recipe.inversion, recipe.threads, folder, progress)
        remove_others(folder, paths)
        return paths

    def after(self, job: Job, metrics: Facts) -> None:
        for sentence in warnings_in(metrics):
            job.display.warn(sentence)


def require_enough(recipe: Recipe) -> None:
    """Raises `InputError` for an inversion that leaves nothing to judge by."""
    if recipe.inversion.trajectories < LEAST_TRAJECTORIES:
        raise InputError(
            f"inversion.images={recipe.inversion.images} makes one trajectory and leaves none to judge by: take more."
        )


def invert_with_bar(
    teacher: Teacher, job: Inversion, folder: Path, display: Display, part: Part | None = None
) -> list[Path]:
    """Every shard of `job` in `folder`, and no other: those of an earlier, longer job go. Or those of a `part`, and
    the rest of the folder stays as it is."""
    job = settle(teacher, job)
    with display.progress() as progress:
        paths = invert_into(teacher, job, folder, progress, part)
    if part is None:
        remove_others(folder, paths)
    return paths


def describe_images(teacher: Teacher, shards: Sequence[Path]) -> Facts:
    """How many there are, how sure the teacher is of them by stage, and of those that a report shows, each by itself;
    and a sentence for whatever makes them poor."""
    if not shards:  # others make all of this part
        return {}
    images = join([SparseImages.load(path) for path in shards])
    confidence = target_confidence(teacher, images)
    return {
        "images": len(images),
        "confidence": confidence_by_stage(confidence, images),
        "between": confidence_between(confidence, images),
        "shown": [asdict(each) for each in shown_of(teacher, images)],
        "warnings": [*warnings_of(teacher, images, confidence), *_retried(shards)],
    }


def _retried(shards: Sequence[Path]) -> list[str]:
    """A sentence for each shard that did not come about at once."""
    attempts = {path.name: int(read_metadata(path).get("attempt", "0")) for path in shards}
    return [
        f"{name} is attempt {attempt + 1}, from other noise: before that its loss stopped being finite."
        for name, attempt in attempts.items()
        if attempt
    ]
