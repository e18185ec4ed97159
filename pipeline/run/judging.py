"""A verdict by itself: of a finished run, and of an ONNX file."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import torch

from export.edge.kernels import require_quantized
from export.edge.runtime import Runtime, answer, open_runtime, random_feeds, require_provider
from export.graph import export_float
from inversion.errors import InputError
from inversion.teacher import Teacher
from pipeline.judge.validation import Files, proof_leaves, validate
from pipeline.recipe.recipe import PictureSource, Recipe
from pipeline.recipe.resolve import overridden, read_back
from pipeline.record.manifest import Manifest, StageRecord, TeacherRecord, load_manifest
from pipeline.record.versions import versions
from pipeline.run.build import begin, conclude, run_stage
from pipeline.run.folder import RunFolder
from pipeline.run.job import Places
from pipeline.run.preflight import preflight, require_same_teacher
from pipeline.run.stages.validate import Validate, engines_of
from pipeline.show.display import Display

ANY_LEAVES = 1 << 16
"""First number of the dead leaves that judge a file of which it is not known what it was calibrated on."""


def validate_file(
    recipe: Recipe, path: Path, place: torch.device, display: Display, stale: Sequence[Path] = ()
) -> Manifest:
    """A quantized ONNX file by itself against its teacher; returns a verdict as a run's.

    Of synthetic pictures only dead leaves judge: mosaics lie in run folders. `stale` files, of an earlier verdict, go
    when work begins.
    """
    require_provider(recipe.validation.provider)
    require_quantized(path)
    job = preflight(recipe, place, Places.run(path.parent), display, judged=True)
    teacher, val_data = job.teacher, job.pictures
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
        with display.progress() as progress:
            verdict = validate(teacher, files, None, [leaves], val_data, limits, progress)
    for sentence in verdict.warnings:
        display.warn(sentence)
    about = TeacherRecord.of(teacher)
    return Manifest(recipe=recipe.to_dict(), teacher=about, versions=versions(), validation=verdict)


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
    place: torch.device,
    display: Display,
    keep: bool = False,
    stale: Sequence[Path] = (),
) -> Manifest:
    """A finished run's files judged again, on the pictures of `source` where it names some; the manifest gets the new
    verdict. What was given for this verdict becomes the run's own with `keep` alone. `stale` files, of an earlier
    verdict, go when work begins.
    """
    load_manifest(folder)  # what is no run gets no lock either
    with RunFolder(folder) as run:
        manifest = load_manifest(folder)  # as it is now that nobody else writes it
        own = read_back(manifest.recipe)
        # the run's class map and columns are those of its own pictures
        given = dataclasses.asdict(source if source.val_data else _completed(source, own.judges))
        recipe = overridden(dataclasses.replace(own, **given), overrides)
        job = preflight(recipe, place, Places.run(folder), display, (Validate(),), judged=True)
        require_same_teacher(job.teacher, manifest.teacher.sha256, folder)
        run.require_intact()
        job.made["engine"] = _engine_stage(manifest, folder)
        begin(run, job, stale, None if keep else own)
        run.forget(Validate.name)
        run_stage(Validate(), job, run)
        return conclude(run, job)


def _completed(source: PictureSource, own: PictureSource) -> PictureSource:
    """What `source` says, and for the rest the run's own."""
    values = dataclasses.asdict(own) | {key: value for key, value in vars(source).items() if value is not None}
    return PictureSource(**values)


def _engine_stage(manifest: Manifest, folder: Path) -> StageRecord:
    """The record of the last stage before validation; `InputError` where the run has not come so far."""
    engine = manifest.find("engine")
    if engine is None:
        raise InputError(f"the run in {str(folder)!r} is not finished: run its `pipeline build` again.")
    engines_of(engine, folder)
    return engine
