"""One picture of any kind that Pillow reads, as 8 bits a channel."""

from __future__ import annotations

import numpy as np
from PIL import Image

from inversion.errors import InputError

BITS_PER_SAMPLE = 258
"""TIFF's tag of how many bits a sample has, which Pillow's mode does not tell."""
SIXTEEN = ("PNG", "PPM")
"""Formats whose grey pictures of more than 8 bits Pillow gives as 16 bits in 32."""
PREMULTIPLIED = {"RGBa": "RGBA", "La": "LA"}


def eight_bits(picture: Image.Image, mode: str) -> Image.Image:
    """`picture` in Pillow's `mode`, L or RGB. Deeper pixels are scaled by the picture's own depth, so that its white
    stays white: Pillow alone would clip them.

    Raises `InputError` (half a sentence, for the caller to put the picture's name before) where the depth is unknown.
    """
    if picture.mode.startswith("I;16") or (picture.mode == "I" and picture.format in SIXTEEN):
        picture = _scaled(picture)
    elif picture.mode in ("I", "F"):
        kind = "floating-point" if picture.mode == "F" else "32-bit"
        raise InputError(f"has {kind} pixels, whose white is not known: save it with 8 or 16 bits a channel.")
    if picture.mode in PREMULTIPLIED:
        picture = picture.convert(PREMULTIPLIED[picture.mode])
    try:
        return picture.convert(mode)
    except ValueError:
        raise InputError(
            f"has pixels of mode {picture.mode}, which do not convert to {mode}: save it as RGB."
        ) from None


def _scaled(picture: Image.Image) -> Image.Image:
    tags = getattr(picture, "tag_v2", {})
    bits = tags.get(BITS_PER_SAMPLE, (16,))
    white = 2 ** (bits[0] if isinstance(bits, tuple) else bits) - 1
    deep = np.asarray(picture).astype(np.float64)
    return Image.fromarray(np.rint(deep * (255 / white)).clip(0, 255).astype(np.uint8))
