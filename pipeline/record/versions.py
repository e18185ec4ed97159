"""Which versions a result depends on."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from collections.abc import Iterable
from functools import cache

PACKAGES = {
    "patch_rebirth": "patch-rebirth",
    "torch": "torch",
    "timm": "timm",
    "modelopt": "nvidia-modelopt",
    "onnx": "onnx",
    "onnxscript": "onnxscript",
    "onnx_ir": "onnx-ir",
    "onnxruntime": "onnxruntime-gpu",
    "openvino": "openvino",
    "tensorrt": "tensorrt",
    "tensorrt_rtx": "tensorrt-rtx-cu13",
}


def library_versions(names: Iterable[str]) -> dict[str, str | None]:
    """Of `PACKAGES`, without what tells one build of a version from another."""
    return {name: found and found.split("+")[0] for name, found in versions().items() if name in set(names)}


def versions() -> dict[str, str | None]:
    """Of Python and the packages that a run's results depend on; None where one is not installed."""
    found: dict[str, str | None] = {"python": platform.python_version(), "machine": f"{os.cpu_count()} CPUs"}
    for key, package in PACKAGES.items():
        found[key] = _version(package) or (_version("onnxruntime") if key == "onnxruntime" else None)
    return found


@cache  # each is a file of text that is parsed
def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
