"""One stage by itself, on files: what `quantize`, `export` and `validate` do."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from calib.layers import require_layers
from calib.memory import require_training_memory
from calib.quantized import QuantizedWeights
from export.engine import EngineSpec
from export.graph import export_float
from export.kernels import require_quantized
from export.latency import random_feeds
from export.runtime import Runtime, open_runtime
from inversion.errors import InputError
from inversion.images import load_images, require_images_of
from inversion.leaves import dead_leaves
from inversion.teacher import Teacher, load_teacher
from pipeline.display import Display
from pipeline.labels import known_labels
from pipeline.manifest import load_manifest
from pipeline.recipe import Recipe, make_recipe
from pipeline.runfolder import RunFolder, describe_teacher, product_digest
from pipeline.stages import Build, export_files, real_pictures
from pipeline.validation import Files, validate

QUANTIZED = "quantized.safetensors"
PICTURES = 32
"""Dead leaves that a file alone is judged on."""


def quantize_files(recipe: Recipe, checkpoint: Path | None, images: Path, out: Path, display: Display) -> None:
    """Shards in, `quantized.safetensors` out."""
    if out.is_dir():
        raise InputError(f"--out {str(out)!r} is a folder: give the file to write, as in {str(out / QUANTIZED)!r}.")
    from calib.quantize import quantize  # ModelOpt loads for seconds, and only here

    teacher, scheme = load_teacher(recipe.teacher, checkpoint), recipe.quant_scheme()
    require_layers(teacher.model, scheme)
    require_training_memory(teacher.model, recipe.training)
    found = load_images(images)
    require_images_of(teacher, found, images)
    out.parent.mkdir(parents=True, exist_ok=True)
    unfinished = out.with_name(f".{out.name}.training")
    with display.phases() as on_phase:
        quantized = quantize(
            teacher, found, scheme, recipe.basis, recipe.calibration, recipe.rounding, recipe.training, on_phase,
            unfinished,
        )  # fmt: skip
    quantized.weights.save(out)
    unfinished.unlink(missing_ok=True)
    best = quantized.training.best
    display.say(
        f"ranges {quantized.method}; held-out synthetic KL {best.kl:.4f}, agreement {100 * best.agreement:.1f}%"
    )


def export_folder(
    name: str,
    checkpoint: Path | None,
    quantized: Path,
    out: Path,
    class_map: Path | None,
    uint8_input: bool,
    display: Display,
) -> None:
    """`quantized.safetensors` in, ONNX files out."""
    weights = QuantizedWeights.load(quantized)
    teacher = load_teacher(name, checkpoint)
    require_same_teacher(teacher, weights.teacher_sha256, quantized)
    labels = known_labels(teacher, checkpoint, class_map)
    out.mkdir(parents=True, exist_ok=True)
    with display.steps("export", 3) as advance:
        export_files(teacher, quantized, out, labels, advance, uint8_input)


def validate_file(recipe: Recipe, path: Path, display: Display) -> dict[str, Any]:
    """A quantized ONNX file, or an engine, by itself against its teacher; returns a verdict as a run's.

    Dead leaves stand for the synthetic pictures, which lie in run folders.
    """
    require_quantized(path)
    teacher = load_teacher(recipe.teacher, recipe.checkpoint)
    val_data = real_pictures(recipe, teacher)
    limits = recipe.validation.limits(recipe.quant_scheme())
    pictures = dead_leaves(teacher.spec, PICTURES, recipe.seed)
    with tempfile.TemporaryDirectory() as folder:
        float32 = Path(folder) / "model.fp32.onnx"
        with open_runtime(path) as runtime:
            require_fit(runtime, teacher, path)
            uint8_input = runtime.dtypes["input"] == np.uint8
        export_float(teacher.model, teacher.spec, float32, {}, uint8_input)
        files = Files(path, float32, provider=recipe.validation.provider)
        total = len(pictures) + (len(val_data) if val_data else 0)
        with display.steps("validation", total) as advance:
            verdict = validate(teacher, files, None, pictures, val_data, limits, advance)
    return {"teacher": describe_teacher(teacher), "recipe": recipe.to_dict(), "validation": verdict}


def require_fit(runtime: Runtime, teacher: Teacher, path: Path) -> None:
    """Raises `InputError` where the model does not take the teacher's pictures, or answers for other classes."""
    channels, (height, width) = teacher.spec.channels, teacher.spec.size
    shapes = {"input": (channels, height, width)}, {"input": (height, width, channels)}
    taken = {name: shape[1:] for name, shape in runtime.inputs.items()}
    if taken not in shapes:
        raise InputError(
            f"{str(path)!r} takes {runtime.inputs}, {teacher.name!r} sees {channels}x{height}x{width} pictures: "
            "give the teacher that it was made from."
        )
    classes = runtime.run(random_feeds(runtime, 1))["logits"].shape[1]
    if classes != teacher.spec.num_classes:
        raise InputError(
            f"{str(path)!r} answers for {classes} classes, {teacher.name!r} has {teacher.spec.num_classes}: "
            "give the teacher that it was made from."
        )


def validate_run(
    folder: Path, val_data: str | None, class_map: str | None, overrides: Iterable[str], display: Display
) -> dict[str, Any]:
    """A finished run's files judged again; the manifest gets the new verdict."""
    load_manifest(folder)  # what is no run gets no lock either
    with RunFolder(folder) as run:
        manifest = load_manifest(folder)  # as it is now that nobody else writes it
        flags = {key: value for key, value in manifest["recipe"].items() if value is not None}
        flags |= {key: value for key, value in (("val_data", val_data), ("class_map", class_map)) if value is not None}
        recipe = make_recipe(flags, None, overrides)
        teacher = load_teacher(recipe.teacher, recipe.checkpoint)
        require_same_teacher(teacher, manifest["teacher"]["sha256"], folder)
        run.require_intact()
        work = Build(recipe, teacher, real_pictures(recipe, teacher), None, run, display)
        engine = _engine_stage(manifest, folder)
        work.digests["engine"], work.engines = product_digest(engine), engine["metrics"]["engines"]
        work.begin()
        run.forget("validate")
        return work.conclude()


def _engine_stage(manifest: dict[str, Any], folder: Path) -> dict[str, Any]:
    """The record of the last stage before validation; `InputError` where the run has not come so far."""
    engine: dict[str, Any] | None = next((stage for stage in manifest["stages"] if stage["name"] == "engine"), None)
    if engine is None:
        raise InputError(f"the run in {str(folder)!r} is not finished: run its `pipeline build` again.")
    made = {output["path"] for output in engine["outputs"]}
    named = engine["metrics"].get("engines")
    if not isinstance(named, list) or not all(_is_engine(one, made) for one in named):
        raise InputError(f"the manifest in {str(folder)!r} names engines that its run did not make: build again.")
    return engine


def require_same_teacher(teacher: Teacher, sha256: str | None, path: Path) -> None:
    if sha256 != teacher.sha256:
        raise InputError(f"{str(path)!r} was made from another teacher than {teacher.name!r}: give its own checkpoint.")


def _is_engine(spec: Any, made: set[str]) -> bool:
    """Whether it describes an engine that is one of the files `made`."""
    fields = {field.name for field in dataclasses.fields(EngineSpec)}
    return isinstance(spec, dict) and spec.keys() >= fields and spec.get("path") in made
