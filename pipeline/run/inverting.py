"""Inversion as every verb that inverts shows it: under a progress bar, with what is to be said of the images."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from inversion.confidence import confidence_by_stage, target_confidence, warnings_of
from inversion.images import load_images
from inversion.inverter import invert_into, settle
from inversion.job import Inversion
from inversion.teacher import Teacher
from inversion.tensorfile import read_metadata
from pipeline.show.display import Display


def invert_with_bar(teacher: Teacher, job: Inversion, folder: Path, display: Display) -> list[Path]:
    """Every shard of `job` in `folder`, and no other: those of an earlier, longer job go."""
    remark, job = "", settle(teacher, job)

    def on_step(done: int, loss: float) -> None:
        nonlocal remark
        remark = f"loss {loss:.3f}" if loss == loss else remark
        advance(done, remark)

    with display.steps("inversion", len(job.shards()) * job.iterations) as advance:
        paths = invert_into(teacher, job, folder, on_step)
    for stale in set(folder.glob("shard-*.safetensors")) - set(paths):
        stale.unlink()
    return paths


def describe_images(teacher: Teacher, shards: Sequence[Path]) -> dict[str, Any]:
    """How many there are, how sure the teacher is of them by stage, and a sentence for whatever makes them poor."""
    images = load_images(shards[0].parent)
    confidence = target_confidence(teacher, images)
    return {
        "images": len(images),
        "confidence": confidence_by_stage(confidence, images),
        "warnings": [*warnings_of(teacher, images, confidence), *_retried(shards)],
    }


def _retried(shards: Sequence[Path]) -> list[str]:
    """A sentence for each shard that did not come about at once."""
    attempts = {path.name: int(read_metadata(path).get("attempt", "0")) for path in shards}
    return [
        f"{name} is attempt {attempt + 1}, from other noise: before that its loss stopped being finite."
        for name, attempt in attempts.items()
        if attempt
    ]
