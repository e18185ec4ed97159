"""How sure the teacher is of what it was inverted into."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from inversion.images import SparseImages
from inversion.progress import Progress, quiet
from inversion.sparse import sparse_forward
from inversion.teacher import Teacher

FLAT = 1e-3
"""Of a normalised pixel."""
SURER_THAN_CHANCE = 2.0


@torch.inference_mode()
def target_confidence(teacher: Teacher, images: SparseImages, progress: Progress = quiet) -> Tensor:
    """Probability [M] that the teacher gives each image's target class, of its patches alone."""
    found, done = torch.zeros(len(images)), 0
    for rows in images.by_count():
        for part in rows.split(64):
            patches, kept = images[part].trimmed()
            logits = sparse_forward(teacher.model, patches.to(teacher.device), kept.to(teacher.device)).float().cpu()
            found[part] = logits.softmax(-1).gather(1, images.labels[part].long().unsqueeze(1)).squeeze(1)
            done += len(part)
            progress("confidence", done, len(images), math.nan)
    return found


def one_coloured(images: SparseImages) -> int:
    """How many images show nothing: all pixels of a channel alike, in every channel."""
    of_channel = images.patches.unflatten(-1, (int(images.metadata["channels"]), -1))
    absent = (images.kept < 0)[:, :, None, None]
    low, high = (of_channel.masked_fill(absent, fill) for fill in (torch.inf, -torch.inf))
    return int(((high.amax((1, 3)) - low.amin((1, 3))).amax(1) < FLAT).sum())


def warnings_of(teacher: Teacher, images: SparseImages, confidence: Tensor) -> list[str]:
    """What makes these images poor teachers, a sentence each; `confidence` [M] is their `target_confidence`."""
    found: list[str] = []
    chance = 1 / teacher.spec.num_classes
    if flat := one_coloured(images):
        found.append(f"{flat} of {len(images)} synthetic images are of one colour: lower inversion.tv_weight.")
    if chance < 1 and float(confidence.mean()) < min(SURER_THAN_CHANCE * chance, (1 + chance) / 2):
        found.append(
            f"the teacher's confidence in its synthetic images, {float(confidence.mean()):.2g}, is that of chance "
            f"({chance:.2g}): raise inversion.iterations, or change inversion.learning_rate."
        )
    return found


def confidence_by_stage(found: Tensor, images: SparseImages) -> list[float]:
    """Mean of `target_confidence` [M] by detachment point (Figure 6 of the paper)."""
    return [round(float(found[images.stage == stage].mean()), 4) for stage in images.stage.unique()]


def confidence_between(found: Tensor, images: SparseImages) -> list[tuple[float, float]]:
    """Between which bounds 80% of `target_confidence` [M] lie, by detachment point."""
    ends = torch.tensor([0.1, 0.9])
    stages = (found[images.stage == stage].quantile(ends) for stage in images.stage.unique())
    return [(round(float(low), 4), round(float(high), 4)) for low, high in stages]
