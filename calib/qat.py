"""Quantization-aware training: steps and weights learn to answer as the teacher does, on synthetic images only."""

from __future__ import annotations

import copy
import dataclasses
import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from calib.fidelity import Fidelity, fidelity
from calib.lessons import Lessons
from calib.lsq import keep_positive, learn_steps
from calib.parallel import ALONE, Workers, agreed_fidelity, sum_gradients
from calib.settings import Training
from calib.training_checkpoint import Checkpoint
from calib.views import Views
from inversion.errors import NumericalError
from inversion.machine import prefer_plain_attention
from inversion.plainvit import PlainViT
from inversion.progress import Progress, quiet


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
    student: PlainViT,
    teacher: PlainViT,
    images: Views,
    held_out: Views,
    settings: Training,
    progress: Progress = quiet,
    checkpoint: Checkpoint | None = None,
    workers: Workers = ALONE,
) -> Outcome:
    """Train `student` in place; it ends with the weights and steps of least KL on `held_out`.

    Those may be the ones that it came with: training that does not help on held-out synthetic images changes
    nothing. With a `checkpoint`, what was saved there goes on, with the bytes that it would have had. Several `workers`
    with equal students make each update together, and worker 0 saves. Raises `NumericalError` when the loss stops being
    finite.
    """
    trainer = Trainer(student, teacher, images, held_out, settings, workers)
    if checkpoint and checkpoint.saved:
        trainer.restore(*checkpoint.saved)
        checkpoint.saved = None  # five times the model: not needed twice
    else:
        trainer.best.check(student, None, 0)
    while trainer.goes_on():
        if checkpoint and workers.rank == 0 and (checkpoint.due or not trainer.done):
            checkpoint.save(trainer.tensors(), trainer.about())
        divergence = trainer.update()
        progress("training", trainer.done, settings.updates, divergence)
    return trainer.conclude()


class Trainer:
    """A training at some update. `tensors` and `about` are all that another needs to go on as this one would."""

    def __init__(
        self,
        student: PlainViT,
        teacher: PlainViT,
        images: Views,
        held_out: Views,
        settings: Training,
        workers: Workers = ALONE,
    ) -> None:
        self.student, self.settings, self.workers, self.done = student, settings, workers, 0
        self.steps = learn_steps(student)
        self.lessons = Lessons(teacher, images, settings, workers)
        if self.lessons.half:
            prefer_plain_attention(student)
        self.optimizer = _optimizer(student, self.steps, settings)
        self.schedule = torch.optim.lr_scheduler.LambdaLR(self.optimizer, lambda done: _rate(done, settings))
        module: Any = student  # an nn.Module, as torch's average wants it
        self.average = AveragedModel(module, multi_avg_fn=get_ema_multi_avg_fn(settings.ema)) if settings.ema else None
        self.best = _Best(held_out, held_out.logits(teacher), workers)

    def goes_on(self) -> bool:
        return self.done < self.settings.updates and self.best.stale < self.settings.patience

    def update(self) -> float:
        """One batch, and where it is due a look at the held-out images; returns the batch's KL to the teacher."""
        loss, divergence = self.lessons.next(self.student)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        loss, divergence = sum_gradients([*self.student.parameters()], (loss, divergence), self.workers)
        self.optimizer.step()
        self.schedule.step()
        keep_positive(self.steps)
        if self.average:
            module: Any = self.student
            self.average.update_parameters(module)
        self.done += 1
        _require_finite(loss, self.done, self.settings)
        every = max(1, math.ceil(self.settings.updates / self.settings.checks))
        if self.done % every == 0 or self.done == self.settings.updates:
            self.best.check(self.student, self.average and self.average.module, self.done)
        return float(divergence)

    def conclude(self) -> Outcome:
        """Give the student the best state; `goes_on` is over."""
        best = self.best
        self.student.load_state_dict(best.state)
        return Outcome(best.history[0][1], best.fidelity, best.update, best.averaged, tuple(best.history))

    def tensors(self) -> dict[str, Tensor]:
        parts: dict[str, dict[str, Tensor]] = {
            "student": self.student.state_dict(),
            "best": self.best.state,
            "lessons": self.lessons.state(),
            **{f"optimizer.{index}": values for index, values in self.optimizer.state_dict()["state"].items()},
        }
        if self.average:
            parts["average"] = self.average.state_dict()
        return {f"{part}/{key}": value for part, values in parts.items() for key, value in values.items()}

    def about(self) -> dict[str, Any]:
        best = self.best
        history = [(update, dataclasses.asdict(found)) for update, found in best.history]
        return {
            "done": self.done,
            "groups": self.optimizer.state_dict()["param_groups"],
            "best": {"update": best.update, "averaged": best.averaged, "stale": best.stale, "history": history},
        }

    def restore(self, tensors: dict[str, Tensor], about: dict[str, Any]) -> None:
        parts: dict[str, dict[str, Tensor]] = {}
        for key, value in tensors.items():
            part, name = key.split("/", 1)
            parts.setdefault(part, {})[name] = value
        self.student.load_state_dict(parts["student"])
        self.lessons.restore(parts["lessons"])
        if self.average:
            self.average.load_state_dict(parts["average"])
        momenta = {int(name.split(".")[1]): values for name, values in parts.items() if name.startswith("optimizer.")}
        self.optimizer.load_state_dict({"state": momenta, "param_groups": about["groups"]})
        self.schedule.base_lrs = [group["initial_lr"] for group in self.optimizer.param_groups]
        self.schedule.last_epoch = self.done = about["done"]
        best = about["best"]
        history = [(update, Fidelity(**found)) for update, found in best["history"]]
        self.best.restore(parts["best"], best["update"], best["averaged"], best["stale"], history)


class _Best:
    """The state of least KL on held-out images seen so far."""

    fidelity: Fidelity
    state: dict[str, Tensor]

    def __init__(self, held_out: Views, logits: list[Tensor], workers: Workers = ALONE) -> None:
        self.held_out, self.logits, self.workers = held_out, logits, workers
        self.update, self.averaged, self.stale = 0, False, 0
        self.history: list[tuple[int, Fidelity]] = []

    def check(self, student: PlainViT, average: Any | None, update: int) -> None:
        """Judge `student` and, where there is one, the average; the better of both enters the history."""
        models = [model for model in (student, average) if model]
        judged = [agreed_fidelity(fidelity(model, self.held_out, self.logits), self.workers) for model in models]
        now, model = min(zip(judged, models, strict=True), key=lambda pair: pair[0])
        first = not self.history
        self.history.append((update, now))
        self.stale += 1
        if first or now < self.fidelity:
            self.fidelity, self.state, self.update, self.stale = now, _snapshot(model), update, 0
            self.averaged = model is average

    def restore(
        self, state: dict[str, Tensor], update: int, averaged: bool, stale: int, history: list[tuple[int, Fidelity]]
    ) -> None:
        self.state, self.update, self.averaged, self.stale, self.history = state, update, averaged, stale, history
        self.fidelity = dict(history)[update]


def _optimizer(student: PlainViT, steps: list[nn.Parameter], settings: Training) -> torch.optim.Optimizer:
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


def _snapshot(student: PlainViT) -> dict[str, Tensor]:
    return copy.deepcopy(student.state_dict())


def _require_finite(loss: Tensor, done: int, settings: Training) -> None:
    if not math.isfinite(float(loss.detach())):
        raise NumericalError(
            f"the training loss is not finite at update {done}: lower the learning rate ({settings.learning_rate})."
        )
