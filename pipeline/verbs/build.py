"""The main job: every stage in one run folder."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

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
    require_place,
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
    ray: Ray = None,
    ray_workers: RayWorkers = None,
    force: Annotated[bool, typer.Option("--force", help="Run every stage again.")] = False,
    anew_from: Annotated[str | None, typer.Option("--from", help="Run this stage and all after it again.")] = None,
    overrides: Overrides = None,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """All stages: a teacher in; ONNX, engine and report out."""
    if force and anew_from:
        raise InputError(f"--force runs every stage again, --from {anew_from!r} some of them: give one of both.")
    flags = flags_of(
        teacher=teacher, bits=bits, checkpoint=checkpoint, checkpoint_key=checkpoint_key, effort=effort, seed=seed,
        threads=threads, mean=mean, std=std, crop=crop, interpolation=interpolation, val_data=val_data,
        class_map=class_map, image_column=image_column, label_column=label_column, export={"uint8_input": uint8_input},
        engine={"arch": None if arch is None else parse_archs(arch)},
    )  # fmt: skip
    if junit:
        require_place(junit, "--junit")

    from pipeline.recipe.resolve import make_recipe

    chosen = make_recipe(flags, recipe, overrides or ())
    name = chosen.teacher.rstrip("/").rpartition("/")[2].rpartition(":")[2]
    folder = out or Path("runs") / f"{name}-{chosen.bits}-{chosen.effort}"

    from pipeline.cluster.connect import connected, place_of
    from pipeline.run.build import NAMES
    from pipeline.run.build import build as build_run
    from pipeline.show.display import Display
    from pipeline.show.report import write_junit

    if anew_from and anew_from not in NAMES:
        raise InputError(f"unknown stage {anew_from!r} in --from: take one of {', '.join(NAMES)}.")
    display = Display(quiet, verbose)
    stale = [junit] if junit else []
    first = NAMES[0] if force else anew_from
    with connected(ray, ray_workers, device) as cluster:
        manifest = build_run(chosen, folder, place_of(device, cluster), display, first, stale, cluster)
    if junit:
        write_junit(manifest, junit)
    display.results(manifest)
    display.say(f"run folder: {folder}")
    raise typer.Exit(0 if manifest.verdict.passed else 1)
