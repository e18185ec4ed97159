"""Teacher in, shards of sparse synthetic images out (Algorithm 1 of the paper)."""

from __future__ import annotations

import dataclasses
import hashlib
import math
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path

import timm
import torch
from torch import Generator, Tensor

from inversion.errors import InputError, NumericalError
from inversion.folder import ShardFolder, is_made
from inversion.images import SparseImages, join
from inversion.job import AUTO_BATCH, Inversion
from inversion.loop import Loop
from inversion.machine import choose_precision, fitting_batch, require_memory, working_copy
from inversion.progress import Progress, Tally, quiet
from inversion.schedule import Stage, schedule
from inversion.shards import Part, Wanted
from inversion.teacher import Teacher
from inversion.terms import chosen_prior

CHECK_EVERY = 25
ATTEMPTS = 3
"""At a shard whose loss stops being finite, each from other noise."""
PROGRESS_TRAJECTORIES = 4
WHAT = "inversion"
"""Of which `inversion.progress` tells the iterations of the whole job, and the mean classification loss."""
WAITING = "waiting for other processes"
POLL_S = 1.0


def invert(
    teacher: Teacher,
    job: Inversion | None = None,
    *,
    folder: Path | str | None = None,
    progress: Progress = quiet,
) -> SparseImages:
    """All images of `job`, by default PRI's 96 of 300 iterations, in memory; pixels are rounded to what float16 holds.

    With a `folder`, shards are kept there too, and those that lie there already are not made again. `progress` is
    called with ("inversion", iterations done, in all, mean loss). Raises `InputError` for what the teacher cannot give.

        >>> from inversion import Inversion, invert, load_teacher
        >>> images = invert(load_teacher("digits_vit"), Inversion(images=8, iterations=4, division_factor=4))
        >>> len(images), images.patches.shape
        (8, torch.Size([8, 16, 16]))
        >>> images.mosaics().shape
        torch.Size([2, 1, 32, 32])
    """
    job = job or Inversion()
    if folder is not None:
        return join([SparseImages.load(path) for path in invert_into(teacher, job, Path(folder), progress)])
    inverter = Inverter(teacher, job)
    images = join([inverter.shard(number, progress)[0] for number in range(len(inverter.job.shards()))])
    return dataclasses.replace(images, patches=images.patches.half().float())


def invert_into(
    teacher: Teacher, job: Inversion, folder: Path, progress: Progress = quiet, part: Part | None = None
) -> list[Path]:
    """Make every shard of `job` in `folder` that is not there yet; returns all paths in order, when all are there.

    Any number of processes may do so at once: each shard is made by one of them, and the others wait for it. With a
    `part`, only its shards are made, nothing is waited for, and those paths are returned that are there.

    Shards are written in the background while the next is made. Beside the first, PRI leaves `progress.safetensors`:
    `canvas` [v, R, C, H, W], whole pictures of R trajectories at each detachment point, and `trajectory` [R].
    """
    inverter = Inverter(teacher, job)  # refuses before the folder is made
    whole = part or Part(0, 1)
    left = numbers = list(whole.numbers(len(inverter.wanted)))
    told = Tally(progress, WHAT, len(numbers), job.iterations)
    with ShardFolder(folder, inverter.wanted) as shards, ThreadPoolExecutor(1) as writer:
        written = writer.submit(lambda: None)
        while left:
            held = []  # by others
            for number in left:
                if not shards.made(number):
                    if not shards.take(number):
                        held.append(number)
                        continue
                    images, pictures = inverter.shard(number, told.within(number))
                    written.result()
                    written = writer.submit(shards.publish, number, images, pictures)
                told.one_more()
            written.result()
            left = [] if part else held
            if left:
                progress(WAITING, len(numbers) - len(left), len(numbers), math.nan)
                time.sleep(POLL_S)
    return [path for path in map(shards.shard, numbers) if path.is_file()]


def invert_shard(teacher: Teacher, job: Inversion, number: int, progress: Progress = quiet) -> SparseImages:
    """One batch of trajectories, from noise to sparse images; depends on (teacher, job, number) alone.

    A loss that stops being finite is met by starting again from other noise; the shard's metadata then say which
    `attempt` it is. Raises `NumericalError` when all of them fail.
    """
    return Inverter(teacher, job).shard(number, progress)[0]


def plan(teacher: Teacher, job: Inversion) -> list[Stage]:
    """Stages of each trajectory; raises `InputError` for what the teacher's grid or classes cannot give, and for a
    prior that cannot be loaded (`MachineError` where it would have to be fetched)."""
    for label in job.classes:
        if not 0 <= label < teacher.spec.num_classes:
            raise InputError(f"class {label} is not one of {teacher.name!r}: take 0 to {teacher.spec.num_classes - 1}.")
    stages = schedule(job, teacher.num_patches)
    chosen_prior(teacher, job)
    return stages


def settle(teacher: Teacher, job: Inversion) -> Inversion:
    """`job` with its batch as a number, if it was to be as many images as fit where the teacher is."""
    if job.batch != AUTO_BATCH:
        return job
    return dataclasses.replace(job, batch=fitting_batch(teacher.model, job, teacher.device))


def shard_metadata(teacher: Teacher, job: Inversion, number: int, dtype: torch.dtype) -> dict[str, str]:
    """Everything that a shard's bytes depend on, as strings."""
    height, width = teacher.patch_size
    trajectories = job.shards()[number]
    settings = dataclasses.asdict(job)
    for name in ("images", "batch", "precision"):  # `trajectories` and `dtype` say what they came to
        del settings[name]
    if job.method != "smi":
        del settings["prune_at"]
    return {
        **{
            name: " ".join(map(str, value)) if isinstance(value, tuple) else str(value)
            for name, value in settings.items()
        },
        "grid": "x".join(map(str, teacher.grid)),
        "patch_size": str(height) if height == width else f"{height}x{width}",
        "channels": str(teacher.spec.channels),
        "mean": _text(teacher.spec.mean),
        "std": _text(teacher.spec.std),
        "division_factor": str(job.division_factor if job.method == "pri" else 1),
        "sparsity": str(job.sparsity if job.method == "smi" else 0),
        "dtype": str(dtype).removeprefix("torch."),
        "shard": str(number),
        "trajectories": f"{trajectories.start}-{trajectories.stop - 1}",
        "teacher_sha256": teacher.sha256,
        # another version may round otherwise; a build of the same for other hardware does not make shards anew
        "torch": torch.__version__.split("+")[0],
        "timm": timm.__version__,
    }


class Inverter:
    """A teacher made ready for one job, where the teacher is."""

    def __init__(self, teacher: Teacher, job: Inversion) -> None:
        self.stages = plan(teacher, job)
        self.teacher, self.job = teacher, settle(teacher, job)
        require_memory(teacher.model, self.job, teacher.device)
        self.dtype = choose_precision(job.precision, teacher.device)
        self.model = working_copy(teacher.model, self.dtype)
        self.most_at_once: int | None = None

    @cached_property
    def wanted(self) -> Wanted:
        """What the job's shards are to be."""
        metadata = shard_metadata(self.teacher, self.job, 0, self.dtype)
        own = {"shard", "trajectories", *(["dtype"] if self.job.precision == "auto" else [])}
        common = {key: value for key, value in metadata.items() if key not in own}
        return Wanted(self.job.trajectories, len(self.job.shards()[0]), common)

    def made(self, path: Path, number: int) -> bool:
        """Whether `path` is a whole shard made with exactly these settings."""
        return is_made(path, number, self.wanted)

    def shard(self, number: int, progress: Progress = quiet) -> tuple[SparseImages, dict[str, Tensor]]:
        """The images of one shard, and the tensors of its progress. Out of memory, fewer pass the model at once."""
        attempt = 0
        while True:
            loop = self.loop(number, attempt)
            try:
                return self._run(loop, number, attempt, progress)
            except NumericalError as error:
                attempt += 1
                if attempt == ATTEMPTS:
                    raise NumericalError(f"{attempt} times, each from other noise, {error}") from error
            except torch.OutOfMemoryError:
                if loop.chunk == 1:
                    raise
                self.most_at_once = loop.chunk // 2
            del loop
            torch.cuda.empty_cache()

    def loop(self, number: int, attempt: int = 0) -> Loop:
        """The shard's trajectories as noise, other noise at each attempt."""
        trajectories = self.job.shards()[number]
        labels = _labels(trajectories, self.job.classes or range(self.teacher.spec.num_classes), self.job.seed)
        generator = _generator(self.job.seed, f"shard, attempt {attempt}" if attempt else "shard", number)
        return Loop(self.teacher, self.model, self.job, labels, generator, self.most_at_once)

    def _run(self, loop: Loop, number: int, attempt: int, progress: Progress) -> tuple[SparseImages, dict[str, Tensor]]:
        job, trajectories = self.job, self.job.shards()[number]
        metadata = shard_metadata(self.teacher, job, number, self.dtype)
        metadata |= {"attempt": str(attempt)} if attempt else {}
        images: list[SparseImages] = []
        pictures: list[Tensor] = []
        for number_of_stage, stage in enumerate(self.stages, start=1):
            loop.run(stage.iterations, lambda: _report(loop, number, job, progress))
            _require_finite(loop, number, job)
            pictures.append(loop.pictures()[:PROGRESS_TRAJECTORIES].to("cpu", torch.float16))
            last = number_of_stage == len(self.stages)
            leaves = loop.remaining() if last else loop.end_stage(stage.leave)
            if leaves is not None:
                images.append(_images(*leaves, loop.labels, len(images) + 1, trajectories, metadata))
        joined = join(images)
        grown = {"canvas": torch.stack(pictures), "trajectory": images[0].trajectory[:PROGRESS_TRAJECTORIES]}
        return joined[torch.argsort(joined.trajectory * len(self.stages) + joined.stage, stable=True)], grown


def _text(value: object) -> str:
    return " ".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _images(
    patches: Tensor, kept: Tensor, labels: Tensor, stage: int, trajectories: range, metadata: dict[str, str]
) -> SparseImages:
    count = len(labels)
    return SparseImages(
        patches=patches.cpu(),
        kept=kept.to("cpu", torch.int16),
        labels=labels.to(torch.int32),
        stage=torch.full((count,), stage, dtype=torch.int8),
        trajectory=torch.arange(trajectories.start, trajectories.stop, dtype=torch.int32),
        metadata=metadata,
    )


def _labels(trajectories: range, classes: Sequence[int], seed: int) -> Tensor:
    """Target class of each trajectory [B]: every one of `classes` once, in random order, before any comes again."""
    labels = []
    for trajectory in trajectories:
        round_, place = divmod(trajectory, len(classes))
        order = torch.randperm(len(classes), generator=_generator(seed, "labels", round_))
        labels.append(classes[int(order[place])])
    return torch.tensor(labels)


def _generator(seed: int, purpose: str, number: int) -> Generator:
    digest = hashlib.sha256(f"{seed}/{purpose}/{number}".encode()).digest()
    return Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)


def _report(loop: Loop, number: int, job: Inversion, progress: Progress) -> None:
    """Every 25 updates and at the end; the loss is read only where that does not make a device wait."""
    if loop.done % CHECK_EVERY and loop.done != job.iterations:
        return
    on_cpu = loop.device.type == "cpu"
    if on_cpu:
        _require_finite(loop, number, job)
    total = len(job.shards()) * job.iterations
    progress(WHAT, number * job.iterations + loop.done, total, float(loop.loss) if on_cpu else math.nan)


def _require_finite(loop: Loop, number: int, job: Inversion) -> None:
    if int(loop.first_bad) >= 0:
        raise NumericalError(
            f"the loss of shard {number} is not finite at iteration {int(loop.first_bad)}: lower the learning rate "
            f"({job.learning_rate}) or the TV weight ({job.tv_weight})."
        )
