"""The inversion loop: noise in, sparse synthetic images out (Algorithm 1 of the paper)."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Generator, Tensor
from torch.nn import functional as F

from inversion.augment import draw_offsets, shift_images, shift_positions
from inversion.errors import InputError, NumericalError
from inversion.images import SparseImages, join
from inversion.schedule import Stage, schedule
from inversion.settings import Inversion
from inversion.sparse import importance, patchify, sparse_forward, take, unpatchify
from inversion.teacher import Teacher

CHECK_EVERY = 25
OnStep = Callable[[int, float], None]
"""Called with (iterations of the whole job that are done, mean classification loss)."""


def invert(teacher: Teacher, job: Inversion, folder: Path, on_step: OnStep | None = None) -> list[Path]:
    """Make every shard of `job` in `folder` that is not there yet; returns all paths in order."""
    plan(teacher, job)  # refuses before the folder is made
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for number in range(len(job.shards())):
        path = folder / f"shard-{number:05d}.safetensors"
        if not _is_shard(path, shard_metadata(teacher, job, number)):
            invert_shard(teacher, job, number, on_step).save(path)
        paths.append(path)
        if on_step:
            on_step((number + 1) * job.iterations, float("nan"))
    return paths


def invert_shard(teacher: Teacher, job: Inversion, number: int, on_step: OnStep | None = None) -> SparseImages:
    """One batch of trajectories, from noise to sparse images; depends on (teacher, job, number) alone.

    Raises `NumericalError` when the loss stops being finite.
    """
    trajectories = job.shards()[number]
    generator = _generator(job.seed, "shard", number)
    labels = _labels(trajectories, teacher.spec.num_classes, job.seed)
    stages = plan(teacher, job)
    loop = _Loop(teacher, job, labels, generator)
    metadata = shard_metadata(teacher, job, number)
    images, done = [], 0
    for index, stage in enumerate(stages, start=1):
        for _ in range(stage.iterations):
            loss = loop.step()
            done += 1
            if done % CHECK_EVERY == 0 or done == job.iterations:
                _report(loss, number, done, job, on_step)
        last = index == len(stages)
        if job.method == "pri" or last:
            patches, kept = loop.remaining() if last else loop.detach(stage.leave)
            images.append(_images(patches, kept, labels, index if job.method == "pri" else 1, trajectories, metadata))
        else:
            loop.prune(stage.leave)
    joined = join(images)
    return joined[torch.argsort(joined.trajectory * len(stages) + joined.stage, stable=True)]


def plan(teacher: Teacher, job: Inversion) -> list[Stage]:
    """Stages of each trajectory; raises `InputError` for what the teacher's grid cannot give."""
    return schedule(job.method, teacher.num_patches, job.iterations, job.division_factor, job.sparsity)


def total_variation(images: Tensor) -> Tensor:
    """Sum of the Frobenius norms of the four neighbour differences (appendix B), each image by itself: [B]."""
    differences = (
        images[..., :, 1:] - images[..., :, :-1],
        images[..., 1:, :] - images[..., :-1, :],
        images[..., 1:, 1:] - images[..., :-1, :-1],
        images[..., 1:, :-1] - images[..., :-1, 1:],
    )
    return torch.stack([torch.linalg.vector_norm(part, dim=(1, 2, 3)) for part in differences]).sum(0)


def shard_metadata(teacher: Teacher, job: Inversion, number: int) -> dict[str, str]:
    """Everything that a shard's bytes depend on, as strings."""
    height, width = teacher.patch_size
    trajectories = job.shards()[number]
    return {
        "method": job.method,
        "grid": "x".join(map(str, teacher.grid)),
        "patch_size": str(height) if height == width else f"{height}x{width}",
        "channels": str(teacher.spec.channels),
        "mean": " ".join(map(str, teacher.spec.mean)),
        "std": " ".join(map(str, teacher.spec.std)),
        "division_factor": str(job.division_factor if job.method == "pri" else 1),
        "sparsity": str(job.sparsity if job.method == "smi" else 0),
        "iterations": str(job.iterations),
        "learning_rate": str(job.learning_rate),
        "betas": " ".join(map(str, job.betas)),
        "tv_weight": str(job.tv_weight),
        "dtype": "float32",
        "seed": str(job.seed),
        "shard": str(number),
        "trajectories": f"{trajectories.start}-{trajectories.stop - 1}",
        "teacher_sha256": teacher.sha256,
    }


class _Loop:
    """Pixels under optimisation: `pixels` [B, A, C*P*P] of the active patches at `kept` [B, A], Adam's state with them.

    `canvas` [B, N, C*P*P] holds, for patches that left, what the active ones see beside them after a shift:
    their last pixels where they were detached, 0 where they were pruned.
    """

    def __init__(self, teacher: Teacher, job: Inversion, labels: Tensor, generator: Generator) -> None:
        self.teacher, self.job = teacher, job
        self.labels = labels.to(teacher.device)
        spec, patches = teacher.spec, teacher.num_patches
        noise = torch.randn(len(labels), spec.channels, *spec.size, generator=generator)
        low, high = (
            patchify(bound.view(1, -1, 1, 1).expand(1, -1, *spec.size), teacher.patch_size)[0, 0].to(teacher.device)
            for bound in spec.pixel_bounds()
        )
        self.low, self.high = low, high  # [C*P*P]
        start = patchify(noise, teacher.patch_size).to(teacher.device).clamp(low, high)
        self.offsets = iter(draw_offsets(job.iterations, spec.size, generator).tolist())
        self.kept = torch.arange(patches, device=teacher.device).expand(len(labels), -1)
        self.canvas = torch.zeros_like(start)
        self._track(start)

    def step(self) -> Tensor:
        """One augmented update of Eq. 1; returns the mean classification loss."""
        down, right, flip = next(self.offsets)
        grid, size = self.teacher.grid, self.teacher.patch_size
        index = self.kept.unsqueeze(-1).expand_as(self.pixels)
        image = unpatchify(self.canvas.scatter(1, index, self.pixels), grid, size)
        shifted = patchify(shift_images(image, down, right, bool(flip)), size)
        moved = shift_positions(self.kept, down, right, bool(flip), grid, size)
        logits = sparse_forward(self.teacher.model, take(shifted, moved), moved)
        classification = F.cross_entropy(logits, self.labels, reduction="sum")
        loss = classification + self.job.tv_weight * total_variation(image).sum()
        (self.pixels.grad,) = torch.autograd.grad(loss, self.pixels)
        self.optimizer.step()
        with torch.no_grad():
            self.pixels.clamp_(self.low, self.high)
        return classification.detach() / len(self.labels)

    def detach(self, count: int) -> tuple[Tensor, Tensor]:
        """Take out the `count` most important patches of each image: their pixels and positions, in grid order."""
        order = self._by_importance()
        patches, kept = self._leave(leaving=order[:, :count], staying=order[:, count:])
        self.canvas.scatter_(1, kept.unsqueeze(-1).expand_as(patches), patches)
        return patches, kept

    def prune(self, count: int) -> None:
        """Drop the `count` least important patches of each image for good."""
        order = self._by_importance()
        staying = order.shape[1] - count
        self._leave(leaving=order[:, staying:], staying=order[:, :staying])

    def remaining(self) -> tuple[Tensor, Tensor]:
        return self.pixels.detach(), self.kept

    def _by_importance(self) -> Tensor:
        scores = importance(self.teacher.model, self.pixels.detach(), self.kept)
        return scores.argsort(dim=1, descending=True, stable=True)

    def _leave(self, leaving: Tensor, staying: Tensor) -> tuple[Tensor, Tensor]:
        leaving, staying = leaving.sort(1).values, staying.sort(1).values
        gone = take(self.pixels.detach(), leaving), self.kept.gather(1, leaving)
        self.kept = self.kept.gather(1, staying)
        adam = self.optimizer.state[self.pixels]
        moments = {key: take(adam[key], staying) for key in ("exp_avg", "exp_avg_sq")}
        self._track(take(self.pixels.detach(), staying), {"step": adam["step"], **moments})
        return gone

    def _track(self, pixels: Tensor, moments: dict[str, Tensor] | None = None) -> None:
        """Optimise `pixels` from here on, with Adam's state as given."""
        self.pixels: Tensor = pixels.clone().requires_grad_(True)
        self.optimizer = torch.optim.Adam([self.pixels], lr=self.job.learning_rate, betas=self.job.betas, fused=True)
        if moments:
            self.optimizer.state[self.pixels] = moments


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


def _labels(trajectories: range, num_classes: int, seed: int) -> Tensor:
    """Target class of each trajectory [B]: every class once, in random order, before any comes again."""
    classes = []
    for trajectory in trajectories:
        round_, place = divmod(trajectory, num_classes)
        classes.append(torch.randperm(num_classes, generator=_generator(seed, "labels", round_))[place])
    return torch.stack(classes)


def _generator(seed: int, purpose: str, number: int) -> Generator:
    digest = hashlib.sha256(f"{seed}/{purpose}/{number}".encode()).digest()
    return Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)


def _is_shard(path: Path, metadata: dict[str, str]) -> bool:
    """Whether `path` is a whole shard made with exactly these settings."""
    if not path.is_file():
        return False
    try:
        found = SparseImages.load(path).metadata
    except InputError:
        return False
    return {key: value for key, value in found.items() if key != "format"} == metadata


def _report(loss: Tensor, number: int, done: int, job: Inversion, on_step: OnStep | None) -> None:
    value = float(loss)
    if value != value or value in (float("inf"), float("-inf")):
        raise NumericalError(
            f"the loss of shard {number} is not finite at iteration {done}: lower the learning rate "
            f"({job.learning_rate}) or the TV weight ({job.tv_weight})."
        )
    if on_step:
        on_step(number * job.iterations + done, value)
