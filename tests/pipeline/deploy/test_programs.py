"""The programs that are deployed prepare pictures as the judge does, pixel for pixel."""

from __future__ import annotations

import io
import shutil
import subprocess
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from export.pixels import to_pixels
from inversion.errors import InputError
from inversion.teacher import InputSpec
from pipeline.deploy.classify import prepare
from pipeline.deploy.folder import PROGRAMS, numbers_of
from pipeline.pictures.preprocess import preprocess_steps, transform

STUBS = Path(__file__).parent / "stubs"
COLOUR = InputSpec((32, 32), (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), "bicubic", 0.9, 1000)
GREY = InputSpec((32, 32), (0.5,), (0.5,), "bicubic", 1.0, 10)
ODD_CROP = InputSpec((24, 24), (0.5,) * 3, (0.25,) * 3, "bilinear", 0.875, 10)
LANCZOS = InputSpec((16, 16), (0.5,) * 3, (0.5,) * 3, "lanczos", 0.95, 10)
SPECS = pytest.mark.parametrize(
    "spec", [COLOUR, GREY, ODD_CROP, LANCZOS], ids=["colour", "grey", "odd_crop", "lanczos"]
)
PIXELS = np.random.default_rng(0).integers(0, 256, (47, 61, 3), dtype=np.uint8)
needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="there is no g++ to compile with")


def stored(picture: Image.Image, kind: str) -> Image.Image:
    """As it comes back from a file."""
    data = io.BytesIO()
    picture.save(data, kind)
    return Image.open(io.BytesIO(data.getvalue()))


def turned(picture: Image.Image) -> Image.Image:
    """With an EXIF note that it lies on its side, which nobody follows."""
    exif, data = Image.Exif(), io.BytesIO()
    exif[274] = 6
    picture.save(data, "JPEG", exif=exif)
    return Image.open(io.BytesIO(data.getvalue()))


RGB, DEEP = Image.fromarray(PIXELS), Image.fromarray(PIXELS[..., 0].astype(np.uint16) * 199)
PICTURES = {
    "RGB": RGB,
    "JPEG": stored(RGB, "JPEG"),
    "turned JPEG": turned(RGB),
    "CMYK JPEG": stored(RGB.convert("CMYK"), "JPEG"),
    "L": RGB.convert("L"),
    "RGBA": RGB.convert("RGBA"),
    "LA": RGB.convert("LA"),
    "P": stored(RGB.convert("P"), "GIF"),
    "1": RGB.convert("1"),
    "YCbCr": RGB.convert("YCbCr"),
    "16-bit PNG": stored(DEEP, "PNG"),
    "16-bit TIFF": stored(DEEP, "TIFF"),
    "16-bit PPM": stored(DEEP, "PPM"),
    "small": RGB.resize((9, 7)),
    "tall": RGB.resize((33, 90)),
    "wide": RGB.resize((200, 71)),
    "fits": RGB.resize((35, 35)),
}


@SPECS
@pytest.mark.parametrize("kind", PICTURES)
def test_python_prepares_as_the_judge_does(spec: InputSpec, kind: str) -> None:
    """Of every kind of picture the same bits, for models that take floats and for those that take bytes."""
    expected = transform(spec)(PICTURES[kind])
    np.testing.assert_array_equal(prepare(PICTURES[kind], preprocess_steps(spec)), expected.numpy())
    bytes_of = prepare(PICTURES[kind], preprocess_steps(spec, uint8_input=True))
    np.testing.assert_array_equal(bytes_of, to_pixels(expected[None], spec)[0])


def test_python_refuses_what_the_judge_refuses() -> None:
    """Pixels whose white is not known."""
    picture = Image.fromarray(PIXELS[..., 0].astype(np.float32))
    with pytest.raises(ValueError, match="white is not known"):
        prepare(picture, preprocess_steps(COLOUR))
    with pytest.raises(InputError, match="white is not known"):
        transform(COLOUR)(picture)


@pytest.fixture
def sources(tmp_path: Path) -> Path:
    """The C++ sources in a folder."""
    for name in PROGRAMS["all"]:
        (tmp_path / name).write_text(files("pipeline.deploy").joinpath(name).read_text("utf-8"))
    return tmp_path


PRINT = """
#include <cstdio>
#include "picture.hpp"
int main(int count, char** words) {
    if (SESSION_CONFIG.size() != 1 || std::string(SESSION_CONFIG[0][1]) != "1") return 1;
    for (int at = 1; at < count; ++at) {
        const std::vector<Element> made = prepare(words[at]);
        std::fwrite(made.data(), sizeof(Element), made.size(), stdout);
    }
}
"""


@needs_compiler
@pytest.mark.parametrize("uint8_input", [False, True], ids=["floats", "bytes"])
@SPECS
def test_cpp_prepares_as_the_judge_does(spec: InputSpec, uint8_input: bool, sources: Path) -> None:
    """Compiled and run: of pictures of every shape, grey and coloured, the same bits."""
    settings = {"session_config": {"a": "1"}}
    steps = {**preprocess_steps(spec, uint8_input), "onnxruntime": settings}
    (sources / "preprocess.hpp").write_text(numbers_of(steps))
    (sources / "print.cpp").write_text(PRINT)
    subprocess.run(["g++", "-std=c++17", "-O1", "print.cpp", "-o", "print"], cwd=sources, check=True)
    shapes = ["RGB", "L", "small", "tall", "wide", "fits"]
    for number, kind in enumerate(shapes):
        PICTURES[kind].save(sources / f"{number}.ppm", "PPM")
    names = [f"{number}.ppm" for number in range(len(shapes))]
    done = subprocess.run(["./print", *names], cwd=sources, capture_output=True, check=True)
    expected = np.stack([prepare(PICTURES[kind], steps) for kind in shapes])
    found = np.frombuffer(done.stdout, expected.dtype).reshape(expected.shape)
    np.testing.assert_array_equal(found, expected)


@needs_compiler
@pytest.mark.parametrize("name", ["classify.cpp", "classify_tensorrt.cpp"])
@pytest.mark.parametrize("uint8_input", [False, True], ids=["floats", "bytes"])
def test_cpp_is_cpp(name: str, uint8_input: bool, sources: Path) -> None:
    """By a compiler, without a warning, against stubs of the runtimes' headers: their syntax, not their doings."""
    (sources / "preprocess.hpp").write_text(numbers_of(preprocess_steps(COLOUR, uint8_input)))
    flags = ["-std=c++17", "-Wall", "-Wextra", "-Werror", "-fsyntax-only", "-I", str(STUBS)]
    subprocess.run(["g++", *flags, name], cwd=sources, check=True)
