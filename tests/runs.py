"""What a tiny build leaves in its run folder, and how tests look at it."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import onnx

from export.edge.registry import OPENVINO, available

TINY = (
    "--quiet --set inversion.images=32 --set inversion.iterations=24 --set inversion.batch=16 "
    "--set training.updates=4 --set training.batch=4 --set calibration.method=max --set basis.updates=10 "
    "--set calibration.leaves=8 --set validation.pictures=100"
)
OTHER_WAYS = ["ort_file", *([OPENVINO] if available(OPENVINO) else [])]
"""On a CPU, beside model.onnx on ONNX Runtime, as gates call them."""
GATES_OF_A_WAY = ("synthetic_kl", "real_agreement", "real_top1_drop", "integer_coverage")
STAGES = ["invert", "quantize", "export", "engine", "validate"]
ENGINE = "engine.tensorrt_rtx.sm89.plan"
DEPLOYED = {
    "model.onnx", "preprocess.json", "labels.txt", ENGINE, f"{ENGINE}.json", "README.md", "classify.py", "classify.cpp",
    "classify_tensorrt.cpp", "picture.hpp", "preprocess.hpp",
}  # fmt: skip
"""The graph that engines are built from is not among them: it is 6 MB, and builds nothing here."""
FILES = {
    "manifest.json", "recipe.toml", "images/shard-00000.safetensors", "images/shard-00001.safetensors",
    "quantized.safetensors",
    "model.onnx", "model.ort.onnx", "model.int4.onnx", "model.fp32.onnx", "model.tensorrt.onnx", "preprocess.json",
    "report.html", "junit.xml", ENGINE, f"{ENGINE}.json", "run.log", ".lock", "images/progress.safetensors",
    "images/job.json",
    *(f"deploy/{name}" for name in DEPLOYED),
}  # fmt: skip


def manifest(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "manifest.json").read_text())


def files(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def cached(folder: Path) -> dict[str, bool]:
    return {stage["name"]: stage["cached"] for stage in manifest(folder)["stages"]}


def outputs(folder: Path) -> dict[str, str]:
    return {output["path"]: output["sha256"] for stage in manifest(folder)["stages"] for output in stage["outputs"]}


def gates(junit: Path) -> dict[str, bool]:
    """Which gates a junit.xml says were passed."""
    return {case.get("name", ""): case.find("failure") is None for case in ET.parse(junit).iter("testcase")}


def initializers(path: Path) -> dict[str, onnx.TensorProto]:
    """Weights of an ONNX file by name."""
    return {tensor.name: tensor for tensor in onnx.load(path).graph.initializer}
