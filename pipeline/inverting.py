"""Inversion under a progress bar, as every verb that inverts shows it."""

from __future__ import annotations

from pathlib import Path

from inversion.invert import invert, settle
from inversion.settings import Inversion
from inversion.teacher import Teacher
from pipeline.display import Display


def invert_with_bar(teacher: Teacher, job: Inversion, folder: Path, display: Display, device: str) -> list[Path]:
    """Every shard of `job` in `folder`, and no other: those of an earlier, longer job go."""
    remark, job = "", settle(teacher, job, device)

    def on_step(done: int, loss: float) -> None:
        nonlocal remark
        remark = f"loss {loss:.3f}" if loss == loss else remark
        advance(done, remark)

    with display.steps("inversion", len(job.shards()) * job.iterations) as advance:
        paths = invert(teacher, job, folder, on_step, device)
    for stale in set(folder.glob("shard-*.safetensors")) - set(paths):
        stale.unlink()
    return paths
