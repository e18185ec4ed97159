"""A build: every stage in one run folder, in order."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import torch

from inversion.publish import publish
from pipeline.cluster.connect import Cluster
from pipeline.deploy.folder import DEPLOY, clear, write_deploy
from pipeline.recipe.recipe import MOST_THREADS, Recipe
from pipeline.recipe.resolve import write_toml
from pipeline.record.manifest import MANIFEST, Manifest, TeacherRecord, read_manifest
from pipeline.record.versions import library_versions
from pipeline.run.folder import SHARDS, RunFolder, product_digest
from pipeline.run.job import Job, Places
from pipeline.run.preflight import preflight
from pipeline.run.stage import Stage
from pipeline.run.stages.engine import Engine
from pipeline.run.stages.export import Export
from pipeline.run.stages.invert import Invert, require_enough
from pipeline.run.stages.quantize import Quantize
from pipeline.run.stages.validate import Validate, verdict_of
from pipeline.show.display import Display
from pipeline.show.report import write_junit, write_report

STAGES: tuple[Stage, ...] = (Invert(), Quantize(), Export(), Engine(), Validate())
NAMES = tuple(stage.name for stage in STAGES)
RECIPE, REPORT, JUNIT = "recipe.toml", "report.html", "junit.xml"


def build(
    recipe: Recipe,
    folder: Path,
    place: torch.device,
    display: Display,
    anew_from: str | None = None,
    stale: Sequence[Path] = (),
    cluster: Cluster | None = None,
) -> Manifest:
    """Every stage in one run folder; returns the manifest. What can be refused is refused before any work, and leaves
    an earlier verdict as it was.

    The stage `anew_from` and all after it run again, whatever they left there. `stale` are files elsewhere that tell an
    earlier verdict: they go when work begins. With a `cluster`, its machines invert and quantize.
    """
    require_enough(recipe)
    recipe = dataclasses.replace(recipe, threads=recipe.threads or threads_of(folder))
    job = preflight(recipe, place, Places.run(folder), display, STAGES, judged=True, cluster=cluster)
    with RunFolder(folder, display.log) as run:
        begin(run, job, stale)
        if anew_from:
            forget_from(run, anew_from)
        for stage in STAGES:
            run_stage(stage, job, run)
        return conclude(run, job)


def begin(run: RunFolder, job: Job, stale: Sequence[Path], recipe: Recipe | None = None) -> None:
    """State what runs, as `recipe` where that is not what it runs by; nothing that tells an earlier verdict stays, in
    the folder or in the files of `stale`."""
    stated = recipe or job.recipe
    run.begin(stated.to_dict(), TeacherRecord.of(job.teacher))
    publish(run.path / RECIPE, write_toml(stated).encode())
    for path in (run.path / REPORT, run.path / JUNIT, *stale):
        path.unlink(missing_ok=True)
    clear(run.path / DEPLOY)


def forget_from(run: RunFolder, name: str) -> None:
    """Let the stage `name` and all after it run again, from nothing."""
    for stage in STAGES[NAMES.index(name) :]:
        run.forget(stage.name)
        for pattern in stage.unfinished:
            for path in sorted(run.path.glob(pattern)):
                path.unlink()


def run_stage(stage: Stage, job: Job, run: RunFolder) -> None:
    """Run a stage, or find it unchanged; its record is in the manifest and in `job.made`."""
    before = NAMES[: NAMES.index(stage.name)][-1:]
    inputs = {
        "version": stage.version,
        "libraries": library_versions(stage.libraries),
        "reads": stage.reads(job),
        "before": product_digest(job.made[before[0]]) if before else None,
    }
    record = run.stage(stage.name, inputs, lambda: stage.run(job))
    job.made[stage.name] = record
    if not before:  # whoever reads the folder would take a stray shard for one of the run's
        for stray in run.strays(SHARDS):
            stray.unlink()
    for sentence in record.warnings:
        run.log("warning", message=sentence)
    stage.after(job, record.metrics)
    job.display.stage(record)


def conclude(run: RunFolder, job: Job) -> Manifest:
    """Write the verdict wherever it is read; returns the manifest."""
    run.conclude(verdict_of(job))
    write_report(run.manifest, run.path)
    write_junit(run.manifest, run.path / JUNIT)
    write_deploy(run.manifest, run.path, run.path / DEPLOY)
    return run.manifest


def threads_of(folder: Path) -> int:
    """The number of threads that the run in `folder` began with; 0 where there is none."""
    manifest = read_manifest(folder / MANIFEST)
    found = manifest.recipe.get("threads", 0) if manifest else 0
    return found if isinstance(found, int) and 0 < found <= MOST_THREADS else 0
