"""The command line: a thin shell over the stages, one `except`, one exit; nothing heavy is imported early."""

from __future__ import annotations

import errno
import os
import signal
import sys
from json import dumps
from pathlib import Path
from typing import Annotated, Any

import typer

from export.profile import PRECISION, require_batches, require_precision
from inversion.errors import InputError, PatchRebirthError

DEBUG = "--debug"
GO_ON = {"build", "invert", "quantize", "distill", "reproduce"}
"""Verbs that, called again, take up what they left."""
UNFORESEEN = 1

app = typer.Typer(
    help="Data-free compression of Vision Transformers: a trained ViT in, a quantized ONNX and an INT8 engine out.",
    epilog=f"{DEBUG}, anywhere, shows the traceback of an error.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

bench = typer.Typer(help="How fast this machine is.", no_args_is_help=True)
app.add_typer(bench, name="bench")

Teacher = Annotated[str | None, typer.Option(help="deit_tiny|small|base, digits_vit, or any timm plain-ViT name.")]
TeacherNeeded = Annotated[str, typer.Option(help="deit_tiny|small|base, digits_vit, or any timm plain-ViT name.")]
Checkpoint = Annotated[
    Path | None, typer.Option(help="The teacher's weights: safetensors, or a .pth of plain tensors.")
]
Bits = Annotated[str | None, typer.Option(help="w4a8, w8a8, w8a16, ...: bits of weights and of activations.")]
BitsNeeded = Annotated[str, typer.Option(help="w4a8, w8a8, w8a16, ...: bits of weights and of activations.")]
Effort = Annotated[str | None, typer.Option(help="quick, standard or paper.")]
RecipeFile = Annotated[Path | None, typer.Option("--recipe", help="TOML file with any value of the recipe.")]
Overrides = Annotated[list[str] | None, typer.Option("--set", help="One value, as in inversion.iterations=500.")]
ValData = Annotated[Path | None, typer.Option(help="Real pictures that judge: a folder a class, or a Parquet file.")]
ClassMap = Annotated[Path | None, typer.Option(help="File with one folder name a line, in class order.")]
Arch = Annotated[str | None, typer.Option(help="GPU architectures, as in sm86,sm89; none builds no engine.")]
Seed = Annotated[int | None, typer.Option(help="Same seed, same machine: the same bytes.")]
Device = Annotated[str, typer.Option(help="Where inversion runs: auto, cpu or cuda.")]
Uint8Input = Annotated[bool | None, typer.Option("--uint8-input", help="The ONNX takes bytes [batch, H, W, C].")]
Verbose = Annotated[bool, typer.Option("--verbose", help="The lines of run.log, too.")]
Quiet = Annotated[bool, typer.Option("--quiet", help="No progress.")]


@app.command()
def build(
    teacher: Teacher = None,
    bits: Bits = None,
    checkpoint: Checkpoint = None,
    effort: Effort = None,
    recipe: RecipeFile = None,
    out: Annotated[Path | None, typer.Option(help="Run folder; runs/TEACHER-BITS-EFFORT by default.")] = None,
    val_data: ValData = None,
    class_map: ClassMap = None,
    arch: Arch = None,
    uint8_input: Uint8Input = None,
    seed: Seed = None,
    junit: Annotated[Path | None, typer.Option(help="A second copy of the gates as JUnit XML.")] = None,
    device: Device = "auto",
    force: Annotated[bool, typer.Option("--force", help="Run every stage again.")] = False,
    anew_from: Annotated[str | None, typer.Option("--from", help="Run this stage and all after it again.")] = None,
    overrides: Overrides = None,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """All stages: a teacher in; ONNX, engine and report out."""
    from pipeline.recipe import STAGES, make_recipe

    if force and anew_from:
        raise InputError(f"--force runs every stage again, --from {anew_from!r} some of them: give one of both.")
    if anew_from and anew_from not in STAGES:
        raise InputError(f"unknown stage {anew_from!r} in --from: take one of {', '.join(STAGES)}.")

    flags = {
        "teacher": teacher, "bits": bits, "checkpoint": _text(checkpoint), "effort": effort, "seed": seed,
        "val_data": _text(val_data), "class_map": _text(class_map),
    }  # fmt: skip
    if arch is not None:
        flags["engine"] = {"arch": parse_archs(arch)}
    if uint8_input:
        flags["export"] = {"uint8_input": True}
    chosen = make_recipe(flags, recipe, overrides or ())
    folder = out or Path("runs") / f"{chosen.teacher}-{chosen.bits}-{chosen.effort}"
    if junit:
        _require_place(junit, "--junit")

    from pipeline.display import Display
    from pipeline.report import write_junit
    from pipeline.stages import build as build_run

    display = Display(quiet, verbose)
    manifest = build_run(chosen, folder, display, device, STAGES[0] if force else anew_from)
    if junit:
        write_junit(manifest, junit)
    display.results(manifest)
    display.say(f"run folder: {folder}")
    raise typer.Exit(0 if manifest["validation"]["passed"] else 1)


@app.command()
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
    seed: Seed = 0,
    device: Device = "auto",
    overrides: Overrides = None,
    quiet: Quiet = False,
) -> None:
    """Teacher in, shards of sparse synthetic images out."""
    from pipeline.recipe import make_inversion

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

    from inversion.invert import plan
    from inversion.teacher import load_teacher
    from pipeline.display import Display
    from pipeline.inverting import describe_images, invert_with_bar
    from pipeline.runfolder import hold

    loaded, display = load_teacher(teacher, checkpoint), Display(quiet)
    plan(loaded, job)
    with hold(out):
        for sentence in describe_images(loaded, invert_with_bar(loaded, job, out, display, device))["warnings"]:
            display.warn(sentence)


@app.command()
def quantize(
    teacher: TeacherNeeded,
    images: Annotated[Path, typer.Option(help="Folder of shards, made by `pipeline invert`.")],
    bits: BitsNeeded,
    out: Annotated[Path, typer.Option(help="The file to write, quantized.safetensors.")],
    checkpoint: Checkpoint = None,
    effort: Effort = None,
    recipe: RecipeFile = None,
    overrides: Overrides = None,
    quiet: Quiet = False,
) -> None:
    """Images in, quantized weights out: ranges, then learned steps."""
    from pipeline.recipe import make_recipe

    chosen = make_recipe({"teacher": teacher, "bits": bits, "effort": effort}, recipe, overrides or ())

    from pipeline.display import Display
    from pipeline.single import quantize_files

    quantize_files(chosen, checkpoint, images, out, Display(quiet))


@app.command()
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
    val_data: ValData = None,
    class_map: ClassMap = None,
    recipe: RecipeFile = None,
    overrides: Overrides = None,
    quiet: Quiet = False,
) -> None:
    """What each layer's bits cost, and a mixed scheme.

    Weights are rounded to nearest, before GPTQ and training, and every answer that differs from the teacher's counts as
    lost: the real drop after `pipeline build` is smaller than the estimate. Real pictures only judge what was found.
    """
    from pipeline.recipe import make_recipe

    flags = {"teacher": teacher, "bits": bits, "val_data": _text(val_data), "class_map": _text(class_map)}
    chosen = make_recipe({**flags, "checkpoint": _text(checkpoint)}, recipe, overrides or ())

    from inversion.teacher import load_teacher
    from pipeline import sensitivity as layers
    from pipeline.display import Display
    from pipeline.stages import real_pictures

    display, loaded = Display(quiet), load_teacher(teacher, checkpoint)
    pictures = real_pictures(chosen, loaded)
    results = layers.sensitivity(loaded, images, chosen.quant_scheme(), max_drop, pictures, out, display)
    display.table(layers.layers_table(results))
    if results["mixed"]:
        typer.echo(layers.mixed_sentence(results["mixed"]))


@app.command()
def distill(
    teacher: TeacherNeeded,
    student: Annotated[str, typer.Option(help="Any timm plain-ViT name, or teacher: its own body, a fresh head.")],
    out: Annotated[Path, typer.Option(help="Folder for the student and its learning curve.")],
    checkpoint: Checkpoint = None,
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
    from pipeline.recipe import make_distillation

    flags = {
        "method": method, "division_factor": division_factor, "sparsity": sparsity, "iterations": iterations,
        "tv_weight": tv_weight, "batch": batch, "seed": seed or 0,
    }  # fmt: skip
    for name, value in (("--batches", batches), ("--checks", checks), ("--epochs", epochs)):
        if value < 1:
            raise InputError(f"{name} must be at least 1, not {value}.")
    inversion, settings = make_distillation(teacher, flags, batches, {"seed": seed or 0}, overrides or ())

    from calib.student import load_student
    from inversion.machine import choose_device
    from inversion.teacher import load_teacher
    from pipeline import distillation
    from pipeline.display import Display
    from pipeline.valdata import judging_pictures

    loaded = load_teacher(teacher, checkpoint, device=choose_device(device).type)
    learner = load_student(
        student, loaded, student_checkpoint, student_size,
        fresh_head=fresh_head, random_weights=random_weights, seed=seed or 0,
    )  # fmt: skip
    source = (
        distillation.Source(images=images, batch=batch, epochs=epochs)
        if images
        else distillation.Source(inversion, keep_images)
    )
    pictures = judging_pictures(teacher, checkpoint, _text(val_data), _text(class_map), loaded)
    job = distillation.Job(loaded, learner, source, settings, pictures, checks)
    result = distillation.distill(job, out, Display(quiet), device)
    typer.echo(distillation.in_words(result, out))


@app.command()
def export(
    teacher: TeacherNeeded,
    quantized: Annotated[Path, typer.Option(help="quantized.safetensors, made by `pipeline quantize`.")],
    out: Annotated[Path, typer.Option(help="Folder for the ONNX files.")],
    checkpoint: Checkpoint = None,
    class_map: ClassMap = None,
    uint8_input: Uint8Input = None,
    quiet: Quiet = False,
) -> None:
    """Quantized weights in, ONNX files out."""
    from pipeline.display import Display
    from pipeline.single import export_folder

    export_folder(teacher, checkpoint, quantized, out, class_map, bool(uint8_input), Display(quiet))


@app.command()
def engine(
    model: Annotated[Path, typer.Argument(help="model.onnx with Q/DQ.")],
    out: Annotated[Path, typer.Option(help="Folder for the engines.")],
    arch: Annotated[str, typer.Option(help="GPU architectures, as in sm86,sm89.")] = "sm89",
    backend: Annotated[str | None, typer.Option(help="tensorrt or tensorrt_rtx; the first installed.")] = None,
    precision: Annotated[str, typer.Option(help="float16, bfloat16 or float32 beside the integers.")] = PRECISION,
    batch: Annotated[str, typer.Option(help="Smallest, optimal and largest batch.")] = "1,8,32",
) -> None:
    """ONNX in, TensorRT engines out; needs no torch."""
    from export.engine import choose_backend
    from export.engines import build_engines
    from export.kernels import sentences

    archs, batches = parse_archs(arch), _parse_batches(batch)
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


@app.command()
def validate(
    target: Annotated[Path, typer.Argument(help="A run folder, or a model.onnx.")],
    teacher: Teacher = None,
    checkpoint: Checkpoint = None,
    bits: Bits = None,
    val_data: ValData = None,
    class_map: ClassMap = None,
    json: Annotated[Path | None, typer.Option(help="File for all figures.")] = None,
    junit: Annotated[Path | None, typer.Option(help="The gates as JUnit XML; a run folder has its own too.")] = None,
    overrides: Overrides = None,
    quiet: Quiet = False,
) -> None:
    """Judge a run again, or an ONNX file against its teacher.

    On other pictures, with other gates; the exit code is 1 when a gate fails. --bits chooses the default gates of an
    ONNX file, w8a8 where it is left out.
    """
    for path, flag in ((json, "--json"), (junit, "--junit")):
        if path:
            _require_place(path, flag)
    if target.is_file() and teacher is None:
        raise InputError(f"{str(target)!r} is judged against its teacher: add --teacher, and its --checkpoint.")
    if not target.is_file():
        from pipeline.manifest import load_manifest

        load_manifest(target)
        if teacher or checkpoint or bits:
            raise InputError(f"{str(target)!r} is a run, which names its teacher and bits: leave these flags out.")

    from pipeline.display import Display
    from pipeline.report import write_junit
    from pipeline.single import validate_file, validate_run

    display = Display(quiet)
    if target.is_file():
        from pipeline.recipe import make_recipe

        flags = {"teacher": teacher, "checkpoint": _text(checkpoint), "bits": bits or "w8a8"}
        flags |= {"val_data": _text(val_data), "class_map": _text(class_map)}
        manifest = validate_file(make_recipe(flags, None, overrides or ()), target, display)
    else:
        manifest = validate_run(target, _text(val_data), _text(class_map), overrides or (), display)
    if json:
        json.write_text(dumps(manifest["validation"], indent=2) + "\n")
    if junit:
        write_junit(manifest, junit)
    display.results(manifest)
    raise typer.Exit(0 if manifest["validation"]["passed"] else 1)


@app.command()
def report(run: Annotated[Path, typer.Argument(help="A run folder.")]) -> None:
    """A run folder's HTML report again."""
    from pipeline.manifest import load_manifest

    load_manifest(run)  # what is no run is refused before anything heavy is imported

    from pipeline.report import rewrite_report

    typer.echo(str(rewrite_report(run)))


@bench.command("inversion")
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
    from inversion.teacher import load_teacher
    from pipeline.bench import METHODS, measure_inversion, results_table
    from pipeline.display import Display

    if json:
        _require_place(json, "--json")
    display = Display(quiet)
    loaded = load_teacher(teacher, checkpoint, random_weights=random_weights)
    with display.steps("bench", rounds * len(METHODS)) as advance:
        results = measure_inversion(loaded, batch, rounds, device, precision, advance)
    if json:
        json.write_text(dumps(results, indent=2) + "\n")
    display.table(results_table(results))


@app.command()
def gallery(
    run: Annotated[Path, typer.Argument(help="A run folder, or a folder of shards.")],
    out: Annotated[Path | None, typer.Option(help="Folder for the pictures; RUN/gallery by default.")] = None,
    teacher: Teacher = None,
    checkpoint: Checkpoint = None,
    quiet: Quiet = False,
) -> None:
    """Contact sheets of what was inverted.

    Sparse images by stage, mosaics, the re-birth of patches, and histograms of confidence.

    A folder of shards alone needs --teacher for the confidence; a run folder names its own.
    """
    from inversion.teacher import load_teacher
    from pipeline import gallery as pictures
    from pipeline.display import Display

    if checkpoint and not teacher:
        raise InputError(f"--checkpoint {str(checkpoint)!r} holds the weights of a --teacher: name it too.")
    loaded = load_teacher(teacher, checkpoint) if teacher else None
    for path in pictures.gallery(run, out, Display(quiet), loaded):
        typer.echo(str(path))


@app.command()
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
    device: Device = "auto",
    sizes: Annotated[list[str] | None, typer.Option("--set", help="A size of the scale, as in iterations=500.")] = None,
    quiet: Quiet = False,
) -> None:
    """A table or figure of the paper, beside the paper's numbers."""
    from pipeline.reproduce.scale import choose_scale

    chosen = choose_scale(scale, sizes or ())

    from calib.student import load_student
    from inversion.machine import choose_device
    from inversion.teacher import load_teacher
    from pipeline.display import Display
    from pipeline.reproduce.experiments import find_experiment
    from pipeline.reproduce.laboratory import Laboratory
    from pipeline.valdata import judging_pictures

    experiment, display = find_experiment(name), Display(quiet)
    loaded = load_teacher(teacher, checkpoint, device=choose_device(device).type)
    pictures = judging_pictures(teacher, checkpoint, _text(val_data), _text(class_map), loaded)

    def fresh(seed: int) -> Any:
        return load_student(student, loaded, student_checkpoint, student_size, fresh_head=True, seed=seed)

    laboratory = Laboratory(loaded, fresh, chosen, out, display, pictures, device)
    result = experiment(laboratory)
    for path in result.write(out, laboratory.about(scale, student)):
        display.say(str(path))
    display.table(result.table())


@app.command()
def doctor() -> None:
    """What this machine can do, and how to mend what is missing."""
    from pipeline.doctor import examine

    for line in examine():
        typer.echo(line)


def parse_archs(text: str) -> tuple[str, ...]:
    """`sm86,sm89` -> ("sm86", "sm89"); `none` -> ()."""
    return () if text == "none" else tuple(dict.fromkeys(part.strip() for part in text.split(",")))


def _parse_batches(text: str) -> tuple[int, ...]:
    """`1,8,32` -> (1, 8, 32)."""
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() for part in parts):
        raise InputError(f"--batch {text!r} is no profile: give smallest, optimal and largest, as in 1,8,32.")
    batches = tuple(map(int, parts))
    require_batches(batches)
    return batches


def main() -> None:
    """Run the command; an error is one sentence on stderr and its exit code."""
    import logging
    import warnings

    # threads that spin long while they wait made an inversion 25 times slower on two cores that something else used too
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)  # speaks of compilers that we never call
    warnings.simplefilter("ignore")
    debug = DEBUG in sys.argv
    before = {number: signal.signal(number, _stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        app([argument for argument in sys.argv[1:] if argument != DEBUG])
    except Stopped as stopped:
        print(f"stopped by {stopped.signal.name}{_how_to_go_on(sys.argv[1:])}.", file=sys.stderr)
        sys.exit(128 + stopped.signal)
    except Exception as error:
        if debug:
            raise
        sentence, code = _explain(error)
        print(f"error: {' '.join(sentence.split())}", file=sys.stderr)
        sys.exit(code)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class Stopped(BaseException):
    """A signal asked the command to end; no `except Exception` on the way takes it for an error."""

    def __init__(self, number: int) -> None:
        self.signal = signal.Signals(number)
        super().__init__(self.signal.name)


def _stop(number: int, _frame: Any) -> None:
    for each in (signal.SIGINT, signal.SIGTERM):  # who asks twice is not kept waiting: no file can be half written
        signal.signal(each, signal.SIG_DFL)
    raise Stopped(number)


def _how_to_go_on(words: list[str]) -> str:
    """What a stopped command leaves for the next; nothing where it begins anew."""
    if not GO_ON & set(words[:1]):
        return ""
    anew = [word for word in words if word.partition("=")[0] in ("--force", "--from")]
    return f": the same command without {anew[0]} goes on from here" if anew else ": the same command goes on from here"


def _explain(error: Exception) -> tuple[str, int]:
    """The sentence and the exit code of an error."""
    if isinstance(error, PatchRebirthError):
        return str(error), error.exit_code
    if isinstance(error, OSError) and error.filename is not None:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        mend = "make room on the disk" if full else "give another path, or the right to use it"
        return f"{str(error.filename)!r} cannot be used ({error.strerror}): {mend}.", 3 if full else 2
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":  # torch's, which is not imported
        return "the memory of this machine or its GPU is not enough: take smaller batches.", 3
    if isinstance(error, RuntimeError) and "CUDA error" in str(error):
        why = str(error).splitlines()[0].removeprefix("CUDA error: ").rstrip(". ")
        return f"the GPU stopped answering ({why}): look at it with nvidia-smi, then run the same command again.", 3
    what = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    return f"the program itself is at fault ({what}): run it with {DEBUG} and report what it prints.", UNFORESEEN


def _require_place(path: Path, flag: str) -> None:
    """Refuse at once a path that could not be written in the end; what an earlier command left there goes."""
    if path.is_dir() or not path.parent.is_dir():
        raise InputError(f"{flag} {str(path)!r} is no file in a folder that exists: give another path.")
    path.unlink(missing_ok=True)


def _text(path: Path | None) -> Any:
    return None if path is None else str(path)
