"""The main job: every stage in one run folder."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

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
    RecipeFile,
    Seed,
    Std,
    Teacher,
    Threads,
    Uint8Input,
    ValData,
    Verbose,
    given_input,
    parse_archs,
    require_place,
    text_of,
)


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
    junit: Annotated[Path | None, typer.Option(help="A second copy of the gates as JUnit XML.")] = None,
    device: Device = "auto",
    force: Annotated[bool, typer.Option("--force", help="Run every stage again.")] = False,
    anew_from: Annotated[str | None, typer.Option("--from", help="Run this stage and all after it again.")] = None,
    overrides: Overrides = None,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """All stages: a teacher in; ONNX, engine and report out."""
    from pipeline.recipe.recipe import STAGES, make_recipe

    if force and anew_from:
        raise InputError(f"--force runs every stage again, --from {anew_from!r} some of them: give one of both.")
    if anew_from and anew_from not in STAGES:
        raise InputError(f"unknown stage {anew_from!r} in --from: take one of {', '.join(STAGES)}.")

    flags: dict[str, Any] = {
        "teacher": teacher, "bits": bits, "checkpoint": text_of(checkpoint), "effort": effort, "seed": seed,
        "val_data": text_of(val_data), "class_map": text_of(class_map), "threads": threads,
        "image_column": image_column, "label_column": label_column, "checkpoint_key": checkpoint_key,
        **given_input(mean, std, crop, interpolation),
    }  # fmt: skip
    if arch is not None:
        flags["engine"] = {"arch": parse_archs(arch)}
    if uint8_input:
        flags["export"] = {"uint8_input": True}
    chosen = make_recipe(flags, recipe, overrides or ())
    folder = (
        out
        or Path("runs")
        / f"{chosen.teacher.rstrip('/').rpartition('/')[2].rpartition(':')[2]}-{chosen.bits}-{chosen.effort}"
    )
    if junit:
        require_place(junit, "--junit")

    from pipeline.run.stages import build as build_run
    from pipeline.show.display import Display
    from pipeline.show.report import write_junit

    display = Display(quiet, verbose)
    stale = [junit] if junit else []
    manifest = build_run(chosen, folder, display, device, STAGES[0] if force else anew_from, stale)
    if junit:
        write_junit(manifest, junit)
    display.results(manifest)
    display.say(f"run folder: {folder}")
    raise typer.Exit(0 if manifest["validation"]["passed"] else 1)
