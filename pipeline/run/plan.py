"""A build before its work: what it is of, what it takes of this machine, and what of it is there already."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from calib.memory import gradient_bytes, training_bytes
from inversion.machine import choose_precision, free_memory
from pipeline.record.manifest import MANIFEST, Facts, Manifest, StageRecord, read_manifest
from pipeline.run.build import NAMES, STAGES, stage_inputs
from pipeline.run.folder import is_intact, stage_digest
from pipeline.run.job import Job
from pipeline.run.pace import Pace
from pipeline.show.itinerary import duration

LIBRARIES_BYTES = 1.5e9
"""What a process takes beside the model: DeiT-Small and DeiT-Base peaked at 1.5 and 1.8 GB above their estimates."""

ENGINE_BYTES = 5e6
"""Of an engine beside its weights."""


@dataclass(frozen=True)
class PlannedStage:
    """A stage, and the seconds that it is expected to take: none where it is found unchanged."""

    name: str
    unchanged: bool
    seconds: float


@dataclass(frozen=True)
class Plan:
    """A build on this machine as it is now. Bytes are estimates of what it needs, beside what is free."""

    teacher: str
    teacher_sha256: str
    weights: int
    classes: int
    input_size: tuple[int, ...]
    bits: str
    effort: str
    method: str
    images: int
    trajectories: int
    iterations: int
    leaves: int
    judging_leaves: int
    judging_pictures: int
    stages: tuple[PlannedStage, ...]
    memory_bytes: int
    memory_free_bytes: int | None
    disk_bytes: int
    disk_free_bytes: int
    folder: str
    device: str
    precision: str
    threads: int
    ray: str | None

    @property
    def seconds(self) -> float:
        return sum(stage.seconds for stage in self.stages)

    def to_json(self) -> Facts:
        """As tables that `json.dumps` takes."""
        return {**asdict(self), "seconds": self.seconds}


def make_plan(job: Job, anew_from: str | None = None) -> Plan:
    """The plan of `pipeline.run.build.build`, which changes nothing; rates are measured, where a stage is to run."""
    teacher, recipe, folder = job.teacher, job.recipe, job.places.folder
    inversion, spec = recipe.inversion, teacher.spec
    kept, pace = unchanged(job, anew_from), Pace(teacher)
    free = free_memory(teacher.device)
    return Plan(
        teacher=teacher.name, teacher_sha256=teacher.sha256, weights=_weights(job), classes=spec.num_classes,
        input_size=(spec.channels, *spec.size), bits=recipe.bits, effort=recipe.effort, method=inversion.method,
        images=inversion.trajectories * inversion.images_per_trajectory, trajectories=inversion.trajectories,
        iterations=inversion.iterations, leaves=recipe.calibration.leaves,
        judging_leaves=recipe.validation.pictures, judging_pictures=job.pictures.count if job.pictures else 0,
        stages=tuple(
            PlannedStage(stage.name, stage.name in kept, 0.0 if stage.name in kept else round(stage.cost(job, pace), 1))
            for stage in STAGES
        ),
        memory_bytes=memory_bytes(job), memory_free_bytes=None if free == float("inf") else int(free),
        disk_bytes=disk_bytes(job), disk_free_bytes=shutil.disk_usage(_nearest(folder)).free,
        folder=str(folder), device=str(teacher.device),
        precision=str(choose_precision(inversion.precision, teacher.device)).removeprefix("torch."),
        threads=recipe.threads, ray=job.cluster.address if job.cluster else None,
    )  # fmt: skip


def unchanged(job: Job, anew_from: str | None = None) -> list[str]:
    """Names of the first stages that would be found as they are. Behind the first that runs nothing is sure: what it
    makes may be the same as before."""
    folder = job.places.folder
    manifest = read_manifest(folder / MANIFEST)
    found, made = [], replace(job, made={})
    for stage in STAGES[: NAMES.index(anew_from) if anew_from else None]:
        digest = stage_digest(stage.name, stage_inputs(stage, made))
        if (record := _whole(manifest, stage.name, digest, folder)) is None:
            break
        made.made[stage.name] = record
        found.append(stage.name)
    return found


def _whole(manifest: Manifest | None, name: str, digest: str, folder: Path) -> StageRecord | None:
    record = manifest.find(name) if manifest else None
    whole = record and record.digest == digest and all(is_intact(folder, output) for output in record.outputs)
    return record if whole else None


def memory_bytes(job: Job) -> int:
    """What quantization, the stage that needs most, takes where the teacher is, with the libraries."""
    model, training = job.teacher.model, job.recipe.training
    need = gradient_bytes(model)
    if training.updates:
        need = max(need, training_bytes(model, training, job.teacher.device))
    return int(need + LIBRARIES_BYTES)


def disk_bytes(job: Job) -> int:
    """Of a whole run folder: float32 beside the integers, each engine with its weights twice, and what is deployed."""
    recipe, weights, spec = job.recipe, _weights(job), job.teacher.spec
    few = recipe.quant_scheme().weight_bits <= 4
    models = weights * (4 + 3 + (0.5 if few else 0) + (1 if job.backend else 0))  # float, two ONNX, safetensors, ...
    engines = len(recipe.engine.arch) * (2 * weights + ENGINE_BYTES) if job.backend else 0
    pixels = spec.channels * spec.size[0] * spec.size[1]
    images = 2 * recipe.inversion.trajectories * pixels  # float16; PRI's of one trajectory tile one picture
    return int(models + images + 2 * engines + weights)


def plan_lines(plan: Plan) -> Iterator[str]:
    """For people, a line a subject."""
    size = "x".join(map(str, plan.input_size))
    yield (
        f"teacher:  {plan.teacher}, {plan.weights / 1e6:.1f} million weights, {plan.classes} classes, {size} pixels, "
        f"sha256 {plan.teacher_sha256[:12]}"
    )
    yield f"scheme:   {plan.bits}, effort {plan.effort}"
    yield (
        f"images:   {plan.images} of {plan.trajectories} trajectories ({plan.method}, {plan.iterations} iterations), "
        f"{plan.leaves} dead leaves"
    )
    real = f"{plan.judging_pictures} real pictures" if plan.judging_pictures else "no real picture (--val-data)"
    yield f"judges:   {plan.judging_leaves} dead leaves, held-out mosaics, {real}"
    where = f", with the Ray cluster {plan.ray}" if plan.ray else ""
    yield f"device:   {plan.device}, {plan.threads} threads; inversion in {plan.precision}{where}"
    free = "" if plan.memory_free_bytes is None else f" of {_size(plan.memory_free_bytes)} free"
    yield f"memory:   about {_size(plan.memory_bytes)}{free}"
    yield f"disk:     about {_size(plan.disk_bytes)} of {_size(plan.disk_free_bytes)} free, in {plan.folder}"
    for number, stage in enumerate(plan.stages, 1):
        how = "unchanged, is not run again" if stage.unchanged else f"about {duration(stage.seconds)}"
        yield f"stage {number}:  {stage.name}, {how}"
    yield f"in all:   about {duration(plan.seconds)}, as fast as this machine is now"


def _size(count: float) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"


def _weights(job: Job) -> int:
    return sum(parameter.numel() for parameter in job.teacher.model.parameters())


def _nearest(folder: Path) -> Path:
    """The folder itself, or the nearest above it that there is."""
    return next(path for path in (folder, *folder.absolute().parents) if path.exists())
