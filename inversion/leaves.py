"""Dead leaves: pictures of overlapping shapes, made from a seed alone, whose statistics are near those of natural ones.

Opaque shapes of all sizes hide one another (Lee, Mumford, Huang, "Occlusion models for natural images", IJCV 2001),
filled and backed with noise of spectrum 1/f. Networks can learn from such pictures (Baradad et al., "Learning to see
by looking at noise", NeurIPS 2021). Here they show a quantizer the ranges and correlations that natural pictures give a
teacher's layers, which its own inverted images exaggerate; they tell nothing of its classes.
"""

from __future__ import annotations

import math

import torch
from torch import Generator, Tensor

from inversion.teacher import InputSpec

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
    """
    mean, std = (torch.tensor(part).view(-1, 1, 1) for part in (spec.mean, spec.std))
    pictures = [_picture(spec, Generator().manual_seed((seed << 20) + first + number)) for number in range(count)]
    shape = (0, spec.channels, *spec.size)
    return (torch.stack(pictures).clamp_(0, 1) - mean) / std if pictures else torch.empty(shape)


def _picture(spec: InputSpec, generator: Generator) -> Tensor:
    """One picture [C, H, W], most of it in 0..1."""
    height, width = spec.size
    side = min(height, width)
    # light and shade of all channels together first, then each channel's own share
    light = 0.25 + 0.5 * torch.rand(1, 1, 1, generator=generator)
    light = light + 0.3 * (torch.rand(spec.channels, 1, 1, generator=generator) - 0.5)
    palette = 1.1 * torch.rand(COLOURS, 1, 1, 1, generator=generator) - 0.05
    palette = palette + 0.4 * (torch.rand(COLOURS, spec.channels, 1, 1, generator=generator) - 0.5)
    textures = [pink_noise(spec, exponent, generator) for exponent in EXPONENTS]
    picture = light + 0.1 * textures[1]
    for draw in torch.rand(LEAVES, 11, generator=generator).tolist():
        across, down, size, turn, aspect, kind, colour, strength, slope, weave, grain = draw
        radius = side / (1 / SMALLEST + (1 / LARGEST - 1 / SMALLEST) * size)
        x, y = (1.1 * across - 0.05) * width, (1.1 * down - 0.05) * height
        rows = slice(max(0, math.floor(y - 1.5 * radius) - 3), max(0, math.ceil(y + 1.5 * radius) + 3))
        columns = slice(max(0, math.floor(x - 1.5 * radius) - 3), max(0, math.ceil(x + 1.5 * radius) + 3))
        below = picture[:, rows, columns]
        if not below.numel():
            continue
        dy = torch.arange(rows.start, rows.start + below.shape[1]).unsqueeze(1) - y
        dx = torch.arange(columns.start, columns.start + below.shape[2]) - x
        sine, cosine = math.sin(math.pi * turn), math.cos(math.pi * turn)
        along, beside = cosine * dx + sine * dy, (cosine * dy - sine * dx) / (0.3 + 0.7 * aspect)
        distance = torch.hypot(along, beside) if kind < 0.5 else torch.maximum(along.abs(), beside.abs())
        shade = (1 + 0.8 * (slope - 0.5) * along / (1.5 * radius)).clamp(0.4, 1.6) * (0.7 + 0.5 * strength)
        texture = textures[int(weave * len(textures))][:, rows, columns]
        leaf = palette[int(colour * COLOURS)] * shade + 0.12 * grain * texture
        below.lerp_(leaf, torch.sigmoid(2 * (radius - distance)))
    return picture


def pink_noise(spec: InputSpec, exponent: float, generator: Generator) -> Tensor:
    """Noise [C, H, W] of spectrum 1/f^exponent, mean 0 and variance 1, whose channels are alike."""
    height, width = spec.size
    white = torch.randn(spec.channels + 1, height, width, generator=generator)
    frequency = torch.hypot(torch.fft.fftfreq(height).unsqueeze(1), torch.fft.rfftfreq(width))
    frequency[0, 0] = torch.inf  # no constant part
    noise = torch.fft.irfft2(torch.fft.rfft2(white) * frequency**-exponent, s=(height, width))
    noise /= noise.std()
    mixed = noise[:1] + OWN * noise[1:]
    return mixed / mixed.std()
