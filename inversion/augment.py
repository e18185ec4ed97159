"""One random shift and flip for a whole batch, and where each patch goes with it."""

from __future__ import annotations

import math

import torch
from torch import Generator, Tensor

JITTER_SHARE = 8
"""The shift reaches up to an eighth of the side in each direction, as in SMI's code."""


def draw_offsets(count: int, size: tuple[int, int], generator: Generator) -> Tensor:
    """`count` rows of (down, right, flip): pixels, pixels, 0 or 1; the shift wraps around."""
    height, width = size[0] // JITTER_SHARE, size[1] // JITTER_SHARE
    return torch.stack(
        [
            torch.randint(-height, height + 1, (count,), generator=generator),
            torch.randint(-width, width + 1, (count,), generator=generator),
            torch.randint(0, 2, (count,), generator=generator),
        ],
        dim=1,
    )


def shift_images(images: Tensor, down: int, right: int, flip: bool) -> Tensor:
    """Roll [B, C, H, W] by whole pixels, then mirror left and right."""
    images = images.roll((down, right), (2, 3))
    return images.flip(3) if flip else images


def shift_positions(
    kept: Tensor, down: int, right: int, flip: bool, grid: tuple[int, int], patch_size: tuple[int, int]
) -> Tensor:
    """Row-major positions [B, K] after `shift_images`: each patch becomes the nearest patch of the grid."""
    rows, columns = grid
    row = (kept // columns + math.floor(down / patch_size[0] + 0.5)) % rows
    column = (kept % columns + math.floor(right / patch_size[1] + 0.5)) % columns
    return row * columns + (columns - 1 - column if flip else column)
