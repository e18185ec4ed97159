"""What compares: layers, students, the paper's experiments, speed."""

from __future__ import annotations

from json import dumps
from pathlib import Path
from typing import Annotated, Any

import typer

from inversion.errors import InputError
from pipeline.verbs.options import (
    Bits,
    Checkpoint,
    CheckpointKey,
    ClassMap,
    Crop,
    Device,
    DivisionFactor,
    Effort,
    ImageColumn,
    Interpolation,
    Iterations,
    LabelColumn,
    Mean,
    Method,
    Overrides,
    Quiet,
    Ray,
    RecipeFile,
    Seed,
    Sparsity,
    Std,
    Teacher,
    TvWeight,
    ValData,
    flags_of,
    require_place,
)


def sensitivity(
    images: Annotated[Path, typer.Option(help="Folder of shards, made by `pipeline invert`.")],
    out: Annotated[Path, typer.Option(help="Folder for table, plot and recipe.")],
    teacher: Teacher = None,
    bits: Bits = None,
    max_drop: Annotated[
        float | None,
        typer.Option(help="Find the fewest bits within so many points of top-1, estimated on synthetic pictures."),
    ] = None,
    checkpoint: Checkpoint = None,
    checkpoint_key: CheckpointKey = None,
    mean: Mean = None,
    std: Std = None,
    crop: Crop = None,
    interpolation: Interpolation = None,
    val_data: ValData = None,
    class_map: ClassMap = None,
    image_column: ImageColumn = None,
    label_column: LabelColumn = None,
    effort: Effort = None,
    seed: Seed = None,
    device: Device = "auto",
    recipe: RecipeFile = None,
    overrides: Overrides = None,
    quiet: Quiet = False,
) -> None:
    """What each layer's bits cost, and a mixed scheme.

    Weights are rounded to nearest, before GPTQ and training, and every answer that differs from the teacher's counts as
    lost: the real drop after `pipeline build` is smaller than the estimate. Real pictures only judge what was found.
    """
    flags = flags_of(
        teacher=teacher, bits=bits, checkpoint=checkpoint, checkpoint_key=checkpoint_key, val_data=val_data,
        class_map=class_map, image_column=image_column, label_column=label_column, mean=mean, std=std, crop=crop,
        interpolation=interpolation, effort=effort, seed=seed,
    )  # fmt: skip

    from pipeline.recipe.resolve import make_recipe

    chosen = make_recipe(flags, recipe, overrides or (), "sensitivity")

    from inversion.machine import choose_device
    from pipeline.judge import layers
    from pipeline.run.job import Places
    from pipeline.run.preflight import preflight
    from pipeline.show.display import Display

    display = Display(quiet)
    job = preflight(chosen, choose_device(device), Places.run(out), display, judged=True)
    results = layers.sensitivity(job.teacher, images, chosen, max_drop, job.pictures, out, display)
    display.table(layers.layers_table(results))
    if results["mixed"]:
        typer.echo(layers.mixed_sentence(results["mixed"]))


def distill(
    student: Annotated[str, typer.Option(help="Any timm plain-ViT name, or teacher: its own body, a fresh head.")],
    out: Annotated[Path, typer.Option(help="Folder for the student and its learning curve.")],
    teacher: Teacher = None,
    checkpoint: Checkpoint = None,
    checkpoint_key: CheckpointKey = None,
    mean: Mean = None,
    std: Std = None,
    crop: Crop = None,
    interpolation: Interpolation = None,
    student_checkpoint: Annotated[Path | None, typer.Option(help="The student's first weights.")] = None,
    student_size: Annotated[int | None, typer.Option(help="Side of its pictures; the teacher's by default.")] = None,
    fresh_head: Annotated[bool, typer.Option("--fresh-head", help="A new classifier, whatever the weights.")] = False,
    random_weights: Annotated[bool, typer.Option("--random-weights", help="The student knows nothing yet.")] = False,
    method: Method = None,
    division_factor: DivisionFactor = None,
    sparsity: Sparsity = None,
    batches: Annotated[int, typer.Option(help="Updates, each on images of its own.")] = 120,
    batch: Annotated[int | None, typer.Option(help="Sparse images of an update; 128 by default.")] = None,
    iterations: Iterations = None,
    tv_weight: TvWeight = None,
    keep_images: Annotated[bool, typer.Option("--keep-images", help="Keep every batch in OUT/images.")] = False,
    images: Annotated[Path | None, typer.Option(help="Learn from this folder of shards instead.")] = None,
    epochs: Annotated[int, typer.Option(help="Of the images in --images.")] = 1,
    val_data: ValData = None,
    class_map: ClassMap = None,
    image_column: ImageColumn = None,
    label_column: LabelColumn = None,
    checks: Annotated[int, typer.Option(help="How often the learning curve is measured.")] = 10,
    seed: Seed = None,
    device: Device = "auto",
    ray: Ray = None,
    recipe: RecipeFile = None,
    overrides: Annotated[
        list[str] | None, typer.Option("--set", help="distillation.learning_rate=0.05, inversion.tv_weight=1e-4, ...")
    ] = None,
    quiet: Quiet = False,
) -> None:
    """A student, taught by images that are used and dropped.

    Each batch is inverted, serves one update, and is gone.

    The student goes on as `pipeline build --teacher STUDENT --checkpoint OUT/student.safetensors`.
    """
    for name, value in (("--batches", batches), ("--checks", checks), ("--epochs", epochs)):
        if value < 1:
            raise InputError(f"{name} must be at least 1, not {value}.")
    flags = flags_of(
        teacher=teacher, checkpoint=checkpoint, checkpoint_key=checkpoint_key, mean=mean, std=std, crop=crop,
        interpolation=interpolation, val_data=val_data, class_map=class_map, image_column=image_column,
        label_column=label_column, seed=seed,
        inversion={
            "method": method, "division_factor": division_factor, "sparsity": sparsity, "iterations": iterations,
            "tv_weight": tv_weight, "batch": batch,
        },
    )  # fmt: skip

    from pipeline.recipe.resolve import make_recipe

    chosen = make_recipe(flags, recipe, overrides or (), "distill")

    from calib.distillation.student import load_student
    from pipeline.cluster.connect import connected, place_of
    from pipeline.run import distilling
    from pipeline.run.job import Places
    from pipeline.run.preflight import preflight
    from pipeline.show.display import Display

    display = Display(quiet)
    with connected(ray, device=device) as cluster:
        job = preflight(chosen, place_of(device, cluster), Places.run(out), display, judged=True)
        learner = load_student(
            student, job.teacher, student_checkpoint, student_size,
            fresh_head=fresh_head, random_weights=random_weights, seed=chosen.seed,
        )  # fmt: skip
        for sentence in learner.notes:
            display.warn(sentence)
        streamed = distilling.Source(distilling.so_many(batches, chosen.inversion), keep_images)
        source = distilling.Source(images=images, batch=chosen.inversion.batch, epochs=epochs) if images else streamed
        settings, threads = chosen.distillation, job.recipe.threads
        lesson = distilling.Job(job.teacher, learner, source, settings, job.pictures, checks, cluster, threads)
        result = distilling.distill(lesson, out, display)
    typer.echo(distilling.in_words(result, out))


def reproduce(
    name: Annotated[str, typer.Argument(help="table1, tableA3, figure5, theorem1, ...; any other lists them all.")],
    out: Annotated[Path, typer.Option(help="Folder for tables, pictures and what they were made from.")],
    teacher: Teacher = None,
    scale: Annotated[str, typer.Option(help="smoke (seconds), small (minutes) or paper.")] = "smoke",
    student: Annotated[str, typer.Option(help="Any timm plain-ViT name, or teacher: its own body, a fresh head.")] = (
        "teacher"
    ),
    checkpoint: Checkpoint = None,
    checkpoint_key: CheckpointKey = None,
    mean: Mean = None,
    std: Std = None,
    crop: Crop = None,
    interpolation: Interpolation = None,
    student_checkpoint: Annotated[Path | None, typer.Option(help="The student's first weights.")] = None,
    student_size: Annotated[int | None, typer.Option(help="Side of its pictures; the teacher's by default.")] = None,
    val_data: ValData = None,
    class_map: ClassMap = None,
    image_column: ImageColumn = None,
    label_column: LabelColumn = None,
    device: Device = "auto",
    recipe: RecipeFile = None,
    sizes: Annotated[list[str] | None, typer.Option("--set", help="A size of the scale, as in iterations=500.")] = None,
    quiet: Quiet = False,
) -> None:
    """A table or figure of the paper, beside the paper's numbers."""
    from pipeline.reproduce.scale import choose_scale

    chosen = choose_scale(scale, sizes or ())
    flags = flags_of(
        teacher=teacher, checkpoint=checkpoint, checkpoint_key=checkpoint_key, mean=mean, std=std, crop=crop,
        interpolation=interpolation, val_data=val_data, class_map=class_map, image_column=image_column,
        label_column=label_column,
    )  # fmt: skip

    from pipeline.recipe.resolve import make_recipe

    named = make_recipe(flags, recipe, verb="reproduce")

    from calib.distillation.student import load_student
    from inversion.machine import choose_device
    from pipeline.reproduce.experiments import find_experiment
    from pipeline.reproduce.laboratory import Laboratory
    from pipeline.run.job import Places
    from pipeline.run.preflight import preflight
    from pipeline.show.display import Display

    experiment, display = find_experiment(name), Display(quiet)
    job = preflight(named, choose_device(device), Places.run(out), display, judged=True)
    loaded, pictures = job.teacher, job.pictures

    def fresh(seed: int) -> Any:
        return load_student(student, loaded, student_checkpoint, student_size, fresh_head=True, seed=seed)

    laboratory = Laboratory(loaded, fresh, chosen, out, display, pictures)
    result = experiment(laboratory)
    for path in result.write(out, laboratory.about(scale, student)):
        display.say(str(path))
    display.table(result.table())


def bench_inversion(
    teacher: Teacher = None,
    json: Annotated[Path | None, typer.Option(help="File for all figures.")] = None,
    checkpoint: Checkpoint = None,
    checkpoint_key: CheckpointKey = None,
    mean: Mean = None,
    std: Std = None,
    crop: Crop = None,
    interpolation: Interpolation = None,
    random_weights: Annotated[bool, typer.Option("--random-weights", help="No checkpoint: speed is the same.")] = False,
    batch: Annotated[int, typer.Option(help="Images that one run yields; PRI inverts batch / v trajectories.")] = 128,
    rounds: Annotated[int, typer.Option(help="Every round times all methods in turn.")] = 3,
    device: Device = "auto",
    precision: Annotated[str, typer.Option(help="auto, float32 or bfloat16.")] = "auto",
    recipe: RecipeFile = None,
    quiet: Quiet = False,
) -> None:
    """Iterations a second, FLOPs and memory of DMI, SMI and PRI, beside the paper's."""
    if json:
        require_place(json, "--json")
    flags = flags_of(
        teacher=teacher, checkpoint=checkpoint, checkpoint_key=checkpoint_key, mean=mean, std=std, crop=crop,
        interpolation=interpolation,
    )  # fmt: skip

    from pipeline.recipe.resolve import make_recipe

    named = make_recipe(flags, recipe, verb="bench")

    from inversion.machine import choose_device
    from pipeline.reproduce.bench import measure_inversion, results_table
    from pipeline.run.preflight import teacher_of
    from pipeline.show.display import Display

    display = Display(quiet)
    loaded = teacher_of(named, choose_device(device), display, random_weights)
    with display.progress() as progress:
        results = measure_inversion(loaded, batch, rounds, precision, progress)
    if json:
        json.write_text(dumps(results, indent=2) + "\n")
    display.table(results_table(results))
