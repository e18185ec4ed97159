"""Options that several verbs take, and how their words are read."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from export.edge.profile import NAMED, require_batches
from inversion.errors import InputError
from inversion.shards import Part

Teacher = Annotated[str | None, typer.Option(help="deit_tiny|small|base, digits_vit, or any timm plain-ViT name.")]
Checkpoint = Annotated[
    Path | None,
    typer.Option(help="Weights: safetensors, a trainer's .pth, or a folder with one; timm's pretrained by default."),
]
CheckpointKey = Annotated[
    str | None,
    typer.Option(help="Which weights, where a checkpoint holds several, as in model_ema; none by default."),
]
Mean = Annotated[str | None, typer.Option(help="Of the pixels in 0..1, as in 0.5,0.5,0.5; the teacher's by default.")]
Std = Annotated[str | None, typer.Option(help="The same, the teacher's by default.")]
Crop = Annotated[
    float | None, typer.Option(help="Share of the resized picture's side that is kept; the teacher's by default.")
]
Interpolation = Annotated[str | None, typer.Option(help="bicubic, bilinear or lanczos; the teacher's by default.")]
Bits = Annotated[str | None, typer.Option(help="w4a8, w8a8, w8a16, ...: bits of weights and of activations.")]
Effort = Annotated[str | None, typer.Option(help="quick, standard (the default) or paper.")]
RecipeFile = Annotated[
    Path | None, typer.Option("--recipe", help="TOML file with any value of the recipe; none by default.")
]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", help="One value, as in inversion.iterations=500; docs/recipe.md has the defaults."),
]
ValData = Annotated[
    Path | None,
    typer.Option(help="Real pictures that judge: a folder a class, or Parquet files; none by default."),
]
ImageColumn = Annotated[str | None, typer.Option(help="Of a Parquet file: image or img by default.")]
LabelColumn = Annotated[str | None, typer.Option(help="Of a Parquet file: label or labels by default.")]
Threads = Annotated[int | None, typer.Option(help="Of the CPU: same number, same bytes; torch's own by default.")]
ClassMap = Annotated[
    Path | None,
    typer.Option(help="File with one folder name a line, in class order; by default folders are in their own."),
]
Arch = Annotated[
    str | None, typer.Option(help="GPU architectures, as in sm86,sm89,orin; sm89 by default, none builds no engine.")
]
Method = Annotated[str | None, typer.Option(help="dmi, smi or pri; pri by default.")]
DivisionFactor = Annotated[int | None, typer.Option(help="v of PRI: sparse images per trajectory.")]
Sparsity = Annotated[int | None, typer.Option(help="Of SMI: 50, 76 or 86.")]
Iterations = Annotated[int | None, typer.Option(help="T, updates per trajectory.")]
TvWeight = Annotated[float | None, typer.Option(help="Lambda of Eq. 1: 1e-2 by default; the paper's is 1e-4.")]
Seed = Annotated[int | None, typer.Option(help="Same seed, same machine: the same bytes; 0 by default.")]
Device = Annotated[str, typer.Option(help="Where everything runs but ONNX Runtime: auto, cpu, cuda or cuda:1.")]
Ray = Annotated[
    str | None,
    typer.Option(help="A Ray cluster that works too: auto, HOST:PORT, or local for one here; none by default."),
]
RayWorkers = Annotated[
    int | None,
    typer.Option(help="How many of the cluster quantize together; a GPU each by default, 1 without GPUs."),
]
Uint8Input = Annotated[bool | None, typer.Option("--uint8-input", help="The ONNX takes bytes [batch, H, W, C].")]
Verbose = Annotated[bool, typer.Option("--verbose", help="The lines of run.log, too.")]
Quiet = Annotated[bool, typer.Option("--quiet", help="No progress.")]

SLURM = ("SLURM_ARRAY_TASK_ID", "SLURM_ARRAY_TASK_COUNT")
"""Which task of an array this is, and how many there are."""


def parse_archs(text: str) -> tuple[str, ...]:
    """`sm86,orin` -> ("sm86", "sm87"); `none` -> ()."""
    names = (part.strip() for part in text.split(","))
    return () if text == "none" else tuple(dict.fromkeys(NAMED.get(name.lower(), name) for name in names))


def flags_of(
    *,
    mean: str | None = None,
    std: str | None = None,
    crop: float | None = None,
    interpolation: str | None = None,
    **others: object,
) -> dict[str, Any]:
    """Flags as keys of a recipe: paths as text, and --mean, --std, --crop, --interpolation as its section `input`; a
    section holds what was given of it, and what was not given is left out."""
    told = {
        "mean": _numbers(mean, "--mean"),
        "std": _numbers(std, "--std"),
        "crop": crop,
        "interpolation": interpolation,
    }
    found: dict[str, Any] = {}
    for key, value in {"input": told, **others}.items():
        if isinstance(value, dict):
            value = {name: item for name, item in value.items() if item is not None} or None
        if value is not None:
            found[key] = str(value) if isinstance(value, Path) else value
    return found


def batch_of(text: str | None) -> int | None:
    """`auto` -> 0, as many as fit; `128` -> 128."""
    if text is None or text == "auto":
        return None if text is None else 0
    if not text.isdecimal():
        raise InputError(f"--batch {text!r} is no number of images: write 128 or the like, or auto.")
    return int(text)


def part_of(text: str | None, environment: Mapping[str, str]) -> Part | None:
    """`3/4`; where nothing is given, the part of this task of a Slurm array. None outside of one: the whole job."""
    if text is not None:
        return Part.parse(text)
    index, count = (environment.get(name) for name in SLURM)
    if index is None or count is None:
        return None
    if not (index.isdecimal() and count.isdecimal()):
        raise InputError(
            f"{' and '.join(SLURM)} are {index!r} and {count!r}, no numbers: give --shard 0/4 or the like."
        )
    return Part(int(index), int(count))


def _numbers(text: str | None, flag: str) -> tuple[float, ...] | None:
    try:
        return None if text is None else tuple(float(part) for part in text.split(","))
    except ValueError:
        raise InputError(f"{flag} {text!r} is no list of numbers: write 0.5 or 0.485,0.456,0.406.") from None


def parse_batches(text: str) -> tuple[int, ...]:
    """`1,8,32` -> (1, 8, 32); `4` -> (4, 4, 4)."""
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() for part in parts):
        raise InputError(f"--batch {text!r} is no profile: give one batch, or smallest, optimal and largest (1,8,32).")
    batches = tuple(map(int, parts)) * (3 if len(parts) == 1 else 1)
    require_batches(batches)
    return batches


def require_place(path: Path, flag: str) -> None:
    """Refuse at once a path that could not be written in the end."""
    if path.is_dir() or not path.parent.is_dir():
        raise InputError(f"{flag} {str(path)!r} is no file in a folder that exists: give another path.")
