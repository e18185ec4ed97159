"""What the paper published, to stand beside our figures: tables 1, 2, 3 and A1 to A3 of "Patch Rebirth: Toward Fast and
Transferable Model Inversion of Vision Transformers". Imports nothing heavy.

Methods are named `dmi`, `smi_50`, `smi_76`, `smi_86` (percent of sparsity), `pri_v2`, `pri_v4`, `pri_v7` (division
factor). Where the paper has no figure, the answer is None. Accuracies are top-1 in percent.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

METHODS = ("dmi", "smi_50", "smi_76", "smi_86", "pri_v2", "pri_v4", "pri_v7")
"""Columns of tables 2, 3 and A1 to A3."""
SELECTIONS = ("high", "low", "random", "top")
"""Columns of table 1."""
TEACHERS = ("deit_tiny", "deit_small", "deit_base")
FIGURES = Path(__file__).with_name("paper.json")


@dataclass(frozen=True)
class Efficiency:
    """One method on an RTX A6000, 128 images (126 for `pri_v7`) an iteration, on average over 4,000 iterations.

    How `flops` were counted: `inversion.cost.paper_iteration_flops`. `memory_bytes` is the printed GB
    times 10^9; whether the paper means GiB is not said.
    """

    iterations_per_s: float
    flops: int
    memory_bytes: int


def efficiency(teacher: str) -> dict[str, Efficiency] | None:
    """Tables 2 and A1, by method."""
    table = _figures()["efficiency"]
    if (name := _known(teacher)) is None:
        return None
    columns = zip(
        *(table["teachers"][name][row] for row in ("iterations_per_s", "gflops_per_iteration", "memory_gb")),
        strict=True,
    )
    return {
        method: Efficiency(speed, round(gflops * 1e9), round(gigabytes * 1e9))
        for method, (speed, gflops, gigabytes) in zip(METHODS, columns, strict=True)
    }


def quantization(teacher: str, bits: str) -> dict[str, float] | None:
    """Tables 3a and A2: ImageNet-1k accuracy of the teacher at `bits` (w4a8 or w8a8), by method."""
    table = _figures()["quantization"]
    return _by_method(table["teachers"].get(_known(teacher), {}).get(bits))


def quantization_teacher(teacher: str) -> float | None:
    """Table A2: ImageNet-1k accuracy of the teacher before quantization."""
    found: float | None = _figures()["quantization"]["teacher_top1"].get(_known(teacher))
    return found


def distillation(dataset: str, student: str) -> dict[str, float] | None:
    """Tables 3b and A3: accuracy on cifar10, cifar100 or tiny_imagenet of a student of DeiT-Base, by method."""
    return _by_method(_distillation(dataset).get("students", {}).get(_known(student)))


def distillation_teacher(dataset: str) -> float | None:
    """Table A3: accuracy of DeiT-Base, fine-tuned on `dataset`."""
    found: float | None = _distillation(dataset).get("teacher_top1")
    return found


def selection() -> dict[str, float]:
    """Table 1: CIFAR-10 accuracy of DeiT-Base from SMI images, by which patches stay: high, low, random, top."""
    table = _figures()["selection"]
    return {name: table[name] for name in SELECTIONS}


def _known(name: str) -> str | None:
    """The paper's name of a timm model: `deit_tiny` for `deit_tiny_patch16_224.fb_in1k`."""
    short = name.split(".")[0].removesuffix("_patch16_224")
    return short if short in TEACHERS else None


def _distillation(dataset: str) -> dict[str, Any]:
    table = _figures()["distillation"]
    found: dict[str, Any] = table["datasets"].get(dataset, {})
    return found


def _by_method(row: list[float] | None) -> dict[str, float] | None:
    return dict(zip(METHODS, row, strict=True)) if row else None


@cache
def _figures() -> dict[str, Any]:
    figures: dict[str, Any] = json.loads(FIGURES.read_text(encoding="utf-8"))
    assert figures["columns"] == list(METHODS)
    return figures
