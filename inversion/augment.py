"""One random shift and flip for a whole batch, as index maps: where patches go, and which pixels they then hold.

All of it is arithmetic on tensors, so that a step never waits for the device to tell a number.
"""

from __future__ import annotations

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


def shift_positions(kept: Tensor, offset: Tensor, grid: tuple[int, int], patch_size: tuple[int, int]) -> Tensor:
    """Row-major positions [B, K] after a shift and flip `offset` [3]: each patch becomes the nearest of the grid."""
    down, right, flip = offset.unbind()
    rows, columns = grid
    row = (kept // columns + _nearest(down, patch_size[0])) % rows
    column = (kept % columns + _nearest(right, patch_size[1])) % columns
    return row * columns + torch.where(flip == 1, columns - 1 - column, column)


def pixels_of(kept: Tensor, grid: tuple[int, int], patch_size: tuple[int, int]) -> Tensor:
    """Row-major pixel indices [B, K*P*P] of the patches at positions `kept` [B, K]."""
    return shifted_pixels(kept, kept.new_zeros(3), grid, patch_size)


def shifted_pixels(moved: Tensor, offset: Tensor, grid: tuple[int, int], patch_size: tuple[int, int]) -> Tensor:
    """Which pixel of the picture before the shift and flip `offset` [3] each pixel of the patches `moved` [B, K]
    holds after it: row-major indices [B, K*P*P]."""
    down, right, flip = offset.unbind()
    (rows, columns), (ph, pw) = grid, patch_size
    height, width = rows * ph, columns * pw
    y = (moved // columns * ph).unsqueeze(-1) + torch.arange(ph, device=moved.device)  # [B, K, P]
    x = (moved % columns * pw).unsqueeze(-1) + torch.arange(pw, device=moved.device)
    x = torch.where(flip == 1, width - 1 - x, x)
    y, x = (y - down) % height, (x - right) % width
    return (y.unsqueeze(-1) * width + x.unsqueeze(-2)).flatten(1)


def _nearest(pixels: Tensor, side: int) -> Tensor:
    """Whole patches in a shift, halves upwards."""
    return torch.div(2 * pixels + side, 2 * side, rounding_mode="floor")
