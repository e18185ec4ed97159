"""Views of a picture that it never showed before: crops, and mirrored sparse images."""

from __future__ import annotations

import torch
from torch import Generator, Tensor
from torch.nn import functional as F

SMALLEST_AREA = 0.25


def random_crops(pictures: Tensor, generator: Generator) -> Tensor:
    """From each of `pictures` [B, C, H, W] a crop of 25% to 100% of its area, mirrored half the time, at full size.

    Enlarging by bicubic interpolation also makes it smoother, which inverted pictures need.
    """
    count = len(pictures)
    area, across, down, side = torch.rand(4, count, generator=generator).to(pictures.device)
    size = (SMALLEST_AREA + (1 - SMALLEST_AREA) * area).sqrt()
    mirror = torch.where(side < 0.5, -1.0, 1.0)
    zero = torch.zeros_like(size)
    # grid_sample's coordinates: the picture spans -1 to 1
    rows = [torch.stack(row, 1) for row in ((mirror * size, zero, (1 - size) * (2 * across - 1)),
                                            (zero, size, (1 - size) * (2 * down - 1)))]  # fmt: skip
    grid = F.affine_grid(torch.stack(rows, 1), list(pictures.shape), align_corners=False)
    return F.grid_sample(pictures, grid, mode="bicubic", padding_mode="reflection", align_corners=False)


def flip_patches(
    patches: Tensor, kept: Tensor, grid: tuple[int, int], patch_size: tuple[int, int]
) -> tuple[Tensor, Tensor]:
    """Sparse images mirrored left to right: `patches` [B, K, C*P*P] and their row-major positions `kept` [B, K]."""
    columns = grid[1]
    mirrored = patches.unflatten(-1, (-1, *patch_size)).flip(-1).flatten(2)
    return mirrored, kept - kept % columns + (columns - 1 - kept % columns)
