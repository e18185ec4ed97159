"""A build: every stage in one run folder, in order."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import torch

from inversion.errors import InputError
from inversion.publish import publish
from pipeline.cluster.connect import Cluster
from pipeline.deploy.folder import DEPLOY, clear, write_deploy
from pipeline.recipe.recipe import MOST_THREADS, Recipe
from pipeline.recipe.resolve import write_toml
from pipeline.record.lock import require_writable
from pipeline.record.manifest import MANIFEST, Facts, Manifest, TeacherRecord, read_manifest
from pipeline.record.versions import library_versions
from pipeline.run.folder import SHARDS, RunFolder, product_digest
from pipeline.run.job import Job, Places
from pipeline.run.preflight import preflight
from pipeline.run.stage import Stage, StageResult
from pipeline.run.stages.engine import Engine
from pipeline.run.stages.export import Export
from pipeline.run.stages.invert import Invert, require_enough
from pipeline.run.stages.quantize import Quantize
from pipeline.run.stages.validate import Validate, verdict_of
from pipeline.show.display import Display
from pipeline.show.junit import write_junit
from pipeline.show.report import write_report

STAGES: tuple[Stage, ...] = (Invert(), Quantize(), Export(), Engine(), Validate())
NAMES = tuple(stage.name for stage in STAGES)
RECIPE, REPORT, JUNIT = "recipe.toml", "report.html", "junit.xml"


def prepare(recipe: Recipe, folder: Path, place: torch.device, display: Display, cluster: Cluster | None = None) -> Job:
    """The job of all stages in one run folder. What can be refused is refused here, before any work, and leaves an
    earlier verdict as it was. With a `cluster`, its machines invert and quantize."""
    require_enough(recipe)
    require_writable(folder)
    recipe = dataclasses.replace(recipe, threads=recipe.threads or threads_of(folder))
    return preflight(recipe, place, Places.run(folder), display, STAGES, judged=True, cluster=cluster)


def require_own_folder(job: Job) -> None:
    """Raises `InputError` where the run folder holds what another teacher or other bits made, and it would be lost.
    Images alone are not: whatever the bits, they are the teacher's."""
    folder = job.places.folder
    manifest = read_manifest(folder / MANIFEST)
    if manifest is None:
        return
    same = manifest.teacher.sha256 == job.teacher.sha256
    if same and manifest.bits.strip().lower() == job.recipe.bits.strip().lower():
        return
    if not (manifest.without(NAMES[0]) if same else manifest.stages):
        return
    verdict = manifest.validation
    how = "not finished" if verdict is None else "passed" if verdict.passed else "failed"
    lost, keeping = ("models and report", f", --from {NAMES[1]} beside it to keep its images") if same else (
        "images, models and report", ""
    )  # fmt: skip
    raise InputError(
        f"run folder {str(folder)!r} holds {manifest.teacher.name} {manifest.bits} ({how}), and its {lost} would be "
        f"replaced by {job.teacher.name} {job.recipe.bits}: give another --out, or --force{keeping}."
    )


def build(job: Job, anew_from: str | None = None, stale: Sequence[Path] = ()) -> Manifest:
    """Every stage of a job that was prepared; returns the manifest.

    The stage `anew_from` and all after it run again, whatever they left there. `stale` are files elsewhere that tell an
    earlier verdict: they go when work begins.
    """
    with RunFolder(job.places.folder, job.display.log) as run:
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

    def work() -> StageResult:
        job.display.begins(stage.name)
        return stage.run(job)

    record = run.stage(stage.name, stage_inputs(stage, job), work)
    job.made[stage.name] = record
    if stage.name == NAMES[0]:  # whoever reads the folder would take a stray shard for one of the run's
        for stray in run.strays(SHARDS):
            stray.unlink()
    for sentence in record.warnings:
        run.log("warning", message=sentence)
    stage.after(job, record.metrics)
    job.display.stage(record)


def stage_inputs(stage: Stage, job: Job) -> Facts:
    """What the digest of a stage is made of, those before it being in `job.made`."""
    before = NAMES[: NAMES.index(stage.name)][-1:]
    return {
        "version": stage.version,
        "libraries": library_versions(stage.libraries),
        "reads": stage.reads(job),
        "before": product_digest(job.made[before[0]]) if before else None,
    }


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
