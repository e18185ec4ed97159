"""What compares: layers, students, the paper's experiments, speed."""

from __future__ import annotations

from json import dumps
from pathlib import Path
from typing import Annotated, Any

import typer

from inversion.errors import InputError
from pipeline.verbs.options import (
    BitsNeeded,
    Checkpoint,
    CheckpointKey,
    ClassMap,
    Crop,
    Device,
    ImageColumn,
    Interpolation,
    LabelColumn,
    Mean,
    Overrides,
    Quiet,
    RecipeFile,
    Seed,
    Std,
    TeacherNeeded,
    ValData,
    given_input,
    require_place,
    text_of,
)


def sensitivity(
    teacher: TeacherNeeded,
    images: Annotated[Path, typer.Option(help="Folder of shards, made by `pipeline invert`.")],
    bits: BitsNeeded,
    out: Annotated[Path, typer.Option(help="Folder for table, plot and recipe.")],
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
    recipe: RecipeFile = None,
    overrides: Overrides = None,
    quiet: Quiet = False,
) -> None:
    """What each layer's bits cost, and a mixed scheme.

    Weights are rounded to nearest, before GPTQ and training, and every answer that differs from the teacher's counts as
    lost: the real drop after `pipeline build` is smaller than the estimate. Real pictures only judge what was found.
    """
    from pipeline.recipe.recipe import make_recipe

    flags: dict[str, Any] = {
        "teacher": teacher, "bits": bits, "checkpoint": text_of(checkpoint), "checkpoint_key": checkpoint_key,
        "val_data": text_of(val_data), "class_map": text_of(class_map), "image_column": image_column,
        "label_column": label_column, **given_input(mean, std, crop, interpolation),
    }  # fmt: skip
    chosen = make_recipe(flags, recipe, overrides or ())

    from pipeline.judge import layers as layers
    from pipeline.run.stages import real_pictures, teacher_of
    from pipeline.show.display import Display

    display = Display(quiet)
    loaded = teacher_of(chosen, display)
    pictures = real_pictures(chosen, loaded, display)
    results = layers.sensitivity(loaded, images, chosen.quant_scheme(), max_drop, pictures, out, display)
    display.table(layers.layers_table(results))
    if results["mixed"]:
        typer.echo(layers.mixed_sentence(results["mixed"]))


def distill(
    teacher: TeacherNeeded,
    student: Annotated[str, typer.Option(help="Any timm plain-ViT name, or teacher: its own body, a fresh head.")],
    out: Annotated[Path, typer.Option(help="Folder for the student and its learning curve.")],
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
    method: Annotated[str, typer.Option(help="dmi, smi or pri.")] = "pri",
    division_factor: Annotated[int, typer.Option(help="v of PRI: sparse images per trajectory.")] = 2,
    sparsity: Annotated[int, typer.Option(help="Of SMI: 50, 76 or 86.")] = 50,
    batches: Annotated[int, typer.Option(help="Updates, each on images of its own.")] = 120,
    batch: Annotated[int, typer.Option(help="Sparse images of an update.")] = 128,
    iterations: Annotated[int, typer.Option(help="T, updates per trajectory.")] = 4000,
    tv_weight: Annotated[float, typer.Option(help="Lambda of Eq. 1; the paper's is 1e-4.")] = 1e-2,
    keep_images: Annotated[bool, typer.Option("--keep-images", help="Keep every batch in OUT/images.")] = False,
    images: Annotated[Path | None, typer.Option(help="Learn from this folder of shards instead.")] = None,
    epochs: Annotated[int, typer.Option(help="Of the images in --images.")] = 1,
    val_data: ValData = None,
    class_map: ClassMap = None,
    image_column: ImageColumn = None,
    label_column: LabelColumn = None,
    checks: Annotated[int, typer.Option(help="How often the learning curve is measured.")] = 10,
    seed: Seed = 0,
    device: Device = "auto",
    overrides: Annotated[
        list[str] | None, typer.Option("--set", help="distillation.learning_rate=0.05, inversion.low_pass=0.7, ...")
    ] = None,
    quiet: Quiet = False,
) -> None:
    """A student, taught by images that are used and dropped.

    Each batch is inverted, serves one update, and is gone.

    The student goes on as `pipeline build --teacher STUDENT --checkpoint OUT/student.safetensors`.
    """
    from pipeline.recipe.recipe import make_distillation, make_recipe

    flags = {
        "method": method, "division_factor": division_factor, "sparsity": sparsity, "iterations": iterations,
        "tv_weight": tv_weight, "batch": batch, "seed": seed or 0,
    }  # fmt: skip
    for name, value in (("--batches", batches), ("--checks", checks), ("--epochs", epochs)):
        if value < 1:
            raise InputError(f"{name} must be at least 1, not {value}.")
    inversion, settings = make_distillation(teacher, flags, batches, {"seed": seed or 0}, overrides or ())
    named = {
        "teacher": teacher, "bits": "w8a8", "checkpoint": text_of(checkpoint), "checkpoint_key": checkpoint_key,
        **given_input(mean, std, crop, interpolation),
    }  # fmt: skip
    chosen = make_recipe(named)

    from calib.distillation.student import load_student
    from inversion.machine import choose_device
    from pipeline.pictures.valdata import judging_pictures
    from pipeline.recipe.recipe import PictureSource
    from pipeline.run import distilling as distillation
    from pipeline.run.stages import teacher_of
    from pipeline.show.display import Display

    display = Display(quiet)
    loaded = teacher_of(chosen, display, device=choose_device(device).type)
    learner = load_student(
        student, loaded, student_checkpoint, student_size,
        fresh_head=fresh_head, random_weights=random_weights, seed=seed or 0,
    )  # fmt: skip
    for sentence in learner.notes:
        display.warn(sentence)
    source = (
        distillation.Source(images=images, batch=batch, epochs=epochs)
        if images
        else distillation.Source(inversion, keep_images)
    )
    source_of_pictures = PictureSource(text_of(val_data), text_of(class_map), image_column, label_column)
    pictures = judging_pictures(loaded, checkpoint, source_of_pictures, display)
    job = distillation.Job(loaded, learner, source, settings, pictures, checks)
    result = distillation.distill(job, out, display)
    typer.echo(distillation.in_words(result, out))


def reproduce(
    name: Annotated[str, typer.Argument(help="table1, tableA3, figure5, theorem1, ...; any other lists them all.")],
    teacher: TeacherNeeded,
    out: Annotated[Path, typer.Option(help="Folder for tables, pictures and what they were made from.")],
    scale: Annotated[str, typer.Option(help="smoke (seconds), small (minutes) or paper.")] = "smoke",
    student: Annotated[str, typer.Option(help="Any timm plain-ViT name, or teacher: its own body, a fresh head.")] = (
        "teacher"
    ),
    checkpoint: Checkpoint = None,
    student_checkpoint: Annotated[Path | None, typer.Option(help="The student's first weights.")] = None,
    student_size: Annotated[int | None, typer.Option(help="Side of its pictures; the teacher's by default.")] = None,
    val_data: ValData = None,
    class_map: ClassMap = None,
    image_column: ImageColumn = None,
    label_column: LabelColumn = None,
    device: Device = "auto",
    sizes: Annotated[list[str] | None, typer.Option("--set", help="A size of the scale, as in iterations=500.")] = None,
    quiet: Quiet = False,
) -> None:
    """A table or figure of the paper, beside the paper's numbers."""
    from pipeline.reproduce.scale import choose_scale

    chosen = choose_scale(scale, sizes or ())

    from calib.distillation.student import load_student
    from inversion.machine import choose_device
    from inversion.teacher import load_teacher
    from pipeline.pictures.valdata import judging_pictures
    from pipeline.recipe.recipe import PictureSource
    from pipeline.reproduce.experiments import find_experiment
    from pipeline.reproduce.laboratory import Laboratory
    from pipeline.show.display import Display

    experiment, display = find_experiment(name), Display(quiet)
    loaded = load_teacher(teacher, checkpoint, device=choose_device(device).type)
    source = PictureSource(text_of(val_data), text_of(class_map), image_column, label_column)
    pictures = judging_pictures(loaded, checkpoint, source, display)

    def fresh(seed: int) -> Any:
        return load_student(student, loaded, student_checkpoint, student_size, fresh_head=True, seed=seed)

    laboratory = Laboratory(loaded, fresh, chosen, out, display, pictures)
    result = experiment(laboratory)
    for path in result.write(out, laboratory.about(scale, student)):
        display.say(str(path))
    display.table(result.table())


def bench_inversion(
    teacher: TeacherNeeded,
    json: Annotated[Path | None, typer.Option(help="File for all figures.")] = None,
    checkpoint: Checkpoint = None,
    random_weights: Annotated[bool, typer.Option("--random-weights", help="No checkpoint: speed is the same.")] = False,
    batch: Annotated[int, typer.Option(help="Images that one run yields; PRI inverts batch / v trajectories.")] = 128,
    rounds: Annotated[int, typer.Option(help="Every round times all methods in turn.")] = 3,
    device: Device = "auto",
    precision: Annotated[str, typer.Option(help="auto, float32 or bfloat16.")] = "auto",
    quiet: Quiet = False,
) -> None:
    """Iterations a second, FLOPs and memory of DMI, SMI and PRI, beside the paper's."""
    from inversion.machine import choose_device
    from inversion.teacher import load_teacher
    from pipeline.reproduce.bench import METHODS, measure_inversion, results_table
    from pipeline.show.display import Display

    if json:
        require_place(json, "--json")
    display = Display(quiet)
    place = choose_device(device).type
    loaded = load_teacher(teacher, checkpoint, random_weights=random_weights, device=place)
    with display.steps("bench", rounds * len(METHODS)) as advance:
        results = measure_inversion(loaded, batch, rounds, precision, advance)
    if json:
        json.write_text(dumps(results, indent=2) + "\n")
    display.table(results_table(results))
