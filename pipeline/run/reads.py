"""What each stage reads, in one place: a stage's digest is made of this list and of its inputs' digests.

What is not in the list of a stage cannot make it run again, so whatever a stage comes to read is added here.
"""

from __future__ import annotations

import dataclasses
import os
import platform
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from export.edge.engine import local_arch
from inversion.teacher import Teacher
from pipeline.recipe.recipe import Recipe


@dataclass(frozen=True)
class Facts:
    """All that the stages of one run read beside the files of the stages before them.

    - `labels`    what the classes are called, or None
    - `pictures`  fingerprint of the real pictures that judge, see `pipeline.pictures.valdata`
    - `backend`   the engine's, or None where none is built
    - `machine`   processor, its cores, and GPU: what is fast and what can be executed
    """

    recipe: Recipe
    teacher: Teacher
    labels: tuple[str, ...] | None = None
    pictures: str | None = None
    backend: str | None = None
    machine: str = ""


def reads(stage: str, facts: Facts) -> dict[str, Any]:
    """What `stage` reads, as JSON takes it."""
    recipe, spec = facts.recipe, facts.teacher.spec
    model = facts.teacher.model
    # equal weights do not make an equal model: two architectures may differ in heads, activation or pooling alone
    teacher = {
        "sha256": facts.teacher.sha256,
        "architecture": model.pretrained_cfg.get("architecture"),
        "pool": model.global_pool,
        "heads": model.blocks[0].attn.num_heads,
    }
    pixels = {"size": spec.size, "mean": spec.mean, "std": spec.std, "classes": spec.num_classes}
    name, picture = facts.teacher.name, dataclasses.asdict(spec)

    def settings(*sections: str) -> dict[str, Any]:
        return {section: dataclasses.asdict(getattr(recipe, section)) for section in sections}

    def scheme() -> dict[str, Any]:
        return dataclasses.asdict(recipe.quant_scheme())

    found: dict[str, dict[str, Any]] = {
        "invert": {"teacher": teacher, "pixels": pixels, "threads": recipe.threads, **settings("inversion")},
        "quantize": {
            "teacher": teacher, "name": name, "pixels": pixels, "threads": recipe.threads, "scheme": scheme(),
            **settings("basis", "calibration", "rounding", "training"),
        },
        "export": {"teacher": teacher, "name": name, "picture": picture, "labels": facts.labels, **settings("export")},
        "engine": {"backend": facts.backend, **settings("engine")},
        "validate": {
            "teacher": teacher, "picture": picture, "pictures": facts.pictures, "machine": facts.machine,
            "seed": recipe.seed, "scheme": scheme(), **settings("validation", "engine", "calibration"),
        },
    }  # fmt: skip
    return found[stage]


def machine() -> str:
    """This machine as far as a verdict depends on it."""
    name = platform.processor() or platform.machine()
    with suppress(OSError, StopIteration):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next(line for line in lines if line.startswith("model name")).partition(":")[2].strip()
    return f"{name}, {os.cpu_count()} CPUs, GPU {local_arch()}"
