"""Options that several verbs take, and how their words are read."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from export.edge.profile import require_batches
from inversion.errors import InputError

Teacher = Annotated[str | None, typer.Option(help="deit_tiny|small|base, digits_vit, or any timm plain-ViT name.")]
TeacherNeeded = Annotated[str, typer.Option(help="deit_tiny|small|base, digits_vit, or any timm plain-ViT name.")]
Checkpoint = Annotated[
    Path | None, typer.Option(help="The teacher's weights: safetensors, a trainer's .pth, or a folder with one.")
]
CheckpointKey = Annotated[
    str | None, typer.Option(help="Which weights, where the checkpoint holds several, as in model_ema.")
]
Mean = Annotated[str | None, typer.Option(help="Of the teacher's pixels in 0..1, as in 0.5,0.5,0.5.")]
Std = Annotated[str | None, typer.Option(help="The same.")]
Crop = Annotated[float | None, typer.Option(help="Share of the resized picture's side that is kept.")]
Interpolation = Annotated[str | None, typer.Option(help="bicubic, bilinear or lanczos.")]
Bits = Annotated[str | None, typer.Option(help="w4a8, w8a8, w8a16, ...: bits of weights and of activations.")]
BitsNeeded = Annotated[str, typer.Option(help="w4a8, w8a8, w8a16, ...: bits of weights and of activations.")]
Effort = Annotated[str | None, typer.Option(help="quick, standard or paper.")]
RecipeFile = Annotated[Path | None, typer.Option("--recipe", help="TOML file with any value of the recipe.")]
Overrides = Annotated[list[str] | None, typer.Option("--set", help="One value, as in inversion.iterations=500.")]
ValData = Annotated[Path | None, typer.Option(help="Real pictures that judge: a folder a class, or Parquet files.")]
ImageColumn = Annotated[str | None, typer.Option(help="Of a Parquet file: image or img by default.")]
LabelColumn = Annotated[str | None, typer.Option(help="Of a Parquet file: label or labels by default.")]
Threads = Annotated[int | None, typer.Option(help="Of the CPU: same number, same bytes; torch's own by default.")]
ClassMap = Annotated[Path | None, typer.Option(help="File with one folder name a line, in class order.")]
Arch = Annotated[str | None, typer.Option(help="GPU architectures, as in sm86,sm89; none builds no engine.")]
Seed = Annotated[int | None, typer.Option(help="Same seed, same machine: the same bytes.")]
Device = Annotated[str, typer.Option(help="Where inversion runs: auto, cpu or cuda.")]
Uint8Input = Annotated[bool | None, typer.Option("--uint8-input", help="The ONNX takes bytes [batch, H, W, C].")]
Verbose = Annotated[bool, typer.Option("--verbose", help="The lines of run.log, too.")]
Quiet = Annotated[bool, typer.Option("--quiet", help="No progress.")]


def parse_archs(text: str) -> tuple[str, ...]:
    """`sm86,sm89` -> ("sm86", "sm89"); `none` -> ()."""
    return () if text == "none" else tuple(dict.fromkeys(part.strip() for part in text.split(",")))


def given_input(mean: str | None, std: str | None, crop: float | None, interpolation: str | None) -> dict[str, Any]:
    """--mean, --std, --crop and --interpolation as the recipe's section `input`; empty where none is given."""
    found = {"mean": _numbers(mean, "--mean"), "std": _numbers(std, "--std"), "crop": crop}
    given = {key: value for key, value in {**found, "interpolation": interpolation}.items() if value is not None}
    return {"input": given} if given else {}


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


def text_of(path: Path | None) -> str | None:
    return None if path is None else str(path)
