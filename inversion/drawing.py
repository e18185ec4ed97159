"""How dead leaves are drawn (`inversion.leaves` says what they are), by whatever gives random numbers. Needs no torch:
a device judges with them too."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float32]
Shape = tuple[int, int, int]

LEAVES = 120
COLOURS = 6
EXPONENTS = (0.6, 1.1, 1.6)
"""Of the noise that fills leaves, from rough to smooth; the middle one backs them."""
SMALLEST, LARGEST = 1 / 56, 1 / 2
"""Radii as shares of the side; their density falls as 1/r^2."""
OWN = 0.35
"""Contrast of one channel's own noise against that of all channels together: natural pictures are mostly grey."""


class Dice(Protocol):
    """Random float32 numbers: in 0..1, and of the normal distribution."""

    def uniform(self, *shape: int) -> Array: ...

    def normal(self, *shape: int) -> Array: ...


class NumpyDice:
    """NumPy's, of a seed of one number or several. Another stream than torch's: other pictures of the same kind."""

    def __init__(self, seed: int | Sequence[int]) -> None:
        self._random = np.random.default_rng(seed)

    def uniform(self, *shape: int) -> Array:
        return self._random.random(shape, np.float32)

    def normal(self, *shape: int) -> Array:
        return self._random.standard_normal(shape, np.float32)


def draw_leaves(shape: Shape, dice: Dice) -> Array:
    """One picture [C, H, W] of that `shape`, most of it in 0..1. In NumPy: its calls cost a third of torch's on such
    small arrays."""
    channels, height, width = shape
    side, uniform = min(height, width), dice.uniform
    # light and shade of all channels together first, then each channel's own share
    light = 0.25 + 0.5 * uniform(1, 1, 1)
    light = light + 0.3 * (uniform(channels, 1, 1) - 0.5)
    palette = 1.1 * uniform(COLOURS, 1, 1, 1) - 0.05
    palette = palette + 0.4 * (uniform(COLOURS, channels, 1, 1) - 0.5)
    textures = [pink_noise(shape, exponent, dice) for exponent in EXPONENTS]
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
    return picture


def pink_noise(shape: Shape, exponent: float, dice: Dice) -> Array:
    """Noise [C, H, W] of spectrum 1/f^exponent, mean 0 and variance 1, whose channels are alike."""
    channels, height, width = shape
    white = dice.normal(channels + 1, height, width)
    frequency = np.hypot(np.fft.fftfreq(height)[:, np.newaxis], np.fft.rfftfreq(width)).astype(np.float32)
    frequency[0, 0] = np.inf  # no constant part
    noise: Array = np.fft.irfft2(np.fft.rfft2(white) * frequency**-exponent, s=(height, width)).astype(np.float32)
    noise /= noise.std()
    mixed: Array = noise[:1] + OWN * noise[1:]
    return mixed / mixed.std()
