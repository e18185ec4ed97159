"""Teacher and synthetic images in, quantized weights out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from calib.fidelity import Fidelity, OnStep
from calib.freeze import freeze
from calib.qat import Outcome, train
from calib.quantized import QuantizedWeights
from calib.ranges import calibrate, insert_quantizers, quantized_layers
from calib.scheme import QuantScheme
from calib.settings import Calibration, Training
from calib.views import make_views, split_held_out
from inversion.images import SparseImages
from inversion.teacher import Teacher

OnPhase = Callable[[str, int, int, float], None]
"""Called with (phase: ranges or training, steps done, steps of the phase, KL to the teacher now)."""


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
    training: Training,
    on_phase: OnPhase | None = None,
) -> Quantized:
    """Set ranges, then learn steps and weights, from `images` alone."""

    def step(phase: str, total: int) -> OnStep | None:
        return on_phase and (lambda done, kl: on_phase(phase, done, total, kl))

    layers = quantized_layers(teacher.model)
    seen, unseen = split_held_out(images, calibration.held_out)
    held_out = make_views(unseen, "mosaic", teacher.device)
    student = insert_quantizers(teacher.model, scheme)
    seen_views = make_views(seen, calibration.views, teacher.device)
    method, tried = calibrate(student, teacher.model, seen_views, held_out, calibration, step("ranges", len(layers)))
    training_views = make_views(seen, training.views, teacher.device)
    outcome = train(student, teacher.model, training_views, held_out, training, step("training", training.updates))
    return Quantized(freeze(student, teacher, scheme), method, tried, outcome)
