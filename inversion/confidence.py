"""How sure the teacher is of what it was inverted into."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from inversion.images import SparseImages
from inversion.sparse import sparse_forward
from inversion.teacher import Teacher

Advance = Callable[[int, str], None]
"""Called with (images done, a short remark)."""


@torch.inference_mode()
def target_confidence(teacher: Teacher, images: SparseImages, advance: Advance | None = None) -> Tensor:
    """Probability [M] that the teacher gives each image's target class, of its patches alone."""
    found, done = torch.zeros(len(images)), 0
    for rows in images.by_count():
        for part in rows.split(64):
            patches, kept = images[part].trimmed()
            logits = sparse_forward(teacher.model, patches.to(teacher.device), kept.to(teacher.device)).float().cpu()
            found[part] = logits.softmax(-1).gather(1, images.labels[part].long().unsqueeze(1)).squeeze(1)
            done += len(part)
            if advance:
                advance(done, "")
    return found


def confidence_by_stage(teacher: Teacher, images: SparseImages) -> list[float]:
    """Mean of `target_confidence` by detachment point (Figure 6 of the paper)."""
    found = target_confidence(teacher, images)
    return [round(float(found[images.stage == stage].mean()), 4) for stage in images.stage.unique()]
