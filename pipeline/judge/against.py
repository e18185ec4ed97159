"""A quantized ONNX file against its float file, where there is no teacher to ask: on a device. Needs no torch."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import numpy as np

from calib.scheme import QuantScheme
from export.edge.compare import Comparison, compare
from export.edge.kernels import require_quantized
from export.edge.registry import find_runtime
from export.edge.runtime import Runtime, answer, open_runtime, random_feeds, require_provider
from inversion.errors import InputError
from inversion.progress import Progress
from pipeline.judge.speed import Placed, onnx_speed, runtime_of
from pipeline.pictures.prepared import Prepared, leaves, metadata_of, real, require_fit, steps_of
from pipeline.recipe.recipe import Recipe
from pipeline.record.gates import FLOAT, ONNX, Measured, gates_of, warnings
from pipeline.record.manifest import Manifest, TeacherRecord
from pipeline.record.proof import Fidelity, Kernels, OnKinds, Runtimes, Verdict
from pipeline.record.versions import versions
from pipeline.show.display import Display

SEED = 0
Compared = dict[str, Comparison]


def bits_of(model: Path) -> str | None:
    """As w4a8, where the file itself says them."""
    said = metadata_of(model).get("scheme", "").partition(" ")[0]
    try:
        return QuantScheme.parse(said).bits if said else None
    except InputError:
        return None


def validate_against(
    recipe: Recipe, path: Path, against: Path, display: Display, stale: Sequence[Path] = ()
) -> Manifest:
    """The quantized file `path` judged by the answers of the float file `against`; returns a verdict as a run's.

    Dead leaves judge, and the real pictures that `recipe` names. `stale` files, of an earlier verdict, go when work
    begins. Raises `InputError` where the two files do not belong together.
    """
    chosen = recipe.validation
    require_provider(chosen.provider)
    require_quantized(path)
    steps = steps_of(path)
    with ExitStack() as stack:
        quantized = stack.enter_context(open_runtime(path, chosen.provider))
        plain = stack.enter_context(open_runtime(against))
        classes = _require_alike(path, quantized, against, plain)
        require_fit(steps, quantized, path)
        pictures = [leaves(steps, chosen.pictures, SEED)]
        if recipe.val_data:
            pictures.append(real(recipe.judges, steps, classes))
        for each in stale:
            each.unlink(missing_ok=True)
        with display.progress() as progress:
            found, together = _compared(plain, quantized, pictures, progress)
        only = quantized.batches[1]
    models = {FLOAT: Placed(against, chosen.provider), ONNX: Placed(path, chosen.provider)}
    speed = onnx_speed(models, only)
    judged = found.pop("real", None)
    kernels = find_runtime(chosen.provider).kernels(path)
    gates = gates_of(
        Measured(
            synthetic={ONNX: together},
            real={ONNX: judged} if judged else {},
            coverage={"": kernels.share},
            latency_ratios={"": [row.ratio for row in speed.rows(ONNX, FLOAT)]},
        ),
        chosen.limits(recipe.quant_scheme()),
    )
    left_out = [sentence for each in pictures for sentence in each.left_out]
    verdict = Verdict(
        passed=all(gates),
        gates=gates,
        warnings=(*left_out, *warnings(found, judged, together.n)),
        synthetic=OnKinds.all_of(together, found),
        real=Fidelity.of(judged) if judged else None,
        runtimes=Runtimes(runtime_of(quantized, models, speed, Kernels.of(kernels)), None),
        engine_graph=None,
        onnx_against_torch=None,
        layers=None,
    )
    for sentence in verdict.warnings:
        display.warn(sentence)
    teacher = TeacherRecord(against.name, hashlib.sha256(against.read_bytes()).hexdigest(), classes)
    return Manifest(recipe=recipe.to_dict(), teacher=teacher, versions=versions(), validation=verdict)


def _require_alike(path: Path, quantized: Runtime, against: Path, plain: Runtime) -> int:
    """How many classes both answer for; `InputError` where they take other pictures, or answer for other classes."""
    taken = [
        [(shape[1:], runtime.dtypes[name]) for name, shape in runtime.inputs.items()] for runtime in (quantized, plain)
    ]
    if taken[0] != taken[1]:
        raise InputError(
            f"{str(path)!r} takes {quantized.inputs}, {str(against)!r} takes {plain.inputs}: give the float file that "
            "it was made from, as model.fp32.onnx of its run."
        )
    said = [answer(runtime, next(iter(random_feeds(runtime, 1).values()))).shape[1:] for runtime in (quantized, plain)]
    if said[0] != said[1] or len(said[0]) != 1:
        raise InputError(
            f"{str(path)!r} answers with {list(said[0])} numbers, {str(against)!r} with {list(said[1])}: give the "
            "float file that it was made from, as model.fp32.onnx of its run."
        )
    return int(said[0][0])


def _compared(
    plain: Runtime, quantized: Runtime, kinds: Sequence[Prepared], progress: Progress
) -> tuple[Compared, Comparison]:
    """Of each kind of pictures, and of all together that have no labels."""
    done, total = 0, sum(pictures.count for pictures in kinds)
    found, unlabelled = {}, []
    for pictures in kinds:
        parts = []
        for batch in pictures.batches():
            parts.append((answer(plain, batch), answer(quantized, batch)))
            done += len(batch)
            progress("validation", done, total, math.nan)
        theirs, ours = (np.concatenate(side) for side in zip(*parts, strict=True))
        found[pictures.kind] = compare(theirs, ours, pictures.labels)
        if pictures.labels is None:
            unlabelled.append((theirs, ours))
    theirs, ours = (np.concatenate(side) for side in zip(*unlabelled, strict=True))
    return found, compare(theirs, ours)
