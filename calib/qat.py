"""Quantization-aware training: steps and weights learn to answer as the teacher does, on synthetic images only."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Generator, Tensor, nn

from calib.fidelity import Fidelity, OnStep, fidelity, kl_to_teacher
from calib.lsq import keep_positive, learn_steps
from calib.settings import Training
from calib.views import Views
from inversion.errors import NumericalError
from inversion.sparse import sparse_forward


@dataclass(frozen=True)
class Outcome:
    """`calibrated`: held-out fidelity before training; `best`: of what is kept; `history`: (updates, fidelity)."""

    calibrated: Fidelity
    best: Fidelity
    best_update: int
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
    teacher_logits, held_logits = images.logits(teacher), held_out.logits(teacher)
    steps = learn_steps(student)
    optimizer = _optimizer(student, steps, settings)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda done: _rate(done, settings))
    best = fidelity(student, held_out, held_logits)
    kept, best_update, history, stale = _snapshot(student), 0, [(0, best)], 0
    batches = _endless(images, settings)
    every = max(1, math.ceil(settings.updates / settings.checks))
    for done in range(1, settings.updates + 1):
        group, rows = next(batches)
        patches, kept_positions = images.groups[group]
        logits = sparse_forward(student, patches[rows], kept_positions[rows])
        loss = kl_to_teacher(logits, teacher_logits[group][rows])
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        schedule.step()
        keep_positive(steps)
        value = _finite(loss, done, settings)
        if on_update:
            on_update(done, value)
        if done % every == 0 or done == settings.updates:
            now = fidelity(student, held_out, held_logits)
            history.append((done, now))
            stale += 1
            if now < best:
                best, kept, best_update, stale = now, _snapshot(student), done, 0
            if stale >= settings.patience:
                break
    student.load_state_dict(kept)
    return Outcome(history[0][1], best, best_update, tuple(history))


def _optimizer(student: VisionTransformer, steps: list[nn.Parameter], settings: Training) -> torch.optim.Optimizer:
    chosen = {id(step) for step in steps}
    student.requires_grad_(True)
    weights = [parameter for parameter in student.parameters() if id(parameter) not in chosen]
    if settings.optimizer == "sgd":
        return torch.optim.SGD([*weights, *steps], settings.learning_rate, momentum=0.9, weight_decay=1e-4)
    # Adam moves a parameter by about its rate, whatever its size: so a step's rate is a share of the step
    groups = [{"params": weights, "lr": settings.learning_rate}]
    groups += [{"params": [step], "lr": settings.step_learning_rate * float(step.detach().mean())} for step in steps]
    return torch.optim.Adam(groups)


def _rate(done: int, settings: Training) -> float:
    """Share of the learning rate after `done` updates."""
    if settings.schedule == "constant":
        return 1.0
    return 0.5 * (1 + math.cos(math.pi * min(done / max(settings.updates, 1), 1)))


def _endless(images: Views, settings: Training) -> Iterator[tuple[int, Tensor]]:
    generator = Generator().manual_seed(settings.seed)
    while True:
        batches = list(images.batches(settings.batch, lambda count: torch.randperm(count, generator=generator)))
        for index in torch.randperm(len(batches), generator=generator).tolist():
            yield batches[index]


def _snapshot(student: VisionTransformer) -> dict[str, Tensor]:
    return copy.deepcopy(student.state_dict())


def _finite(loss: Tensor, done: int, settings: Training) -> float:
    value = float(loss.detach())
    if not math.isfinite(value):
        raise NumericalError(
            f"the training loss is not finite at update {done}: lower the learning rate ({settings.learning_rate})."
        )
    return value
