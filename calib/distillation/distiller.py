"""Data-free distillation (section 5.2 and appendix D): each inverted batch teaches the student once."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch import Generator, Tensor

from calib.augment import flip_patches
from calib.distillation.student import Student, adapt
from calib.fidelity import kl_to_teacher
from calib.settings import Distillation
from inversion.errors import InputError, NumericalError
from inversion.images import SparseImages
from inversion.inverter import Inverter
from inversion.progress import Progress, quiet
from inversion.sparse import sparse_forward
from inversion.teacher import Teacher

AT_ONCE = 64
"""Images that pass the networks together; gradients of a batch are summed, so this changes memory and rounding only."""


class Batches(Protocol):
    """Where the images come from; batch `number` does not depend on those before it."""

    def __len__(self) -> int: ...

    def batch(self, number: int, progress: Progress = quiet) -> SparseImages:
        """The images of one update."""


@dataclass(frozen=True)
class Streamed:
    """Every batch is a shard of an inversion, made when it is asked for and dropped; or kept in the folder `keep`."""

    inverter: Inverter
    keep: Path | None = None

    def __len__(self) -> int:
        return len(self.inverter.job.shards())

    def batch(self, number: int, progress: Progress = quiet) -> SparseImages:
        if self.keep is None:
            return self.inverter.shard(number, progress)[0]
        path = self.keep / f"shard-{number:05d}.safetensors"
        if not self.inverter.made(path, number):
            self.keep.mkdir(parents=True, exist_ok=True)
            self.inverter.shard(number, progress)[0].save(path)
        return SparseImages.load(path)


class Stored:
    """Batches of images that exist, in another order each epoch; the last of an epoch is smaller where they do not
    come out even."""

    def __init__(self, images: SparseImages, size: int, epochs: int, seed: int = 0) -> None:
        if size < 1 or epochs < 1:
            raise InputError(f"batch {size} and epochs {epochs} must both be 1 or more.")
        self.images, self.size, self.epochs, self.seed = images, size, epochs, seed

    @property
    def _per_epoch(self) -> int:
        return -(-len(self.images) // self.size)

    def __len__(self) -> int:
        return self.epochs * self._per_epoch

    def batch(self, number: int, progress: Progress = quiet) -> SparseImages:  # noqa: ARG002 - nothing to invert
        epoch, part = divmod(number, self._per_epoch)
        order = torch.randperm(len(self.images), generator=Generator().manual_seed(self.seed * 1_000_003 + epoch))
        return self.images[order[part * self.size : (part + 1) * self.size]]


class Distiller:
    """A student in training; `state` and `restore` let it go on as if it had never stopped."""

    def __init__(self, teacher: Teacher, student: Student, settings: Distillation) -> None:
        self.teacher, self.student, self.settings = teacher, student, settings
        student.model.to(teacher.device)
        self.parameters = dict(student.model.named_parameters())
        self.optimizer = torch.optim.SGD(
            self.parameters.values(),
            lr=settings.learning_rate,
            momentum=settings.momentum,
            weight_decay=settings.weight_decay,
        )

    def learn(self, images: SparseImages, number: int) -> float:
        """One update on all of `images`, which are batch `number`; returns the mean KL before it.

        Raises `NumericalError` where that is no longer finite.
        """
        self.optimizer.zero_grad(set_to_none=True)
        loss = torch.zeros((), device=self.teacher.device)
        for patches, kept in self._parts(images, number):
            with torch.no_grad():
                target = sparse_forward(self.teacher.model, patches, kept).float()
            answer = sparse_forward(self.student.model, adapt(patches, self.teacher, self.student), kept).float()
            part = kl_to_teacher(answer, target, self.settings.temperature) * (len(kept) / len(images))
            part.backward()
            loss += part.detach()
        if not torch.isfinite(loss):
            raise NumericalError(
                f"the student's loss is not finite at batch {number}: lower distillation.learning_rate "
                f"({self.settings.learning_rate}), or set distillation.clip_norm=1."
            )
        if self.settings.clip_norm:
            torch.nn.utils.clip_grad_norm_(self.parameters.values(), self.settings.clip_norm)
        self.optimizer.step()
        return float(loss)

    def state(self) -> dict[str, Tensor]:
        """Weights and momentum, on the CPU."""
        momentum = {
            f"momentum.{name}": self.optimizer.state[parameter]["momentum_buffer"]
            for name, parameter in self.parameters.items()
            if self.optimizer.state.get(parameter, {}).get("momentum_buffer") is not None
        }
        tensors = {f"model.{name}": value for name, value in self.student.model.state_dict().items()} | momentum
        return {name: value.detach().cpu() for name, value in tensors.items()}

    def restore(self, tensors: dict[str, Tensor]) -> None:
        """Go on from what `state` gave."""
        weights = {name.removeprefix("model."): value for name, value in tensors.items() if name.startswith("model.")}
        self.student.model.load_state_dict(weights)
        for name, parameter in self.parameters.items():
            if (buffer := tensors.get(f"momentum.{name}")) is not None:
                self.optimizer.state[parameter]["momentum_buffer"] = buffer.to(parameter.device)

    def _parts(self, images: SparseImages, number: int) -> Iterator[tuple[Tensor, Tensor]]:
        """(patches [B, K, C*P*P], kept [B, K]) of at most AT_ONCE images that hold equally many, some mirrored."""
        generator = Generator().manual_seed(self.settings.seed * 1_000_003 + number)
        mirrored = torch.rand(len(images), generator=generator) < 0.5
        for rows in images.by_count():
            for some in rows.split(AT_ONCE):
                patches, kept = images[some].trimmed()
                if self.settings.flips:
                    flipped = flip_patches(patches, kept, images.grid, images.patch_size)
                    chosen = mirrored[some].view(-1, 1)
                    kept = torch.where(chosen, flipped[1], kept)
                    patches = torch.where(chosen.unsqueeze(-1), flipped[0], patches)
                yield patches.to(self.teacher.device), kept.to(self.teacher.device)
