"""Dead leaves: pictures of overlapping shapes, made from a seed alone, whose statistics are near those of natural ones.

Opaque shapes of all sizes hide one another (Lee, Mumford, Huang, "Occlusion models for natural images", IJCV 2001),
filled and backed with noise of spectrum 1/f. Networks can learn from such pictures (Baradad et al., "Learning to see
by looking at noise", NeurIPS 2021). Here they show a quantizer the ranges and correlations that natural pictures give a
teacher's layers, which its own inverted images exaggerate; they tell nothing of its classes.
"""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
import numpy.typing as npt
import torch
from torch import Generator, Tensor

from inversion.teacher import InputSpec

Array = npt.NDArray[np.float32]

ARTISTS = 2
"""Threads that draw; more wait for one another."""
LEAVES = 120
COLOURS = 6
EXPONENTS = (0.6, 1.1, 1.6)
"""Of the noise that fills leaves, from rough to smooth; the middle one backs them."""
SMALLEST, LARGEST = 1 / 56, 1 / 2
"""Radii as shares of the side; their density falls as 1/r^2."""
OWN = 0.35
"""Contrast of one channel's own noise against that of all channels together: natural pictures are mostly grey."""


def dead_leaves(spec: InputSpec, count: int, seed: int, first: int = 0) -> Tensor:
    """Pictures number `first` to `first + count - 1` of `seed`, normalised as `spec` says: [count, C, H, W] float32.

    A picture depends on `spec`, `seed` and its number alone.

        >>> from inversion import dead_leaves, load_teacher
        >>> dead_leaves(load_teacher("digits_vit").spec, 3, seed=0).shape
        torch.Size([3, 1, 32, 32])
    """
    mean, std = (torch.tensor(part).view(-1, 1, 1) for part in (spec.mean, spec.std))
    generators = (Generator().manual_seed((seed << 20) + first + number) for number in range(count))
    with ThreadPoolExecutor(ARTISTS) as pool:
        pictures = list(pool.map(partial(_picture, spec), generators))
    shape = (0, spec.channels, *spec.size)
    return (torch.stack(pictures).clamp_(0, 1) - mean) / std if pictures else torch.empty(shape)


def _picture(spec: InputSpec, generator: Generator) -> Tensor:
    """One picture [C, H, W], most of it in 0..1. In NumPy: its calls cost a third of torch's on such small arrays."""
    height, width = spec.size
    side = min(height, width)

    def uniform(*shape: int) -> Array:
        return torch.rand(shape, generator=generator).numpy()

    # light and shade of all channels together first, then each channel's own share
    light = 0.25 + 0.5 * uniform(1, 1, 1)
    light = light + 0.3 * (uniform(spec.channels, 1, 1) - 0.5)
    palette = 1.1 * uniform(COLOURS, 1, 1, 1) - 0.05
    palette = palette + 0.4 * (uniform(COLOURS, spec.channels, 1, 1) - 0.5)
    textures = [pink_noise(spec, exponent, generator) for exponent in EXPONENTS]
    picture = light + 0.1 * textures[1]
    every_row = np.arange(height, dtype=np.float32)[:, np.newaxis]
    every_column = np.arange(width, dtype=np.float32)
    for draw in uniform(LEAVES, 11).tolist():
        across, down, size, turn, aspect, kind, colour, strength, slope, weave, grain = draw
        radius = side / (1 / SMALLEST + (1 / LARGEST - 1 / SMALLEST) * size)
        x, y = (1.1 * across - 0.05) * width, (1.1 * down - 0.05) * height
        rows = slice(max(0, math.floor(y - 1.5 * radius) - 3), max(0, math.ceil(y + 1.5 * radius) + 3))
        columns = slice(max(0, math.floor(x - 1.5 * radius) - 3), max(0, math.ceil(x + 1.5 * radius) + 3))
        below = picture[:, rows, columns]
        if not below.size:
            continue
        dy, dx = every_row[rows] - y, every_column[columns] - x
        sine, cosine = math.sin(math.pi * turn), math.cos(math.pi * turn)
        along, beside = cosine * dx + sine * dy, (cosine * dy - sine * dx) / (0.3 + 0.7 * aspect)
        distance = np.hypot(along, beside) if kind < 0.5 else np.maximum(np.abs(along), np.abs(beside))
        shade = (1 + 0.8 * (slope - 0.5) * along / (1.5 * radius)).clip(0.4, 1.6) * (0.7 + 0.5 * strength)
        texture = textures[int(weave * len(textures))][:, rows, columns]
        leaf = palette[int(colour * COLOURS)] * shade + 0.12 * grain * texture
        with np.errstate(over="ignore"):  # far outside of a leaf nothing of it is seen
            below += (leaf - below) / (1 + np.exp(2 * (distance - radius)))
    return torch.from_numpy(picture)


def pink_noise(spec: InputSpec, exponent: float, generator: Generator) -> Array:
    """Noise [C, H, W] of spectrum 1/f^exponent, mean 0 and variance 1, whose channels are alike."""
    height, width = spec.size
    white = torch.randn(spec.channels + 1, height, width, generator=generator).numpy()
    frequency = np.hypot(np.fft.fftfreq(height)[:, np.newaxis], np.fft.rfftfreq(width)).astype(np.float32)
    frequency[0, 0] = np.inf  # no constant part
    noise: Array = np.fft.irfft2(np.fft.rfft2(white) * frequency**-exponent, s=(height, width)).astype(np.float32)
    noise /= noise.std()
    mixed: Array = noise[:1] + OWN * noise[1:]
    return mixed / mixed.std()
