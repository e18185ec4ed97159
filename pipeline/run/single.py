"""One stage by itself, on files: what `quantize`, `export` and `validate` do."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from calib.layers import require_layers
from calib.memory import require_training_memory
from calib.weights import QuantizedWeights
from export.edge.engine import EngineSpec
from export.edge.kernels import require_quantized
from export.edge.latency import random_feeds
from export.edge.runtime import Runtime, answer, open_runtime, require_provider
from export.graph import export_float
from inversion.errors import InputError
from inversion.images import load_images, require_images_of
from inversion.machine import settle_sums
from inversion.teacher import Teacher
from pipeline.judge.validation import Files, proof_leaves, validate
from pipeline.pictures.labels import known_labels
from pipeline.recipe.recipe import PictureSource, Recipe, make_recipe
from pipeline.record.manifest import describe_teacher, load_manifest
from pipeline.run.folder import RunFolder, product_digest
from pipeline.run.stages import Build, export_files, real_pictures, teacher_of
from pipeline.show.display import Display

QUANTIZED = "quantized.safetensors"
ANY_LEAVES = 1 << 16
"""First number of the dead leaves that judge a file of which it is not known what it was calibrated on."""


def quantize_files(recipe: Recipe, checkpoint: Path | None, images: Path, out: Path, display: Display) -> None:
    """Shards in, `quantized.safetensors` out."""
    if out.is_dir():
        raise InputError(f"--out {str(out)!r} is a folder: give the file to write, as in {str(out / QUANTIZED)!r}.")
    from calib.quantize import quantize  # ModelOpt loads for seconds, and only here

    settle_sums(recipe.threads)
    teacher, scheme = teacher_of(recipe, display, checkpoint), recipe.quant_scheme()
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
    recipe: Recipe,
    quantized: Path,
    out: Path,
    display: Display,
) -> None:
    """`quantized.safetensors` in, ONNX files out."""
    weights = QuantizedWeights.load(quantized)
    teacher = teacher_of(recipe, display)
    require_same_teacher(teacher, weights.teacher_sha256, quantized)
    labels = known_labels(teacher, recipe.checkpoint, recipe.class_map)
    out.mkdir(parents=True, exist_ok=True)
    with display.steps("export", 3) as advance:
        export_files(teacher, quantized, out, labels, advance, **dataclasses.asdict(recipe.export))


def validate_file(recipe: Recipe, path: Path, display: Display, stale: Sequence[Path] = ()) -> dict[str, Any]:
    """A quantized ONNX file by itself against its teacher; returns a verdict as a run's.

    Of synthetic pictures only dead leaves judge: mosaics lie in run folders. `stale` files, of an earlier verdict, go
    when work begins.
    """
    require_provider(recipe.validation.provider)
    require_quantized(path)
    teacher = teacher_of(recipe, display)
    val_data = real_pictures(recipe, teacher, display)
    limits = recipe.validation.limits(recipe.quant_scheme())
    leaves = proof_leaves(teacher, recipe.validation.pictures, recipe.calibration.seed, ANY_LEAVES)
    with tempfile.TemporaryDirectory() as folder:
        float32 = Path(folder) / "model.fp32.onnx"
        with open_runtime(path) as runtime:
            require_fit(runtime, teacher, path)
            uint8_input = np.uint8 in runtime.dtypes.values()
        for each in stale:
            each.unlink(missing_ok=True)
        export_float(teacher.model, teacher.spec, float32, {}, uint8_input)
        files = Files(path, float32, provider=recipe.validation.provider)
        total = leaves.count + (len(val_data) if val_data else 0)
        with display.steps("validation", total) as advance:
            verdict = validate(teacher, files, None, [leaves], val_data, limits, advance)
    for sentence in verdict["warnings"]:
        display.warn(sentence)
    return {"teacher": describe_teacher(teacher), "recipe": recipe.to_dict(), "validation": verdict}


def require_fit(runtime: Runtime, teacher: Teacher, path: Path) -> None:
    """Raises `InputError` where the model does not take the teacher's pictures, or answers for other classes."""
    channels, (height, width) = teacher.spec.channels, teacher.spec.size
    shapes = {"float": (channels, height, width), "bytes": (height, width, channels)}
    taken = {name: shape[1:] for name, shape in runtime.inputs.items()}
    kind = "bytes" if np.uint8 in runtime.dtypes.values() else "float"
    if list(taken.values()) != [shapes[kind]]:
        raise InputError(
            f"{str(path)!r} takes {runtime.inputs}, {teacher.name!r} sees {channels}x{height}x{width} pictures: "
            "give the teacher that it was made from."
        )
    (feed,) = random_feeds(runtime, 1).values()
    classes = answer(runtime, feed).shape[1:]
    if classes != (teacher.spec.num_classes,):
        raise InputError(
            f"{str(path)!r} answers for {'x'.join(map(str, classes))} classes, {teacher.name!r} has "
            f"{teacher.spec.num_classes}: give the teacher that it was made from."
        )


def validate_run(
    folder: Path,
    source: PictureSource,
    overrides: Iterable[str],
    display: Display,
    keep: bool = False,
    stale: Sequence[Path] = (),
) -> dict[str, Any]:
    """A finished run's files judged again, on the pictures of `source` where it names some; the manifest gets the new
    verdict. What was given for this verdict becomes the run's own with `keep` alone. `stale` files, of an earlier
    verdict, go when work begins.
    """
    load_manifest(folder)  # what is no run gets no lock either
    with RunFolder(folder) as run:
        manifest = load_manifest(folder)  # as it is now that nobody else writes it
        own = _values(manifest["recipe"])
        given = _values(dataclasses.asdict(source))
        if "val_data" in given:  # the run's class map and columns are those of its own pictures
            own = {key: value for key, value in own.items() if key not in dataclasses.asdict(source)}
        recipe = make_recipe(own | given, None, overrides)
        settle_sums(recipe.threads)
        require_provider(recipe.validation.provider)
        teacher = teacher_of(recipe, display)
        require_same_teacher(teacher, manifest["teacher"]["sha256"], folder)
        run.require_intact()
        work = Build(recipe, teacher, real_pictures(recipe, teacher, display), None, run, display)
        engine = _engine_stage(manifest, folder)
        work.digests["engine"], work.engines = product_digest(engine), engine["metrics"]["engines"]
        work.begin(stale, None if keep else make_recipe(_values(manifest["recipe"])))
        run.forget("validate")
        return work.conclude()


def _values(recipe: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in recipe.items() if value is not None}


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
