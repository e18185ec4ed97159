"""What training shows a student: batches of views, with the teacher's word on each and the loss against it."""

from __future__ import annotations

import torch
from torch import Generator, Tensor

from calib.augment import random_crops
from calib.features import feature_error, forward_features
from calib.fidelity import kl_to_teacher
from calib.parallel import ALONE, Workers
from calib.settings import Training
from calib.views import Views
from inversion.errors import InputError
from inversion.machine import choose_precision
from inversion.plainvit import PlainViT
from inversion.sparse import patchify, sparse_forward, unpatchify


class Lessons:
    """Batches without end, each with what the teacher says of it and the loss against that.

    Of images that are shown as they are, the teacher's answers are computed once; of crops, and where the tokens behind
    its blocks count too, anew.

    Several `workers` draw the same batches, of which each takes its part; their losses add up to that of one alone.
    Raises `InputError` where a batch is too small for that.
    """

    def __init__(self, teacher: PlainViT, images: Views, settings: Training, workers: Workers = ALONE) -> None:
        self.teacher, self.images, self.settings, self.workers = teacher, images, settings, workers
        least = min([settings.batch, *(len(kept) for _, kept in images.groups)])
        if settings.updates and least < workers.size:
            raise InputError(f"{workers.size} workers share batches of {least} images: take fewer workers.")
        self.generator = Generator().manual_seed(settings.seed)
        self.rows = [_Rows(len(kept), self.generator) for _, kept in images.groups]
        self.device = images.groups[0][0].device
        self.half = choose_precision(settings.precision, self.device) == torch.bfloat16
        once = not settings.crops and not settings.feature_weight
        self.logits = images.logits(teacher) if once else None

    def next(self, student: PlainViT) -> tuple[Tensor, Tensor]:
        """(loss, KL to the teacher alone, detached) of `student` on the next batch, or this worker's part of both."""
        group, rows = self.draw()
        patches, kept = (part[rows] for part in self.images.groups[group])
        if self.settings.crops:
            patches = self._cropped(patches)  # all of them, as the generator gives each its own
        known = self.logits[group][rows] if self.logits else None
        if self.workers.size > 1:
            own = slice(self.workers.rank, None, self.workers.size)
            patches, kept, known = patches[own], kept[own], None if known is None else known[own]
        divergence, errors = self._compare(student, patches, kept, known)
        if self.workers.size > 1:
            divergence = divergence * (len(kept) / len(rows))
        return divergence + self.settings.feature_weight * errors, divergence.detach()

    def _compare(self, student: PlainViT, patches: Tensor, kept: Tensor, known: Tensor | None) -> tuple[Tensor, Tensor]:
        temperature, errors = self.settings.temperature, patches.new_zeros(())
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.half):
            if self.settings.feature_weight:
                with torch.no_grad():
                    target, theirs = forward_features(self.teacher, patches, kept)
                answer, ours = forward_features(student, patches, kept)
                errors = feature_error(ours, theirs, self.workers)
            else:
                with torch.no_grad():
                    target = sparse_forward(self.teacher, patches, kept) if known is None else known
                answer = sparse_forward(student, patches, kept)
        return kl_to_teacher(answer.float(), target.float(), temperature), errors

    def _cropped(self, patches: Tensor) -> Tensor:
        size, grid = self.teacher.patch_embed.patch_size, self.teacher.patch_embed.grid_size
        return patchify(random_crops(unpatchify(patches, grid, size), self.generator), size)

    def draw(self) -> tuple[int, Tensor]:
        """(group, rows) of the next batch, which is full; a group's turn comes as often as it has images."""
        sizes = torch.tensor([rows.count for rows in self.rows])
        group = int(torch.multinomial(sizes.double(), 1, generator=self.generator))
        return group, torch.tensor(self.rows[group].take(min(self.settings.batch, int(sizes[group]))))

    def state(self) -> dict[str, Tensor]:
        ahead = {f"ahead.{group}": torch.tensor(rows.ahead, dtype=torch.int64) for group, rows in enumerate(self.rows)}
        return {"generator": self.generator.get_state(), **ahead}

    def restore(self, state: dict[str, Tensor]) -> None:
        self.generator.set_state(state["generator"])
        for group, rows in enumerate(self.rows):
            rows.ahead = state[f"ahead.{group}"].tolist()


class _Rows:
    """The rows of a group without end: every one once in random order before any comes again."""

    def __init__(self, count: int, generator: Generator) -> None:
        self.count, self.generator = count, generator
        self.ahead: list[int] = []

    def take(self, number: int) -> list[int]:
        while len(self.ahead) < number:
            self.ahead += torch.randperm(self.count, generator=self.generator).tolist()
        taken, self.ahead = self.ahead[:number], self.ahead[number:]
        return taken
