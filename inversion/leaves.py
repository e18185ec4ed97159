"""Dead leaves: pictures of overlapping shapes, made from a seed alone, whose statistics are near those of natural ones.

Opaque shapes of all sizes hide one another (Lee, Mumford, Huang, "Occlusion models for natural images", IJCV 2001),
filled and backed with noise of spectrum 1/f. Networks can learn from such pictures (Baradad et al., "Learning to see
by looking at noise", NeurIPS 2021). Here they show a quantizer the ranges and correlations that natural pictures give a
teacher's layers, which its own inverted images exaggerate; they tell nothing of its classes.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Generator, Tensor

from inversion.drawing import Array, draw_leaves
from inversion.teacher import InputSpec

ARTISTS = 2
"""Threads that draw; more wait for one another."""


def dead_leaves(spec: InputSpec, count: int, seed: int, first: int = 0) -> Tensor:
    """Pictures number `first` to `first + count - 1` of `seed`, normalised as `spec` says: [count, C, H, W] float32.

    A picture depends on `spec`, `seed` and its number alone.

        >>> from inversion import dead_leaves, load_teacher
        >>> dead_leaves(load_teacher("digits_vit").spec, 3, seed=0).shape
        torch.Size([3, 1, 32, 32])
    """
    mean, std = (torch.tensor(part).view(-1, 1, 1) for part in (spec.mean, spec.std))
    shape = (spec.channels, *spec.size)
    generators = (Generator().manual_seed((seed << 20) + first + number) for number in range(count))
    with ThreadPoolExecutor(ARTISTS) as pool:
        drawn = pool.map(lambda generator: draw_leaves(shape, TorchDice(generator)), generators)
        pictures = [torch.from_numpy(picture) for picture in drawn]
    return (torch.stack(pictures).clamp_(0, 1) - mean) / std if pictures else torch.empty(0, *shape)


class TorchDice:
    """Random numbers of `generator`, in the order in which they are asked for."""

    def __init__(self, generator: Generator) -> None:
        self._generator = generator

    def uniform(self, *shape: int) -> Array:
        return torch.rand(shape, generator=self._generator).numpy()

    def normal(self, *shape: int) -> Array:
        return torch.randn(shape, generator=self._generator).numpy()
