"""What a ViT computes on the way to its answer, and how far a quantized one strays from its teacher there."""

from __future__ import annotations

import torch
from torch import Tensor

from inversion.plainvit import PlainViT
from inversion.sparse import embed


def forward_features(model: PlainViT, patches: Tensor, kept: Tensor) -> tuple[Tensor, list[Tensor]]:
    """Logits [B, num_classes] as `sparse_forward` gives them, and the tokens [B, prefix + K, D] behind each block."""
    tokens, behind = embed(model, patches, kept), []
    for block in model.blocks:
        tokens = block(tokens)
        behind.append(tokens)
    return model.forward_head(model.norm(tokens)), behind


def feature_error(ours: list[Tensor], theirs: list[Tensor]) -> Tensor:
    """Mean over blocks of |ours - theirs|^2 / |theirs - mean of theirs over images and tokens|^2."""
    errors = []
    for own, target in zip(ours, theirs, strict=True):
        target = target.float()
        spread = (target - target.mean((0, 1))).square().sum()
        errors.append((own.float() - target).square().sum() / spread)
    return torch.stack(errors).mean()
