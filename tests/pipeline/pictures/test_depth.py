"""Pictures of every depth and kind come in with their own black and white."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from inversion.errors import InputError
from pipeline.pictures.depth import eight_bits

GREY = np.random.default_rng(0).integers(0, 256, (9, 7), dtype=np.uint8)


def stored(picture: Image.Image, kind: str, **settings: object) -> Image.Image:
    """`picture` as it comes back from a file."""
    data = io.BytesIO()
    picture.save(data, kind, **settings)
    return Image.open(io.BytesIO(data.getvalue()))


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "PPM"])
def test_sixteen_bits_are_scaled(kind: str) -> None:
    """257 times a byte is that byte, and what lies between is rounded; white is not reached early."""
    deep = GREY.astype(np.uint16) * 257
    picture = stored(Image.fromarray(deep), kind)
    np.testing.assert_array_equal(np.asarray(eight_bits(picture, "L")), GREY)
    between = stored(Image.fromarray(np.array([[0, 128, 129, 32767, 65535]], np.uint16)), kind)
    assert np.asarray(eight_bits(between, "L")).tolist() == [[0, 0, 1, 127, 255]]


def test_sixteen_bits_become_colour_too() -> None:
    """A grey picture of 16 bits before a teacher of three channels."""
    rgb = np.asarray(eight_bits(stored(Image.fromarray(GREY.astype(np.uint16) * 257), "PNG"), "RGB"))
    np.testing.assert_array_equal(rgb, np.repeat(GREY[..., None], 3, 2))


@pytest.mark.parametrize(
    ("mode", "grey"), [("1", False), ("P", True), ("LA", True), ("RGBA", True), ("CMYK", True), ("YCbCr", True)]
)
def test_every_mode_is_read(mode: str, grey: bool) -> None:
    """As Pillow converts it, to one and to three channels."""
    picture = Image.fromarray(GREY).convert(mode)
    for wanted in ("L", "RGB"):
        found = eight_bits(picture, wanted)
        assert found.mode == wanted
        if grey:
            assert np.abs(np.asarray(found.convert("L")).astype(int) - GREY).max() <= 1


@pytest.mark.parametrize(
    ("pixels", "said"), [(GREY.astype(np.float32) / 255, "floating-point"), (GREY.astype(np.int32) << 20, "32-bit")]
)
def test_a_depth_that_is_not_known_is_refused(pixels: np.ndarray, said: str, tmp_path: Path) -> None:
    """Not clipped, nor guessed: the mend is named."""
    Image.fromarray(pixels).save(tmp_path / "a.tiff")
    with (
        Image.open(tmp_path / "a.tiff") as picture,
        pytest.raises(InputError, match=f"has {said} pixels.*save it with"),
    ):
        eight_bits(picture, "L")
