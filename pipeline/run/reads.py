"""What stages read, in the words of their digests: what is the same for several of them stands here once."""

from __future__ import annotations

import dataclasses
import os
import platform
from contextlib import suppress
from pathlib import Path

from export.edge.gpu import local_arch
from inversion.teacher import Teacher
from pipeline.recipe.recipe import Recipe
from pipeline.record.manifest import Facts


def of_teacher(teacher: Teacher) -> Facts:
    """What makes a teacher's answers. Equal weights do not make an equal model: two architectures may differ in heads,
    activation or pooling alone."""
    model = teacher.model
    return {
        "sha256": teacher.sha256,
        "architecture": model.pretrained_cfg.get("architecture"),
        "pool": model.global_pool,
        "heads": model.blocks[0].attn.num_heads,
    }


def of_pixels(teacher: Teacher) -> Facts:
    """What a picture of the teacher's is, once it is made."""
    spec = teacher.spec
    return {"size": spec.size, "mean": spec.mean, "std": spec.std, "classes": spec.num_classes}


def of_pictures(teacher: Teacher) -> Facts:
    """How a real picture becomes one of the teacher's."""
    return dataclasses.asdict(teacher.spec)


def settings(recipe: Recipe, *sections: str) -> Facts:
    return {section: dataclasses.asdict(getattr(recipe, section)) for section in sections}


def of_scheme(recipe: Recipe) -> Facts:
    return dataclasses.asdict(recipe.quant_scheme())


def machine() -> str:
    """This machine as far as a verdict depends on it: what is fast and what can be executed."""
    name = platform.processor() or platform.machine()
    with suppress(OSError, StopIteration):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next(line for line in lines if line.startswith("model name")).partition(":")[2].strip()
    return f"{name}, {os.cpu_count()} CPUs, GPU {local_arch()}"
