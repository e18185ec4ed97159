"""What happens to a picture before it becomes the model's `input`: as a function, and in words."""

from __future__ import annotations

import math
from collections.abc import Callable

from PIL import Image
from timm.data import create_transform
from torch import Tensor

from inversion.errors import InputError
from inversion.teacher import InputSpec
from pipeline.pictures.depth import eight_bits

FORMAT = "patch-rebirth.preprocess/1"
COLOUR_MODES = {1: "L", 3: "RGB"}
COLOUR_WORDS = {
    "L": "one grey channel; a coloured picture becomes grey by (19595 R + 38470 G + 7471 B + 32768) >> 16",
    "RGB": "three channels in the order red, green, blue; a grey picture is repeated in each; transparency is dropped",
}
DEEPER = "pixels of b > 8 bits are scaled first: round(pixel * 255 / (2^b - 1))"
INTERPOLATION_WORDS = {
    "bicubic": "Pillow's bicubic: the cubic kernel with a = -0.5",
    "bilinear": "Pillow's bilinear: the triangle kernel",
    "lanczos": "Pillow's Lanczos: the windowed sinc with 3 lobes",
}


def transform(spec: InputSpec) -> Callable[[Image.Image], Tensor]:
    """From a picture of any mode and size to a normalised float32 tensor [C, H, W], as timm evaluates.

    Raises `InputError` for a spec that is not 1 or 3 channels, square, in a known interpolation.
    """
    mode = colour_mode(spec)
    steps = create_transform(
        input_size=(spec.channels, *spec.size),
        is_training=False,
        interpolation=spec.interpolation,
        mean=spec.mean,
        std=spec.std,
        crop_pct=spec.crop,
    )

    def apply(picture: Image.Image) -> Tensor:
        return steps(resized(eight_bits(picture, mode), spec))

    return apply


def resized(picture: Image.Image, spec: InputSpec) -> Image.Image:
    """The shorter side to the length that the crop is taken from, across the width first, then down the height.

    By two calls: from version 13 on Pillow takes the height first where it shrinks by more than twice as many pixels,
    so that one call gives pixels that are one off, by its version.
    """
    shorter, (width, height) = math.floor(spec.size[0] / spec.crop), picture.size
    longer = int(shorter * max(width, height) / min(width, height))
    wide, high = (shorter, longer) if width <= height else (longer, shorter)
    kernel = Image.Resampling[spec.interpolation.upper()]
    return picture.resize((wide, height), kernel).resize((wide, high), kernel)


def preprocess_steps(spec: InputSpec, uint8_input: bool = False) -> dict[str, object]:
    """What `preprocess.json` holds: the steps of `transform`, in order, for a program without Python.

    With `uint8_input` the model itself scales and normalises. Raises `InputError` as `transform` does.
    """
    mode = colour_mode(spec)
    height, width = spec.size
    shorter = math.floor(height / spec.crop)
    normalised = {
        "scale": {"divide_by": 255.0, "rule": "pixels 0..255 become 0..1"},
        "normalise": {"mean": list(spec.mean), "std": list(spec.std), "rule": "(pixel - mean) / std, per channel"},
        "tensor": {
            "name": "input",
            "layout": "NCHW",
            "dtype": "float32",
            "shape": ["batch", spec.channels, height, width],
            "rule": "pictures one after another, of each all rows of the first channel, then of the next",
        },
    }
    as_bytes = {
        "tensor": {
            "name": "input",
            "layout": "NHWC",
            "dtype": "uint8",
            "shape": ["batch", height, width, spec.channels],
            "rule": "pictures one after another, row by row, the channels of a pixel together; pixels 0..255",
        },
    }
    return {
        "format": FORMAT,
        "colour": {
            "mode": mode,
            "bits": 8,
            "rule": COLOUR_WORDS[mode],
            "deeper_pixels": DEEPER,
            "exif_orientation": "ignored",
        },
        "resize": {
            "shorter_side": shorter,
            "longer_side": f"floor({shorter} * longer / shorter)",
            "interpolation": spec.interpolation,
            "kernel": INTERPOLATION_WORDS[spec.interpolation],
            "antialias": True,
            "rule": "when a side shrinks, the kernel is widened by old / new side; across the width first, then down "
            "the height, each pass rounded and clipped to 0..255; a side that already fits is left as it is",
        },
        "crop": {
            "height": height,
            "width": width,
            "rule": "centred: top = round((resized height - height) / 2), left = round((resized width - width) / 2), "
            "a half rounded to the even number",
        },
        **(as_bytes if uint8_input else normalised),
    }


def colour_mode(spec: InputSpec) -> str:
    """Pillow's mode of the pictures that enter, "L" or "RGB"; refuses a spec that cannot be put in these words."""
    if spec.channels not in COLOUR_MODES:
        raise InputError(f"a teacher of {spec.channels} input channels takes no picture: use one of 1 or 3 channels.")
    if spec.size[0] != spec.size[1]:
        raise InputError(f"input of {spec.size[0]}x{spec.size[1]} pixels is not square: use a square teacher.")
    if spec.interpolation not in INTERPOLATION_WORDS:
        known = ", ".join(INTERPOLATION_WORDS)
        raise InputError(f"interpolation {spec.interpolation!r} is not described: use a teacher with {known}.")
    return COLOUR_MODES[spec.channels]
