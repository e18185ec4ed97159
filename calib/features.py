"""What a ViT computes on the way to its answer, and how far a quantized one strays from its teacher there."""

from __future__ import annotations

import torch
from torch import Tensor

from calib.parallel import ALONE, Workers
from inversion.plainvit import PlainViT
from inversion.sparse import embed


def forward_features(model: PlainViT, patches: Tensor, kept: Tensor) -> tuple[Tensor, list[Tensor]]:
    """Logits [B, num_classes] as `sparse_forward` gives them, and the tokens [B, prefix + K, D] behind each block."""
    tokens, behind = embed(model, patches, kept), []
    for block in model.blocks:
        tokens = block(tokens)
        behind.append(tokens)
    return model.forward_head(model.norm(tokens)), behind


def feature_error(ours: list[Tensor], theirs: list[Tensor], workers: Workers = ALONE) -> Tensor:
    """Mean over blocks of |ours - theirs|^2 / |theirs - mean of theirs over images and tokens|^2.

    Of several `workers` each gives its images' part of it, so that the parts add up to that of all their images.
    """
    errors = []
    spreads = _spreads(theirs, workers)
    for own, target, spread in zip(ours, theirs, spreads, strict=True):
        errors.append((own.float() - target.float()).square().sum() / spread)
    return torch.stack(errors).mean()


def _spreads(theirs: list[Tensor], workers: Workers) -> list[Tensor]:
    """For each block, |theirs - mean of theirs over images and tokens|^2, of the images of all workers."""
    if workers.size == 1:
        return [(target.float() - target.float().mean((0, 1))).square().sum() for target in theirs]
    rows = [target.float().flatten(0, -2) for target in theirs]
    counts = workers.total(torch.tensor([float(len(each)) for each in rows], device=rows[0].device))
    means = workers.total(torch.stack([each.sum(0) for each in rows])) / counts.unsqueeze(1)
    squares = [(each - mean).square().sum() for each, mean in zip(rows, means, strict=True)]
    return list(workers.total(torch.stack(squares)))
