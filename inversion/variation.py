"""Total variation of images and its gradient (appendix B of the paper)."""

from __future__ import annotations

import torch
from torch import Tensor

Window = tuple[slice, slice]
ALL, FIRST, LAST = slice(None), slice(None, -1), slice(1, None)
NEIGHBOURS: tuple[tuple[Window, Window], ...] = (
    ((ALL, LAST), (ALL, FIRST)),
    ((LAST, ALL), (FIRST, ALL)),
    ((LAST, LAST), (FIRST, FIRST)),
    ((LAST, FIRST), (FIRST, LAST)),
)
"""Rows and columns of each pixel and of its neighbour, for the four directions."""
LEAST_NORM = 1e-12


def variation(images: Tensor, norm: str = "image") -> tuple[Tensor, Tensor]:
    """Sum of the Frobenius norms of the four neighbour differences of `images` [B, C, H, W], and its gradient.

    `norm` is `image`, each image by itself, or `batch`, one norm over all (then times B, as cross entropy is summed).
    Returns (total variation [B] or [1], its summed gradient [B, C, H, W]). Written out, it takes a tenth of the time
    that autograd does, which copies the whole batch for each slice.
    """
    axes = (1, 2, 3) if norm == "image" else (0, 1, 2, 3)
    scale = 1 if norm == "image" else len(images)
    gradient = torch.zeros_like(images)
    total = images.new_zeros(len(images) if norm == "image" else 1)
    for one, other in NEIGHBOURS:
        difference = images[..., *one] - images[..., *other]
        length = torch.linalg.vector_norm(difference, dim=axes, keepdim=True)
        total += scale * length.flatten()
        difference *= scale / length.clamp_min(LEAST_NORM)
        gradient[..., *one] += difference
        gradient[..., *other] -= difference
    return total, gradient
