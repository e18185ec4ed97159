"""The main job: every stage in one run folder."""

from __future__ import annotations

from json import dumps
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from inversion.errors import InputError
from pipeline.verbs.options import (
    Arch,
    Bits,
    Checkpoint,
    CheckpointKey,
    ClassMap,
    Crop,
    Device,
    Effort,
    ImageColumn,
    Interpolation,
    LabelColumn,
    Mean,
    Overrides,
    Quiet,
    Ray,
    RayWorkers,
    RecipeFile,
    Seed,
    Std,
    Teacher,
    Threads,
    Uint8Input,
    ValData,
    Verbose,
    flags_of,
    parse_archs,
)
from pipeline.verbs.outcome import Json, Junit, Outcome, SummaryMd


class BuildCommand(TyperCommand):
    """`build`, whose help ends with what each effort costs and gives."""

    def format_epilog(self, ctx: Any, formatter: Any) -> None:  # noqa: ARG002 - click's or, in later ones, typer's own
        from pipeline.recipe.resolve import EFFORTS, header

        with formatter.section("Efforts"):
            for name in EFFORTS:
                formatter.write(f"  {name}\n")
                formatter.write("".join(f"    {line}\n" for line in header(name)))


def build(
    teacher: Teacher = None,
    bits: Bits = None,
    checkpoint: Checkpoint = None,
    checkpoint_key: CheckpointKey = None,
    mean: Mean = None,
    std: Std = None,
    crop: Crop = None,
    interpolation: Interpolation = None,
    effort: Effort = None,
    recipe: RecipeFile = None,
    out: Annotated[Path | None, typer.Option(help="Run folder; runs/TEACHER-BITS-EFFORT by default.")] = None,
    val_data: ValData = None,
    class_map: ClassMap = None,
    image_column: ImageColumn = None,
    label_column: LabelColumn = None,
    arch: Arch = None,
    uint8_input: Uint8Input = None,
    seed: Seed = None,
    threads: Threads = None,
    json: Json = None,
    junit: Junit = None,
    summary_md: SummaryMd = None,
    device: Device = "auto",
    ray: Ray = None,
    ray_workers: RayWorkers = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would be done and how long it takes, and stop.")
    ] = False,
    force: Annotated[
        bool, typer.Option("--force", help="Run every stage again, in place of another run if one is there.")
    ] = False,
    anew_from: Annotated[
        str | None, typer.Option("--from", help="Run this stage and all after it again; none by default.")
    ] = None,
    overrides: Overrides = None,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """All stages: a teacher in; ONNX, engine and report out."""
    outcome = Outcome(json, junit, summary_md)
    if dry_run and (junit or summary_md):
        raise InputError("--dry-run comes to no verdict: leave --junit and --summary-md out, --json gives the plan.")
    flags = flags_of(
        teacher=teacher, bits=bits, checkpoint=checkpoint, checkpoint_key=checkpoint_key, effort=effort, seed=seed,
        threads=threads, mean=mean, std=std, crop=crop, interpolation=interpolation, val_data=val_data,
        class_map=class_map, image_column=image_column, label_column=label_column, export={"uint8_input": uint8_input},
        engine={"arch": None if arch is None else parse_archs(arch)},
    )  # fmt: skip

    from pipeline.recipe.resolve import make_recipe

    chosen = make_recipe(flags, recipe, overrides or ())
    name = chosen.teacher.rstrip("/").rpartition("/")[2].rpartition(":")[2]
    folder = out or Path("runs") / f"{name}-{chosen.bits}-{chosen.effort}"

    from pipeline.cluster.connect import connected, place_of
    from pipeline.run.build import DEPLOY, NAMES, REPORT, prepare, require_own_folder
    from pipeline.run.build import build as build_run
    from pipeline.run.plan import make_plan, plan_lines
    from pipeline.show.display import Display

    if anew_from and anew_from not in NAMES:
        raise InputError(f"unknown stage {anew_from!r} in --from: take one of {', '.join(NAMES)}.")
    display = Display(quiet, verbose, outcome.on_stdout)
    first = anew_from or (NAMES[0] if force else None)
    with connected(ray, ray_workers, device) as cluster:
        job = prepare(chosen, folder, place_of(device, cluster), display, cluster)
        if not force:
            require_own_folder(job)
        if dry_run:
            plan = make_plan(job, first)
            display.lines(plan_lines(plan))
            outcome.tell(dumps(plan.to_json(), indent=2))
            return
        if not quiet:
            plan = make_plan(job, first)
            for line in plan_lines(plan):
                display.say(line)
            display.follow({stage.name: stage.seconds for stage in plan.stages})
        manifest = build_run(job, first, outcome.stale)
    outcome.write(manifest, display, folder)
    display.say(f"run folder: {folder}; open {folder / REPORT}, copy {folder / DEPLOY} to the device")
    raise typer.Exit(0 if manifest.verdict.passed else 1)
