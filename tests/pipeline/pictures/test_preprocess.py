"""The words of preprocess.json and the transform are one thing."""

import json
import math

import numpy as np
import pytest
import torch
from PIL import Image

from inversion.errors import InputError
from inversion.teacher import InputSpec
from pipeline.pictures.preprocess import preprocess_steps, transform

COLOUR = InputSpec((32, 32), (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), "bicubic", 0.9, 1000)
GREY = InputSpec((32, 32), (0.5,), (0.5,), "bicubic", 1.0, 10)
ODD_CROP = InputSpec((24, 24), (0.5,) * 3, (0.25,) * 3, "bilinear", 0.875, 10)
PILLOW = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}


def noise(mode: str, size: tuple[int, int]) -> Image.Image:
    channels = {"L": 1, "RGB": 3, "RGBA": 4}[mode]
    pixels = np.random.default_rng(0).integers(0, 256, (size[1], size[0], channels), dtype=np.uint8)
    return Image.fromarray(pixels.squeeze())


def follow(steps: dict, picture: Image.Image) -> np.ndarray:
    """What a reader of preprocess.json would write, with Pillow and numpy alone: [C, H, W]."""
    picture = picture.convert(steps["colour"]["mode"])
    shorter, longer = steps["resize"]["shorter_side"], max(picture.size)
    other = math.floor(shorter * longer / min(picture.size))
    wide, high = (shorter, other) if picture.width <= picture.height else (other, shorter)
    kernel = PILLOW[steps["resize"]["interpolation"]]
    picture = picture.resize((wide, picture.height), kernel).resize((wide, high), kernel)  # Pillow 13 has its own order
    height, width = steps["crop"]["height"], steps["crop"]["width"]
    left, top = round((picture.width - width) / 2), round((picture.height - height) / 2)
    pixels = np.asarray(picture.crop((left, top, left + width, top + height)), dtype=np.float32)
    pixels = pixels.reshape(height, width, -1) / np.float32(steps["scale"]["divide_by"])
    mean, std = (np.float32(steps["normalise"][key]) for key in ("mean", "std"))
    return ((pixels - mean) / std).transpose(2, 0, 1)


@pytest.mark.parametrize("spec", [COLOUR, GREY, ODD_CROP], ids=["colour", "grey", "odd_crop"])
@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA"])
@pytest.mark.parametrize("size", [(8, 8), (61, 47), (33, 90), (200, 71)])
def test_words_give_the_same_tensor(spec: InputSpec, mode: str, size: tuple[int, int]) -> None:
    """A program that follows preprocess.json to the letter feeds the model exactly what we feed it."""
    picture = noise(mode, size)
    tensor = transform(spec)(picture)
    assert tensor.dtype == torch.float32
    assert tuple(tensor.shape) == (spec.channels, *spec.size)
    np.testing.assert_array_equal(tensor.numpy(), follow(preprocess_steps(spec), picture))


def test_grey_rule_is_pillows() -> None:
    """The integers written for colour to grey are the ones that were used."""
    picture = noise("RGB", (16, 16))
    red, green, blue = np.moveaxis(np.asarray(picture).astype(np.int64), 2, 0)
    expected = (19595 * red + 38470 * green + 7471 * blue + 32768) >> 16
    np.testing.assert_array_equal(np.asarray(picture.convert("L")), expected)
    assert "(19595 R + 38470 G + 7471 B + 32768) >> 16" in preprocess_steps(GREY)["colour"]["rule"]


def test_resize_kernel_is_as_described() -> None:
    """The kernel, its widening and the rounding after each pass are the ones the words describe."""
    column = np.random.default_rng(1).integers(0, 256, 40)
    picture = Image.fromarray(np.tile(column.astype(np.uint8), (40, 1)))
    resized = np.asarray(picture.resize((16, 16), Image.Resampling.BICUBIC))[0]
    scale = 40 / 16
    for position in range(16):
        distance = np.abs(np.arange(40) + 0.5 - (position + 0.5) * scale) / scale
        near = 1.5 * distance**3 - 2.5 * distance**2 + 1
        far = -0.5 * distance**3 + 2.5 * distance**2 - 4 * distance + 2
        weights = np.where(distance < 1, near, np.where(distance < 2, far, 0))
        value = np.clip(np.round((weights * column).sum() / weights.sum()), 0, 255)
        assert abs(int(resized[position]) - int(value)) <= 1  # Pillow's weights are 22-bit fixed point
    assert "a = -0.5" in preprocess_steps(GREY)["resize"]["kernel"]


def test_steps_are_json() -> None:
    """preprocess.json needs nothing but JSON types, and reading it back loses nothing."""
    steps = preprocess_steps(COLOUR)
    assert json.loads(json.dumps(steps)) == steps
    assert steps["format"] == "patch-rebirth.preprocess/1"
    assert steps["resize"]["shorter_side"] == 35
    assert steps["tensor"]["shape"] == ["batch", 3, 32, 32]


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (InputSpec((32, 32), (0.5,) * 4, (0.5,) * 4, "bicubic", 1.0, 10), "4 input channels.*use one of 1 or 3"),
        (InputSpec((32, 24), (0.5,), (0.5,), "bicubic", 1.0, 10), "32x24 pixels is not square"),
        (InputSpec((32, 32), (0.5,), (0.5,), "nearest", 1.0, 10), "interpolation 'nearest'.*bicubic, bilinear"),
    ],
)
def test_refuses_what_words_do_not_cover(spec: InputSpec, message: str) -> None:
    """A spec that the words cannot describe is refused by both, not described wrongly."""
    for make in (preprocess_steps, transform):
        with pytest.raises(InputError, match=message):
            make(spec)
