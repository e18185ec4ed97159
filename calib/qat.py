"""Quantization-aware training: steps and weights learn to answer as the teacher does, on synthetic images only."""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Generator, Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from calib.augment import random_crops
from calib.features import feature_error, forward_features
from calib.fidelity import Fidelity, OnStep, fidelity, kl_to_teacher
from calib.lsq import keep_positive, learn_steps
from calib.settings import Training
from calib.views import Views
from inversion.errors import NumericalError
from inversion.machine import choose_precision, prefer_plain_attention
from inversion.sparse import patchify, sparse_forward, unpatchify


@dataclass(frozen=True)
class Outcome:
    """`calibrated`: held-out fidelity before training; `best`: of what is kept; `history`: (updates, fidelity).

    `averaged`: what is kept is the moving average of the weights.
    """

    calibrated: Fidelity
    best: Fidelity
    best_update: int
    averaged: bool
    history: tuple[tuple[int, Fidelity], ...]


def train(
    student: VisionTransformer,
    teacher: VisionTransformer,
    images: Views,
    held_out: Views,
    settings: Training,
    on_update: OnStep | None = None,
) -> Outcome:
    """Train `student` in place; it ends with the weights and steps of least KL on `held_out`.

    Those may be the ones that it came with: training that does not help on held-out synthetic images changes
    nothing. Raises `NumericalError` when the loss stops being finite.
    """
    steps = learn_steps(student)
    lessons = Lessons(teacher, images, settings)
    if lessons.half:
        prefer_plain_attention(student, lessons.device)
    optimizer = _optimizer(student, steps, settings)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda done: _rate(done, settings))
    average = AveragedModel(student, multi_avg_fn=get_ema_multi_avg_fn(settings.ema)) if settings.ema else None
    best = _Best(student, held_out, held_out.logits(teacher))
    every = max(1, math.ceil(settings.updates / settings.checks))
    for done in range(1, settings.updates + 1):
        loss, divergence = lessons.next(student)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        schedule.step()
        keep_positive(steps)
        if average:
            average.update_parameters(student)
        _require_finite(loss, done, settings)
        if on_update:
            on_update(done, float(divergence))
        if done % every == 0 or done == settings.updates:
            best.check(student, average and average.module, done)
            if best.stale >= settings.patience:
                break
    student.load_state_dict(best.state)
    return Outcome(best.history[0][1], best.fidelity, best.update, best.averaged, tuple(best.history))


class Lessons:
    """Batches without end, each with what the teacher says of it and the loss against that.

    Of images that are shown as they are, the teacher's answers are computed once; of crops, and where the tokens behind
    its blocks count too, anew.
    """

    def __init__(self, teacher: VisionTransformer, images: Views, settings: Training) -> None:
        self.teacher, self.images, self.settings = teacher, images, settings
        self.generator = Generator().manual_seed(settings.seed)
        self.batches = self._endless()
        self.device = images.groups[0][0].device
        self.half = choose_precision(settings.precision, self.device) == torch.bfloat16
        once = not settings.crops and not settings.feature_weight
        self.logits = images.logits(teacher) if once else None

    def next(self, student: VisionTransformer) -> tuple[Tensor, Tensor]:
        """(loss, KL to the teacher alone, detached) of `student` on the next batch."""
        group, rows = next(self.batches)
        patches, kept = (part[rows] for part in self.images.groups[group])
        if self.settings.crops:
            patches = self._cropped(patches)
        known = self.logits[group][rows] if self.logits else None
        divergence, errors = self._compare(student, patches, kept, known)
        return divergence + self.settings.feature_weight * errors, divergence.detach()

    def _compare(
        self, student: VisionTransformer, patches: Tensor, kept: Tensor, known: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        temperature, errors = self.settings.temperature, patches.new_zeros(())
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.half):
            if self.settings.feature_weight:
                with torch.no_grad():
                    target, theirs = forward_features(self.teacher, patches, kept)
                answer, ours = forward_features(student, patches, kept)
                errors = feature_error(ours, theirs)
            else:
                with torch.no_grad():
                    target = sparse_forward(self.teacher, patches, kept) if known is None else known
                answer = sparse_forward(student, patches, kept)
        return kl_to_teacher(answer.float(), target.float(), temperature), errors

    def _cropped(self, patches: Tensor) -> Tensor:
        size, grid = self.teacher.patch_embed.patch_size, self.teacher.patch_embed.grid_size
        return patchify(random_crops(unpatchify(patches, grid, size), self.generator), size)

    def _endless(self) -> Iterator[tuple[int, Tensor]]:
        """(group, rows) of batches that are all full; a group's turn comes as often as it has images."""
        sizes = [len(kept) for _, kept in self.images.groups]
        streams = [self._shuffled(size) for size in sizes]
        while True:
            group = int(torch.multinomial(torch.tensor(sizes).double(), 1, generator=self.generator))
            count = min(self.settings.batch, sizes[group])
            yield group, torch.tensor(list(itertools.islice(streams[group], count)))

    def _shuffled(self, count: int) -> Iterator[int]:
        """Every row once in random order before any comes again."""
        while True:
            yield from torch.randperm(count, generator=self.generator).tolist()


class _Best:
    """The state of least KL on held-out images seen so far."""

    def __init__(self, student: VisionTransformer, held_out: Views, logits: list[Tensor]) -> None:
        self.held_out, self.logits = held_out, logits
        self.fidelity = fidelity(student, held_out, logits)
        self.state, self.update, self.averaged, self.stale = _snapshot(student), 0, False, 0
        self.history = [(0, self.fidelity)]

    def check(self, student: VisionTransformer, average: Any | None, update: int) -> None:
        """Judge `student` and, where there is one, the average; the better of both enters the history."""
        judged = [(fidelity(model, self.held_out, self.logits), model) for model in (student, average) if model]
        now, model = min(judged, key=lambda pair: pair[0])
        self.history.append((update, now))
        self.stale += 1
        if now < self.fidelity:
            self.fidelity, self.state, self.update, self.stale = now, _snapshot(model), update, 0
            self.averaged = model is average


def _optimizer(student: VisionTransformer, steps: list[nn.Parameter], settings: Training) -> torch.optim.Optimizer:
    chosen = {id(step) for step in steps}
    student.requires_grad_(True)
    weights = [parameter for parameter in student.parameters() if id(parameter) not in chosen]
    if settings.optimizer == "sgd":
        return torch.optim.SGD([*weights, *steps], settings.learning_rate, momentum=0.9, weight_decay=1e-4)
    # Adam moves a parameter by about its rate, whatever its size: so a step's rate is a share of the step
    groups = [{"params": weights, "lr": settings.learning_rate}]
    groups += [{"params": [step], "lr": settings.step_learning_rate * float(step.detach().mean())} for step in steps]
    return torch.optim.Adam(groups, fused=True)


def _rate(done: int, settings: Training) -> float:
    """Share of the learning rate after `done` updates."""
    if settings.schedule == "constant":
        return 1.0
    return 0.5 * (1 + math.cos(math.pi * min(done / max(settings.updates, 1), 1)))


def _snapshot(student: VisionTransformer) -> dict[str, Tensor]:
    return copy.deepcopy(student.state_dict())


def _require_finite(loss: Tensor, done: int, settings: Training) -> None:
    if not math.isfinite(float(loss.detach())):
        raise NumericalError(
            f"the training loss is not finite at update {done}: lower the learning rate ({settings.learning_rate})."
        )
