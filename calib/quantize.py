"""Teacher and synthetic images in, quantized weights out."""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.metadata
import json
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from timm.models.vision_transformer import VisionTransformer

from calib.fidelity import Fidelity, OnStep
from calib.freeze import freeze
from calib.gptq import block_linears, round_model
from calib.layers import quantized_layers
from calib.qat import Outcome, train
from calib.quantized import QuantizedWeights
from calib.ranges import calibrate, input_quantizers, insert_quantizers, some_ranges
from calib.saliency import token_saliency
from calib.scheme import QuantScheme, integer_range
from calib.settings import Calibration, Rounding, Training
from calib.training_checkpoint import Checkpoint
from calib.views import Views, make_views, split_held_out
from inversion.images import SparseImages
from inversion.leaves import dead_leaves
from inversion.machine import choose_precision
from inversion.teacher import Teacher

OnPhase = Callable[[str, int, int, float], None]
"""Called with (phase: ranges, saliency, rounding or training; steps done; steps of the phase; KL now)."""


@dataclass(frozen=True)
class Quantized:
    """The result, with how it came about: range method taken, fidelity of each tried, outcome of training."""

    weights: QuantizedWeights
    method: str
    tried: dict[str, Fidelity]
    training: Outcome


def quantize(
    teacher: Teacher,
    images: SparseImages,
    scheme: QuantScheme,
    calibration: Calibration,
    rounding: Rounding,
    training: Training,
    on_phase: OnPhase | None = None,
    checkpoint: Path | None = None,
) -> Quantized:
    """Set ranges, round weights, then learn steps and weights, from `images` and dead leaves alone.

    Interrupted in training, the same call with the same `checkpoint` goes on from what the file there holds, and ends
    with the same bytes; whoever has published the result removes it.
    """

    def step(phase: str, total: int) -> OnStep | None:
        return on_phase and (lambda done, kl: on_phase(phase, done, total, kl))

    show, held_out = material(teacher, images, calibration)
    student = insert_quantizers(teacher.model, scheme)
    identity = _identity(teacher, images, scheme, calibration, rounding, training)
    kept = Checkpoint(checkpoint, identity) if checkpoint else None
    if kept and kept.saved:
        some_ranges(student)  # training restores its own
        method, tried = _found(kept.saved[1]["notes"])
    else:
        with float_weights(student):
            on_range = step("ranges", len(input_quantizers(student)))
            method, tried = calibrate(student, teacher.model, show(calibration.views), held_out, calibration, on_range)
        if rounding.method == "gptq":
            round_weights(student, teacher, scheme, show(rounding.views), rounding, calibration.seed, on_phase)
    notes = {"method": method, "tried": {name: dataclasses.asdict(value) for name, value in tried.items()}}
    on_update = step("training", training.updates)
    outcome = train(student, teacher.model, show(training.views), held_out, training, on_update, kept, notes)
    return Quantized(freeze(student, teacher, scheme), method, tried, outcome)


def _identity(teacher: Teacher, images: SparseImages, scheme: QuantScheme, *settings: Any) -> str:
    """A hash of all that the result depends on."""
    about = [teacher.sha256, images.sha256(), [dataclasses.asdict(part) for part in (scheme, *settings)]]
    about += [importlib.metadata.version(package) for package in ("torch", "timm", "nvidia-modelopt")]
    about.append(
        str(choose_precision(settings[-1].precision, teacher.device))
    )  # of training: auto may differ elsewhere
    return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()


def _found(notes: dict[str, Any]) -> tuple[str, dict[str, Fidelity]]:
    """The range method taken, and what each one tried gave, as a checkpoint noted them."""
    return notes["method"], {name: Fidelity(**value) for name, value in notes["tried"].items()}


def material(teacher: Teacher, images: SparseImages, calibration: Calibration) -> tuple[Callable[[str], Views], Views]:
    """What may be learned from, as a function from a kind of views to them, and the views that only judge."""
    seen, unseen = split_held_out(images, calibration.held_out)
    leaves = dead_leaves(teacher.spec, calibration.leaves, calibration.seed)
    more = math.ceil(calibration.held_out * calibration.leaves)
    other_leaves = dead_leaves(teacher.spec, more, calibration.seed, first=calibration.leaves)
    show = partial(make_views, seen, device=teacher.device, leaves=leaves)
    return show, make_views(unseen, "mixed", teacher.device, other_leaves)


def round_weights(
    student: VisionTransformer,
    teacher: Teacher,
    scheme: QuantScheme,
    views: Views,
    rounding: Rounding,
    seed: int = 0,
    on_phase: OnPhase | None = None,
) -> None:
    """GPTQ for every attention and MLP weight of `student` below 8 bits; `seed` is that of the tokens' saliency."""

    def tell(phase: str, total: int) -> Callable[[int], None] | None:
        return on_phase and (lambda done: on_phase(phase, done, total, math.nan))

    layers = block_linears(student)
    bits = {name: scheme.layer(name).weight for name in layers if scheme.layer(name).weight < 8}
    scales = {name: layers[name].weight_quantizer.amax.flatten() / integer_range(bits[name])[1] for name in bits}
    saliency = None
    if rounding.saliency and bits:
        outputs = {name: teacher.model.get_submodule(name) for name in bits}
        saliency = token_saliency(teacher.model, views, outputs, seed, tell("saliency", len(views)))
    round_model(student, views, scales, bits, rounding.damping, tell("rounding", len(bits)), saliency)


@contextmanager
def float_weights(student: VisionTransformer) -> Iterator[None]:
    """Weight quantizers pause, so that nothing but activations tells the ranges apart."""
    quantizers = [layer.weight_quantizer for layer in quantized_layers(student).values()]
    for quantizer in quantizers:
        quantizer.disable_quant()
    yield
    for quantizer in quantizers:
        quantizer.enable_quant()
