"""One stage by itself, on files."""

from __future__ import annotations

from dataclasses import asdict
from json import dumps
from pathlib import Path
from typing import Annotated, Any

import typer

from export.edge.profile import PRECISION, require_precision
from inversion.errors import InputError
from pipeline.verbs.options import (
    Bits,
    BitsNeeded,
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
    TeacherNeeded,
    Threads,
    Uint8Input,
    ValData,
    given_input,
    parse_archs,
    parse_batches,
    require_place,
    text_of,
)


def invert(
    teacher: TeacherNeeded,
    out: Annotated[Path, typer.Option(help="Folder for the shards.")],
    method: Annotated[str, typer.Option(help="dmi, smi or pri.")] = "pri",
    division_factor: Annotated[int, typer.Option(help="v of PRI: sparse images per trajectory.")] = 4,
    sparsity: Annotated[int, typer.Option(help="Of SMI: 50, 76 or 86.")] = 76,
    selection: Annotated[str, typer.Option(help="Of patches: attention, low, random or top.")] = "attention",
    images: Annotated[int, typer.Option(help="How many sparse images.")] = 128,
    iterations: Annotated[int, typer.Option(help="T, updates per trajectory.")] = 300,
    batch: Annotated[str, typer.Option(help="Sparse images per shard; auto: as many as fit.")] = "32",
    tv_weight: Annotated[float, typer.Option(help="Lambda of Eq. 1; the paper's is 1e-4.")] = 1e-2,
    checkpoint: Checkpoint = None,
    checkpoint_key: CheckpointKey = None,
    mean: Mean = None,
    std: Std = None,
    crop: Crop = None,
    interpolation: Interpolation = None,
    seed: Seed = 0,
    threads: Threads = None,
    device: Device = "auto",
    overrides: Overrides = None,
    quiet: Quiet = False,
) -> None:
    """Teacher in, shards of sparse synthetic images out."""
    from pipeline.recipe.recipe import make_inversion, make_recipe

    if batch != "auto" and not batch.isdecimal():
        raise InputError(f"--batch {batch!r} is no number of images: write 128 or the like, or auto.")
    job = make_inversion(
        teacher,
        {
            "method": method, "images": images, "iterations": iterations, "division_factor": division_factor,
            "sparsity": sparsity, "selection": selection, "tv_weight": tv_weight, "seed": seed or 0,
            "batch": 0 if batch == "auto" else int(batch),
        },
        overrides or (),
    )  # fmt: skip

    from inversion.inverter import plan
    from inversion.machine import choose_device, settle_sums
    from pipeline.record.lock import hold
    from pipeline.run.inverting import describe_images, invert_with_bar
    from pipeline.run.stages import teacher_of
    from pipeline.show.display import Display

    settle_sums(threads or 0)
    display = Display(quiet)
    described = {
        "teacher": teacher,
        "bits": "w8a8",
        "checkpoint": text_of(checkpoint),
        "checkpoint_key": checkpoint_key,
    }
    named = make_recipe(described | given_input(mean, std, crop, interpolation))
    loaded = teacher_of(named, display, device=choose_device(device).type)
    plan(loaded, job)
    with hold(out):
        for sentence in describe_images(loaded, invert_with_bar(loaded, job, out, display))["warnings"]:
            display.warn(sentence)


def quantize(
    teacher: TeacherNeeded,
    images: Annotated[Path, typer.Option(help="Folder of shards, made by `pipeline invert`.")],
    bits: BitsNeeded,
    out: Annotated[Path, typer.Option(help="The file to write, quantized.safetensors.")],
    checkpoint: Checkpoint = None,
    checkpoint_key: CheckpointKey = None,
    mean: Mean = None,
    std: Std = None,
    crop: Crop = None,
    interpolation: Interpolation = None,
    effort: Effort = None,
    recipe: RecipeFile = None,
    overrides: Overrides = None,
    quiet: Quiet = False,
) -> None:
    """Images in, quantized weights out: ranges, then learned steps."""
    from pipeline.recipe.recipe import make_recipe

    flags = {"teacher": teacher, "bits": bits, "effort": effort, "checkpoint_key": checkpoint_key}
    flags |= given_input(mean, std, crop, interpolation)
    chosen = make_recipe(flags, recipe, overrides or ())

    from pipeline.run.single import quantize_files
    from pipeline.show.display import Display

    quantize_files(chosen, checkpoint, images, out, Display(quiet))


def export(
    teacher: TeacherNeeded,
    quantized: Annotated[Path, typer.Option(help="quantized.safetensors, made by `pipeline quantize`.")],
    out: Annotated[Path, typer.Option(help="Folder for the ONNX files.")],
    checkpoint: Checkpoint = None,
    checkpoint_key: CheckpointKey = None,
    mean: Mean = None,
    std: Std = None,
    crop: Crop = None,
    interpolation: Interpolation = None,
    class_map: ClassMap = None,
    uint8_input: Uint8Input = None,
    quiet: Quiet = False,
) -> None:
    """Quantized weights in, ONNX files out."""
    from pipeline.recipe.recipe import make_recipe
    from pipeline.run.single import export_folder
    from pipeline.show.display import Display

    flags: dict[str, Any] = {"teacher": teacher, "bits": "w8a8", "checkpoint": text_of(checkpoint)}
    flags |= {
        "checkpoint_key": checkpoint_key,
        "class_map": text_of(class_map),
        "export": {"uint8_input": bool(uint8_input)},
    }
    flags |= given_input(mean, std, crop, interpolation)
    export_folder(make_recipe(flags), quantized, out, Display(quiet))


def engine(
    model: Annotated[Path, typer.Argument(help="model.onnx with Q/DQ.")],
    out: Annotated[Path, typer.Option(help="Folder for the engines.")],
    arch: Annotated[str, typer.Option(help="GPU architectures, as in sm86,sm89.")] = "sm89",
    backend: Annotated[str | None, typer.Option(help="tensorrt or tensorrt_rtx; the first installed.")] = None,
    precision: Annotated[str, typer.Option(help="float16, bfloat16 or float32 beside the integers.")] = PRECISION,
    batch: Annotated[str, typer.Option(help="Smallest, optimal and largest batch, or one for all three.")] = "1,8,32",
) -> None:
    """ONNX in, TensorRT engines out; needs no torch."""
    from export.edge.build import build_engines
    from export.edge.engine import choose_backend
    from export.edge.kernels import sentences

    archs, batches = parse_archs(arch), parse_batches(batch)
    require_precision(precision)
    chosen = choose_backend(backend, archs)
    if chosen is None:
        raise InputError(f"--arch {arch} names no architecture: write sm86,sm89 or the like.")
    out.mkdir(parents=True, exist_ok=True)
    for path, spec in build_engines(model, out, archs, chosen, precision, batches):
        typer.echo(f"{path}: {spec.bytes / 1e6:.1f} MB in {spec.build_seconds:.1f} s, built, not executed")
        for line in sentences(spec.kernels):
            typer.echo(f"  {line}")
        typer.echo(f"  elsewhere: {spec.build_command}")


def validate(
    target: Annotated[Path, typer.Argument(help="A run folder, or a model.onnx.")],
    teacher: Teacher = None,
    checkpoint: Checkpoint = None,
    checkpoint_key: CheckpointKey = None,
    mean: Mean = None,
    std: Std = None,
    crop: Crop = None,
    interpolation: Interpolation = None,
    bits: Bits = None,
    val_data: ValData = None,
    class_map: ClassMap = None,
    image_column: ImageColumn = None,
    label_column: LabelColumn = None,
    keep: Annotated[bool, typer.Option("--keep", help="These pictures and gates become the run's own.")] = False,
    json: Annotated[Path | None, typer.Option(help="File for all figures.")] = None,
    junit: Annotated[Path | None, typer.Option(help="The gates as JUnit XML; a run folder has its own too.")] = None,
    overrides: Overrides = None,
    quiet: Quiet = False,
) -> None:
    """Judge a run again, or an ONNX file against its teacher.

    On other pictures, with other gates, for this once or with --keep for good; the exit code is 1 when a gate fails.
    --bits chooses the default gates of an ONNX file, w8a8 where it is left out.
    """
    for path, flag in ((json, "--json"), (junit, "--junit")):
        if path:
            require_place(path, flag)
    if not target.exists():
        raise InputError(f"{str(target)!r} does not exist: give a run folder, or a model.onnx with its --teacher.")
    if target.is_file() and keep:
        raise InputError(f"--keep writes into a run folder, {str(target)!r} is a file: leave it out.")
    if target.is_file() and teacher is None:
        raise InputError(f"{str(target)!r} is judged against its teacher: add --teacher, and its --checkpoint.")
    if not target.is_file():
        from pipeline.record.manifest import load_manifest

        load_manifest(target)
        if teacher or checkpoint or bits or checkpoint_key or given_input(mean, std, crop, interpolation):
            raise InputError(f"{str(target)!r} is a run, which names its teacher and bits: leave these flags out.")

    from pipeline.recipe.recipe import PictureSource, make_recipe
    from pipeline.run.single import validate_file, validate_run
    from pipeline.show.display import Display
    from pipeline.show.report import write_junit

    display = Display(quiet)
    stale = [path for path in (json, junit) if path]
    source = PictureSource(text_of(val_data), text_of(class_map), image_column, label_column)
    if target.is_file():
        flags = {"teacher": teacher, "checkpoint": text_of(checkpoint), "bits": bits or "w8a8", **asdict(source)}
        flags |= {"checkpoint_key": checkpoint_key, **given_input(mean, std, crop, interpolation)}
        manifest = validate_file(make_recipe(flags, None, overrides or ()), target, display, stale)
    else:
        manifest = validate_run(target, source, overrides or (), display, keep, stale)
    if json:
        json.write_text(dumps(manifest["validation"], indent=2) + "\n")
    if junit:
        write_junit(manifest, junit)
    display.results(manifest)
    raise typer.Exit(0 if manifest["validation"]["passed"] else 1)
