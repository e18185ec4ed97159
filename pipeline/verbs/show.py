"""What shows: a run's report, its pictures, this machine."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from json import dumps
from pathlib import Path
from typing import Annotated, Protocol

import typer

from inversion.errors import InputError
from pipeline.verbs.options import (
    Checkpoint,
    CheckpointKey,
    Crop,
    Interpolation,
    Mean,
    Quiet,
    RecipeFile,
    Std,
    Teacher,
    flags_of,
    require_place,
)

STDOUT = "-"


def report(run: Annotated[Path, typer.Argument(help="A run folder.")]) -> None:
    """A run folder's HTML report again."""
    from pipeline.record.manifest import load_manifest

    load_manifest(run)  # what is no run is refused before anything heavy is imported

    from pipeline.show.report import rewrite_report

    typer.echo(str(rewrite_report(run)))


def gallery(
    run: Annotated[Path, typer.Argument(help="A run folder, or a folder of shards.")],
    out: Annotated[Path | None, typer.Option(help="Folder for the pictures; RUN/gallery by default.")] = None,
    teacher: Teacher = None,
    checkpoint: Checkpoint = None,
    checkpoint_key: CheckpointKey = None,
    mean: Mean = None,
    std: Std = None,
    crop: Crop = None,
    interpolation: Interpolation = None,
    recipe: RecipeFile = None,
    quiet: Quiet = False,
) -> None:
    """Contact sheets of what was inverted.

    Sparse images by stage, mosaics, the re-birth of patches, and histograms of confidence.

    A folder of shards alone needs --teacher for the confidence; a run folder names its own.
    """
    named = flags_of(
        teacher=teacher, checkpoint=checkpoint, checkpoint_key=checkpoint_key, mean=mean, std=std, crop=crop,
        interpolation=interpolation,
    )  # fmt: skip
    if named and not teacher and not recipe:
        raise InputError(f"{', '.join(named)} tell of a --teacher: name it too.")

    from pipeline.recipe.resolve import make_recipe

    chosen = make_recipe(named, recipe, verb="gallery") if named or recipe else None

    from inversion.machine import choose_device
    from pipeline.run.preflight import teacher_of
    from pipeline.show import gallery as pictures
    from pipeline.show.display import Display

    display = Display(quiet)
    loaded = teacher_of(chosen, choose_device(), display) if chosen else None
    for path in pictures.gallery(run, out, display, loaded):
        typer.echo(str(path))


def deploy(
    run: Annotated[Path, typer.Argument(help="A finished run folder.")],
    to: Annotated[Path, typer.Option("--to", help="Folder for what a device needs.")],
    runtime: Annotated[str, typer.Option(help="all, onnxruntime or tensorrt: what is to run there.")] = "all",
) -> None:
    """What a device needs of a run, and nothing else.

    Model or engines, preprocessing, labels, programs; the same as RUN/deploy, which `build` writes.
    """
    from pipeline.record.manifest import load_finished

    load_finished(run)  # what is no run is refused before anything heavy is imported

    from pipeline.deploy.folder import deploy as write

    for path in write(run, to, runtime):
        typer.echo(str(path))


def inspect(
    file: Annotated[Path, typer.Argument(help="An ONNX file or a TensorRT engine, whoever made it.")],
    provider: Annotated[str, typer.Option(help="What runs it: cpu, openvino, cuda, tensorrt or tensorrt_rtx.")] = "cpu",
    json: Annotated[
        str | None, typer.Option(help="File for all of it as JSON; - writes that in place of words.")
    ] = None,
) -> None:
    """What runs on integers of anyone's ONNX or engine.

    Its sizes and quantizers, each product that does not run on integers with the reason, and what TensorRT would
    refuse. Needs no torch.
    """
    if json and json != STDOUT:
        require_place(Path(json), "--json")

    from export.edge.inspection import inspect_file

    _tell(inspect_file(file, provider), json)


def doctor(
    json: Annotated[
        str | None, typer.Option(help="File for all of it as JSON; - writes that in place of words.")
    ] = None,
) -> None:
    """What this machine can do, and how to mend what is missing.

    What the CPU has for integers, free memory and disk, what each missing package would bring, and which runtimes
    really run a small model. Needs no torch.
    """
    if json and json != STDOUT:
        require_place(Path(json), "--json")

    from pipeline.show.doctor import examine

    _tell(examine(), json)


class _Told(Protocol):
    """What can be told to people and to programs."""

    def to_dict(self) -> Mapping[str, object]: ...

    def lines(self) -> Iterable[str]: ...


def _tell(found: _Told, json: str | None) -> None:
    """In words, and as JSON in the file `json`; or as JSON alone where that is stdout."""
    if json:
        text = dumps(found.to_dict(), indent=2) + "\n"
        typer.echo(text, nl=False) if json == STDOUT else Path(json).write_text(text)
    if json != STDOUT:
        for line in found.lines():
            typer.echo(line)
