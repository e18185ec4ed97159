"""One stage by itself, on files."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from export.edge.engine_spec import ENGINE_GRAPH
from export.edge.profile import PRECISION, require_precision
from inversion.errors import InputError
from inversion.job import AUTO_BATCH
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
    RayWorkers,
    RecipeFile,
    Seed,
    Sparsity,
    Std,
    Teacher,
    Threads,
    TvWeight,
    Uint8Input,
    ValData,
    batch_of,
    flags_of,
    parse_archs,
    parse_batches,
    part_of,
)
from pipeline.verbs.outcome import Json, Junit, Outcome, SummaryMd


def invert(
    out: Annotated[Path, typer.Option(help="Folder for the shards.")],
    teacher: Teacher = None,
    method: Method = None,
    division_factor: DivisionFactor = None,
    sparsity: Sparsity = None,
    selection: Annotated[str | None, typer.Option(help="Of patches: attention, low, random or top.")] = None,
    images: Annotated[int | None, typer.Option(help="How many sparse images.")] = None,
    iterations: Iterations = None,
    batch: Annotated[str | None, typer.Option(help="Sparse images per shard; auto: as many as fit.")] = None,
    tv_weight: TvWeight = None,
    checkpoint: Checkpoint = None,
    checkpoint_key: CheckpointKey = None,
    mean: Mean = None,
    std: Std = None,
    crop: Crop = None,
    interpolation: Interpolation = None,
    effort: Effort = None,
    seed: Seed = None,
    threads: Threads = None,
    device: Device = "auto",
    shard: Annotated[
        str | None, typer.Option(help="I/N: every Nth shard from I on, as in 0/4; in a Slurm array, the task's own.")
    ] = None,
    ray: Ray = None,
    recipe: RecipeFile = None,
    overrides: Overrides = None,
    quiet: Quiet = False,
) -> None:
    """Teacher in, shards of sparse synthetic images out.

    Any number of processes may fill one folder: each shard is made by one of them.
    """
    flags = flags_of(
        teacher=teacher, checkpoint=checkpoint, checkpoint_key=checkpoint_key, mean=mean, std=std, crop=crop,
        interpolation=interpolation, effort=effort, seed=seed, threads=threads,
        inversion={
            "method": method, "division_factor": division_factor, "sparsity": sparsity, "selection": selection,
            "images": images, "iterations": iterations, "batch": batch_of(batch), "tv_weight": tv_weight,
        },
    )  # fmt: skip

    from pipeline.recipe.resolve import make_recipe

    chosen = make_recipe(flags, recipe, overrides or (), "invert")
    if shard and ray:
        raise InputError(f"--ray {ray} makes all shards, --shard {shard} some of them: give one of both.")
    part = None if ray else part_of(shard, os.environ)
    if part and chosen.inversion.batch == AUTO_BATCH:
        raise InputError(f"--shard {part} needs the same shards on every GPU: give --batch as a number, not auto.")

    from pipeline.cluster.connect import connected, place_of
    from pipeline.record.lock import enter
    from pipeline.run.job import Places
    from pipeline.run.preflight import preflight
    from pipeline.run.stages.invert import Invert
    from pipeline.show.display import Display

    stage, display = Invert(part), Display(quiet)
    with connected(ray, device=device) as cluster:
        places = replace(Places.run(out), images=out)
        job = preflight(chosen, place_of(device, cluster), places, display, [stage], cluster=cluster)
        enter(out)
        if part:
            display.say(f"shards {part} of the job{'' if shard else ', as SLURM_ARRAY_TASK_ID and _COUNT say'}")
        stage.after(job, stage.run(job).metrics)


def quantize(
    images: Annotated[Path, typer.Option(help="Folder of shards, made by `pipeline invert`.")],
    out: Annotated[Path, typer.Option(help="The file to write, quantized.safetensors.")],
    teacher: Teacher = None,
    bits: Bits = None,
    checkpoint: Checkpoint = None,
    checkpoint_key: CheckpointKey = None,
    mean: Mean = None,
    std: Std = None,
    crop: Crop = None,
    interpolation: Interpolation = None,
    effort: Effort = None,
    seed: Seed = None,
    threads: Threads = None,
    device: Device = "auto",
    ray: Ray = None,
    ray_workers: RayWorkers = None,
    recipe: RecipeFile = None,
    overrides: Overrides = None,
    quiet: Quiet = False,
) -> None:
    """Images in, quantized weights out: ranges, then rounding."""
    flags = flags_of(
        teacher=teacher, bits=bits, checkpoint=checkpoint, checkpoint_key=checkpoint_key, mean=mean, std=std, crop=crop,
        interpolation=interpolation, effort=effort, seed=seed, threads=threads,
    )  # fmt: skip

    from pipeline.recipe.resolve import make_recipe

    chosen = make_recipe(flags, recipe, overrides or (), "quantize")

    from pipeline.cluster.connect import connected, place_of
    from pipeline.run.job import QUANTIZED, Places
    from pipeline.run.preflight import preflight
    from pipeline.run.stages.quantize import Quantize, in_words
    from pipeline.show.display import Display

    if out.is_dir():
        raise InputError(f"--out {str(out)!r} is a folder: give the file to write, as in {str(out / QUANTIZED)!r}.")
    stage, places = Quantize(), Places(out.parent, images, out, out.with_name(f".{out.name}.training"))
    with connected(ray, ray_workers, device) as cluster:
        job = preflight(chosen, place_of(device, cluster), places, Display(quiet), [stage], cluster=cluster)
        metrics = stage.run(job).metrics
        stage.after(job, metrics)
        job.display.say(in_words(metrics))


def export(
    quantized: Annotated[Path, typer.Option(help="quantized.safetensors, made by `pipeline quantize`.")],
    out: Annotated[Path, typer.Option(help="Folder for the ONNX files.")],
    teacher: Teacher = None,
    checkpoint: Checkpoint = None,
    checkpoint_key: CheckpointKey = None,
    mean: Mean = None,
    std: Std = None,
    crop: Crop = None,
    interpolation: Interpolation = None,
    class_map: ClassMap = None,
    uint8_input: Uint8Input = None,
    recipe: RecipeFile = None,
    overrides: Overrides = None,
    quiet: Quiet = False,
) -> None:
    """Quantized weights in, ONNX files out."""
    flags = flags_of(
        teacher=teacher, checkpoint=checkpoint, checkpoint_key=checkpoint_key, mean=mean, std=std, crop=crop,
        interpolation=interpolation, class_map=class_map, export={"uint8_input": uint8_input},
    )  # fmt: skip

    from pipeline.recipe.resolve import make_recipe

    chosen = make_recipe(flags, recipe, overrides or (), "export")

    from inversion.machine import choose_device
    from pipeline.run.job import Places
    from pipeline.run.preflight import preflight
    from pipeline.run.stages.export import Export
    from pipeline.show.display import Display

    stage, places = Export(), replace(Places.run(out), quantized=quantized)
    stage.run(preflight(chosen, choose_device("cpu"), places, Display(quiet), [stage]))


def engine(
    model: Annotated[Path, typer.Argument(help="model.onnx with Q/DQ.")],
    out: Annotated[Path, typer.Option(help="Folder for the engines.")],
    arch: Annotated[str, typer.Option(help="GPU architectures, as in sm86,sm89,orin.")] = "sm89",
    backend: Annotated[str | None, typer.Option(help="tensorrt or tensorrt_rtx; the first installed.")] = None,
    precision: Annotated[str, typer.Option(help="float16, bfloat16 or float32 beside the integers.")] = PRECISION,
    batch: Annotated[str, typer.Option(help="Smallest, optimal and largest batch, or one for all three.")] = "1,8,32",
) -> None:
    """ONNX in, TensorRT engines out; needs no torch."""
    from export.edge.build import build_engines
    from export.edge.kernels import sentences
    from export.edge.registry import choose_backend
    from export.edge.trtexec import line_of

    archs, batches = parse_archs(arch), parse_batches(batch)
    require_precision(precision)
    chosen = choose_backend(backend, archs)
    if chosen is None:
        raise InputError(f"--arch {arch} names no architecture: write sm86,sm89 or the like.")
    out.mkdir(parents=True, exist_ok=True)
    for path, spec in build_engines(model, out, archs, chosen, precision, batches):
        if spec is None:
            typer.echo(f"{path}: none is built for this here; on the device, beside {ENGINE_GRAPH}:")
            typer.echo(f"  {line_of(path)}")
            continue
        typer.echo(f"{path}: {spec.bytes / 1e6:.1f} MB in {spec.build_seconds:.1f} s, built, not executed")
        for line in sentences(spec.kernels):
            typer.echo(f"  {line}")
        typer.echo(f"  elsewhere: {spec.build_command}")
        if spec.trtexec_command != spec.build_command:
            typer.echo(f"  with TensorRT, on its device: {spec.trtexec_command}")


def validate(
    target: Annotated[Path, typer.Argument(help="A run folder, or a model.onnx.")],
    against: Annotated[
        Path | None, typer.Option(help="A float ONNX file that judges a model.onnx in its teacher's place: no torch.")
    ] = None,
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
    json: Json = None,
    junit: Junit = None,
    summary_md: SummaryMd = None,
    device: Device = "auto",
    recipe: RecipeFile = None,
    overrides: Overrides = None,
    quiet: Quiet = False,
) -> None:
    """Judge a run again, or an ONNX file by its teacher or floats.

    On other pictures, with other gates, for this once or with --keep for good; the exit code is 1 when a gate fails.
    --bits chooses the default gates of an ONNX file; where it is left out, w8a8, or with --against what the file itself
    says. --against needs no torch: dead leaves judge, and the pictures of --val-data.
    """
    outcome = Outcome(json, junit, summary_md)
    if not target.exists():
        raise InputError(f"{str(target)!r} does not exist: give a run folder, or a model.onnx with its --teacher.")
    if target.is_file() and keep:
        raise InputError(f"--keep writes into a run folder, {str(target)!r} is a file: leave it out.")
    if target.is_file() and teacher is None and recipe is None and against is None:
        raise InputError(
            f"{str(target)!r} is judged against its teacher: add --teacher, and its --checkpoint, or "
            "the float file with --against."
        )
    pictures = flags_of(val_data=val_data, class_map=class_map, image_column=image_column, label_column=label_column)
    named = flags_of(
        teacher=teacher, checkpoint=checkpoint, bits=bits, checkpoint_key=checkpoint_key, mean=mean, std=std, crop=crop,
        interpolation=interpolation,
    )  # fmt: skip
    if against is not None:
        _require_no_teacher(target, against, named)
    elif not target.is_file():
        from pipeline.record.manifest import load_manifest

        load_manifest(target)
        if named or recipe:
            raise InputError(f"{str(target)!r} is a run, which names its teacher and bits: leave these flags out.")

    from pipeline.recipe.resolve import make_recipe

    if against is not None:
        named["teacher"] = str(against)
    chosen = make_recipe({**named, **pictures}, recipe, overrides or (), "validate") if target.is_file() else None

    from pipeline.show.display import Display

    display = Display(quiet, results_to_stderr=outcome.on_stdout)
    if against is not None and chosen:
        from pipeline.judge.against import validate_against

        manifest = validate_against(chosen, target, against, display, outcome.stale)
    else:
        from inversion.machine import choose_device
        from pipeline.recipe.recipe import PictureSource
        from pipeline.run.judging import validate_file, validate_run

        place = choose_device(device)
        if chosen:
            manifest = validate_file(chosen, target, place, display, outcome.stale)
        else:
            source = PictureSource(**pictures)
            manifest = validate_run(target, source, overrides or (), place, display, keep, outcome.stale)
    outcome.write(manifest, display, None if chosen else target)
    raise typer.Exit(0 if manifest.verdict.passed else 1)


def _require_no_teacher(target: Path, against: Path, named: dict[str, Any]) -> None:
    """What --against does not go with; the bits that the file says it has, where none are named."""
    if not target.is_file():
        raise InputError(f"--against judges an ONNX file, {str(target)!r} is none: give the model.onnx in it.")
    if told := named.keys() - {"bits"}:
        raise InputError(f"--against {str(against)!r} stands for the teacher: leave {', '.join(sorted(told))} out.")
    if "bits" not in named:
        from export.edge.files import require_own_data
        from pipeline.judge.against import bits_of

        require_own_data(target)
        if bits := bits_of(target):
            named["bits"] = bits
