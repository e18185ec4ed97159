"""One stage by itself, on files: what `quantize`, `export` and `validate` do."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from calib.quantize import quantize, require_layers
from calib.quantized import QuantizedWeights
from inversion.errors import InputError
from inversion.images import load_images
from inversion.teacher import Teacher, load_teacher
from pipeline.display import Display
from pipeline.recipe import Recipe, make_recipe
from pipeline.runfolder import RunFolder, load_manifest, product_digest
from pipeline.stages import Build, export_files, real_pictures

QUANTIZED = "quantized.safetensors"


def quantize_files(recipe: Recipe, checkpoint: Path | None, images: Path, out: Path, display: Display) -> None:
    """Shards in, `quantized.safetensors` out."""
    if out.is_dir():
        raise InputError(f"--out {str(out)!r} is a folder: give the file to write, as in {str(out / QUANTIZED)!r}.")
    teacher, scheme = load_teacher(recipe.teacher, checkpoint), recipe.quant_scheme()
    require_layers(teacher.model, scheme)
    found = load_images(images)
    require_same_teacher(teacher, found.metadata.get("teacher_sha256"), images)
    out.parent.mkdir(parents=True, exist_ok=True)
    with display.phases() as on_phase:
        quantized = quantize(teacher, found, scheme, recipe.calibration, recipe.rounding, recipe.training, on_phase)
    quantized.weights.save(out)
    best = quantized.training.best
    display.say(
        f"ranges {quantized.method}; held-out synthetic KL {best.kl:.4f}, agreement {100 * best.agreement:.1f}%"
    )


def export_folder(name: str, checkpoint: Path | None, quantized: Path, out: Path, display: Display) -> None:
    """`quantized.safetensors` in, ONNX files out."""
    weights = QuantizedWeights.load(quantized)
    teacher = load_teacher(name, checkpoint)
    require_same_teacher(teacher, weights.teacher_sha256, quantized)
    out.mkdir(parents=True, exist_ok=True)
    with display.steps("export", 3) as advance:
        export_files(teacher, weights, out, advance)


def validate_run(
    folder: Path, val_data: str | None, class_map: str | None, overrides: Iterable[str], display: Display
) -> dict[str, Any]:
    """A finished run's files judged again; the manifest gets the new verdict."""
    manifest = load_manifest(folder)
    flags = {key: value for key, value in manifest["recipe"].items() if value is not None}
    flags |= {key: value for key, value in (("val_data", val_data), ("class_map", class_map)) if value is not None}
    recipe = make_recipe(flags, None, overrides)
    teacher = load_teacher(recipe.teacher, recipe.checkpoint)
    require_same_teacher(teacher, manifest["teacher"]["sha256"], folder)
    with RunFolder(folder) as run:
        run.require_intact()
        work = Build(recipe, teacher, real_pictures(recipe, teacher), None, run, display)
        engine = next((stage for stage in manifest["stages"] if stage["name"] == "engine"), None)
        if engine is None:
            raise InputError(f"the run in {str(folder)!r} is not finished: run its `pipeline build` again.")
        work.digests["engine"], work.engines = product_digest(engine), engine["metrics"]["engines"]
        work.begin()
        run.forget("validate")
        return work.conclude()


def require_same_teacher(teacher: Teacher, sha256: str | None, path: Path) -> None:
    if sha256 != teacher.sha256:
        raise InputError(f"{str(path)!r} was made from another teacher than {teacher.name!r}: give its own checkpoint.")
