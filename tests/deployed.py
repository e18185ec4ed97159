"""A deploy folder as a device has it, and the built-in teacher's held-out digits as picture files."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
from PIL import Image

from pipeline.pictures.valdata import digits_split

ALONE = """
import sys

class NotThere:
    names = ("torch", "torchvision", "timm", "modelopt", "onnx", "export", "calib", "inversion", "pipeline")

    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in self.names:
            raise ImportError(f"{name} is not there on a device")

sys.meta_path.insert(0, NotThere())
sys.argv = sys.argv[1:]
import runpy
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def classified(folder: Path, pictures: Path, *flags: str) -> list[int]:
    """The class that the folder's classify.py names for each picture: with numpy, Pillow and ONNX Runtime, nothing of
    this project and nothing that it needs otherwise."""
    line = [sys.executable, "-c", ALONE, str(folder / "classify.py"), "--json", "--top", "1", *flags, str(pictures)]
    done = subprocess.run(line, capture_output=True, text=True, check=False, cwd=pictures)
    assert (done.returncode, done.stderr) == (0, "")
    return [json.loads(line)["top"][0]["class"] for line in done.stdout.splitlines()]


def write_digits(folder: Path) -> list[int]:
    """The 500 held-out digits as PNG files in `folder`; returns their labels in order of names."""
    _, _, pictures, labels = digits_split()
    for row, picture in enumerate(pictures):
        Image.fromarray(picture).save(folder / f"{row:03}.png")
    return [int(label) for label in labels]


def right_of(folder: Path, pictures: Path, labels: list[int], *flags: str) -> int:
    """How many of `pictures` classify.py names as `labels` do."""
    return int(np.equal(classified(folder, pictures, *flags), labels).sum())
