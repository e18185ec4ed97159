"""Packages: what each one brings, which are missing, and the line that installs them. Needs the standard library alone:
it also speaks where nothing else is installed."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import platform
import re
import shlex
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

PROJECT = "patch-rebirth"
OWN = ("inversion", "calib", "export", "pipeline")
Part = Literal["edge", "default", "added"]


@dataclass(frozen=True)
class Package:
    """`name` is pip's, `module` what is imported. `part` says who brings it: an edge install too, the `default` install
    alone and with all the others, or it can be `added` to either by itself."""

    name: str
    module: str
    part: Part
    brings: str

    @property
    def missing(self) -> bool:
        """Whether Python finds none; that one is found says not that it loads."""
        try:
            return importlib.util.find_spec(self.module) is None
        except ImportError:
            return True


PACKAGES: tuple[Package, ...] = (
    Package("typer", "typer", "edge", "the command line"),
    Package("rich", "rich", "edge", "tables and progress"),
    Package("pydantic", "pydantic", "edge", "checked settings and manifests"),
    Package("tomli-w", "tomli_w", "edge", "recipes as files"),
    Package("jinja2", "jinja2", "edge", "reports, and the README of what is deployed"),
    Package("numpy", "numpy", "edge", "arrays"),
    Package("pillow", "PIL", "edge", "pictures"),
    Package("onnx", "onnx", "edge", "ONNX files"),
    Package("onnx-ir", "onnx_ir", "edge", "the graph that engines are built from"),
    Package("ml-dtypes", "ml_dtypes", "edge", "bfloat16 for that graph"),
    Package("onnxruntime", "onnxruntime", "edge", "running ONNX files"),
    Package("tensorrt-rtx-cu13", "tensorrt_rtx", "edge", "engines, built with no GPU"),
    Package("torch", "torch", "default", "inversion, quantization, export and whole verdicts"),
    Package("torchvision", "torchvision", "default", "pictures for torch"),
    Package("timm", "timm", "default", "teachers"),
    Package("safetensors", "safetensors", "default", "checkpoints and shards"),
    Package("filelock", "filelock", "default", "one process a run folder"),
    Package("nvidia-modelopt", "modelopt", "default", "quantizers"),
    Package("requests", "requests", "default", "what nvidia-modelopt imports"),
    Package("onnxscript", "onnxscript", "default", "export to ONNX"),
    Package("scikit-learn", "sklearn", "default", "the digits that judge the built-in teacher"),
    Package("matplotlib", "matplotlib", "default", "plots"),
    Package("pyarrow", "pyarrow", "added", "pictures in Parquet files"),
    Package("tensorrt", "tensorrt", "added", "engines of TensorRT itself, for and on the local GPU"),
    Package("cuda-bindings", "cuda", "added", "running engines"),
    Package("openvino", "openvino", "added", "a second runtime for CPUs"),
    Package("ray", "ray", "added", "work on several machines"),
)
OPTIONAL = {"tensorrt-rtx-cu13"}
"""Of the edge's packages, what has no wheel for some machines, and is asked for where an engine is built."""


def install_line(packages: Iterable[Package]) -> str:
    """What to type for `packages`. What the default install alone brings comes with all of it."""
    named = list(packages)
    if any(package.part == "default" for package in named):
        return f"{'pip uninstall -y onnxruntime && ' if _two_runtimes() else ''}pip install {PROJECT}"
    wanted = _requirements()
    return shlex.join(["pip", "install", *(wanted.get(package.name, package.name) for package in named)])


def missing_sentence(module: str) -> str | None:
    """What to say of a command that failed for want of `module`, with all that is missing in the same way; None where
    it is a module of our own, which is never missing by itself."""
    top = module.partition(".")[0]
    if not top or top in OWN:
        return None
    package = next((each for each in PACKAGES if each.module == top), Package(top, top, "default", "what others need"))
    lacking = [each for each in PACKAGES if each.part == package.part and each.missing and each.name not in OPTIONAL]
    if package.part == "added" or not lacking:
        lacking = [package]
    names = ", ".join(each.name for each in lacking)
    return f"{names} {'are' if lacking[1:] else 'is'} not installed: {install_line(lacking)}."


def _two_runtimes() -> bool:
    """Whether the default install would put its ONNX Runtime, for GPUs, where an edge install's lies."""
    try:
        importlib.metadata.version("onnxruntime")
    except importlib.metadata.PackageNotFoundError:
        return False
    return platform.machine() == "AMD64" or (platform.machine() == "x86_64" and sys.platform == "linux")


def _requirements() -> dict[str, str]:
    """What pip is asked for, as onnx>=1.18, by the package's name; nothing where this project is not installed."""
    try:
        lines = importlib.metadata.requires(PROJECT) or []
    except importlib.metadata.PackageNotFoundError:
        return {}
    found = (re.match(r"([\w.-]+)[^;\s]*", line) for line in lines)
    return {match[1].lower(): match[0] for match in found if match}
