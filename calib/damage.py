"""What each layer's bits cost, one quantizer at a time, and the fewest bits that stay within a limit.

ModelOpt 0.47's `mtq.auto_quantize` does not serve: its only constraint is a budget of effective bits, never a loss of
accuracy, and it ranks formats with ranges of its own calibration rather than with those that `calib.ranges` finds.

All weights are rounded to the nearest integer: what is measured is the start, before GPTQ and training.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from calib.fidelity import Fidelity, fidelity
from calib.layers import quantized_layers
from calib.quantization import change_basis, material, quantizable, set_ranges
from calib.ranges import input_quantizers, insert_quantizers
from calib.scheme import FLOAT_BITS, LayerBits, QuantScheme
from calib.settings import JUDGES, Basis, Calibration
from calib.views import Views, dense_views
from inversion.images import SparseImages
from inversion.leaves import dead_leaves
from inversion.plainvit import PlainViT
from inversion.progress import Progress, quiet
from inversion.teacher import Teacher

RAISED_BITS = 8
RANGE_IMAGES = 24


@dataclass(frozen=True)
class LayerDamage:
    """KL(teacher || model) in nats where nothing but this layer's weight, or its input, is quantized.

    `parameters` counts the weight's; `input_kl` is None where the input stays float.
    """

    name: str
    bits: LayerBits
    parameters: int
    weight_kl: float
    input_kl: float | None

    @property
    def kl_per_bit(self) -> float:
        """Weight KL that each bit added to reach 8 buys back, at most; none is to be added at 8 bits."""
        added = self.parameters * (RAISED_BITS - self.bits.weight)
        return self.weight_kl / added if added else 0.0


@dataclass(frozen=True)
class Mixed:
    """The scheme found, the layers whose weights it raises, and what the whole model gives with it.

    `met`: the estimated drop is within the limit; where not, every weight has 8 bits and more cannot be done.
    """

    scheme: QuantScheme
    raised: tuple[str, ...]
    fidelity: Fidelity
    met: bool


def estimated_drop(found: Fidelity) -> float:
    """Points of top-1 that are lost if every answer that differs from the teacher's was right before."""
    return round(100 * (1 - found.agreement), 6)  # 1 - 0.99 is above 0.01 in float64


def raised_scheme(scheme: QuantScheme, names: Collection[str]) -> QuantScheme:
    """`scheme` with 8-bit weights in the layers `names`; their inputs keep their bits."""
    kept = tuple((pattern, bits) for pattern, bits in scheme.layers if pattern not in names)
    return replace(
        scheme, layers=(*kept, *((name, LayerBits(RAISED_BITS, scheme.layer(name).activation)) for name in names))
    )


def judging_material(
    teacher: Teacher, images: SparseImages, pictures: int, settings: Calibration
) -> tuple[Views, Views, Views]:
    """(what sets ranges, what judges a layer, what judges a whole model), the last at least `pictures` long.

    A layer is judged by the dead leaves that judge in `calib.quantization`; a whole model by these and
    as many leaves more as are wanting. None of them sets ranges.
    """
    show, held_out = material(teacher, images, settings)
    used = settings.leaves + JUDGES
    more = dead_leaves(teacher.spec, max(0, pictures - len(held_out)), settings.seed, first=used)
    extra = dense_views(more.to(teacher.device), images.patch_size).groups if len(more) else ()
    return show(settings.views).first(RANGE_IMAGES), held_out, Views((*held_out.groups, *extra))


class Probe:
    """A quantized copy of the teacher whose quantizers can be enabled alone, and whose weights can be raised to 8 bits.

    It stands in the basis that a build would take: what a layer's bits cost depends on that.
    Activation ranges are set once, with float weights: they hold for every mixture of weight bits.
    """

    def __init__(
        self,
        teacher: Teacher,
        scheme: QuantScheme,
        images: Views,
        judge: Views,
        basis: Basis,
        calibration: Calibration,
        progress: Progress = quiet,
    ) -> None:
        """Raises `InputError` where `scheme` asks for what the teacher does not have."""
        self.teacher, self.scheme = teacher.model, scheme
        model, *_ = change_basis(teacher.model, scheme, basis, progress)
        self.student = quantizable(model, scheme, images)
        self.inputs = input_quantizers(self.student)
        set_ranges(self.student, model, images, judge, calibration, progress)
        self.layers = quantized_layers(self.student)
        self._raised = _weight_ranges(insert_quantizers(model, raised_scheme(scheme, self.layers)))
        self._given = _weight_ranges(self.student)

    def damage(self, judge: Views, progress: Progress = quiet) -> tuple[LayerDamage, ...]:
        """Every layer by itself on `judge`, in the model's order; `progress` counts quantizers."""
        teacher_logits, found, done = judge.logits(self.teacher), [], 0
        weights = {name: layer.weight_quantizer for name, layer in self.layers.items()}
        everything = [*self.inputs.values(), *weights.values()]
        total = len(self.layers) + sum(name in self.layers for name in self.inputs)

        def alone(quantizer: Any) -> float:
            nonlocal done
            quantizer.enable_quant()
            kl = fidelity(self.student, judge, teacher_logits).kl
            quantizer.disable_quant()
            done += 1
            progress("layers", done, total, kl)
            return kl

        for quantizer in everything:
            quantizer.disable_quant()
        for name, layer in self.layers.items():
            bits, parameters = self.scheme.layer(name), layer.weight.numel()
            input_kl = alone(self.inputs[name]) if bits.activation < FLOAT_BITS else None
            found.append(LayerDamage(name, bits, parameters, alone(weights[name]), input_kl))
        for quantizer in everything:
            quantizer.enable_quant()
        return tuple(found)

    def model(self, raised: Collection[str]) -> PlainViT:
        """The whole model, with the weights of the layers `raised` at 8 bits; the next call changes it."""
        for name, layer in self.layers.items():
            bits, ranges = self.scheme.layer(name).weight, self._given
            if name in raised:
                bits, ranges = RAISED_BITS, self._raised
            layer.weight_quantizer.num_bits = bits
            layer.weight_quantizer.amax = ranges[name]
        return self.student


def mixed_scheme(
    probe: Probe, damages: Collection[LayerDamage], judge: Views, max_drop: float, progress: Progress = quiet
) -> tuple[Fidelity, Mixed]:
    """What `probe.scheme` gives as it is, and the mixture with the fewest raised layers within `max_drop` points.

    Weights are raised in the order of the KL that an added bit buys back, most first. How many of that order are
    needed is found by bisection, the whole model measured each time, so that it is the fewest where every raised
    layer helps. `progress` counts measurements.
    """
    order = [layer.name for layer in sorted(damages, key=lambda layer: -layer.kl_per_bit)]
    order = [name for name in order if probe.scheme.layer(name).weight < RAISED_BITS]
    teacher_logits, measured = judge.logits(probe.teacher), {}

    def fits(count: int) -> bool:
        if count not in measured:
            measured[count] = fidelity(probe.model(order[:count]), judge, teacher_logits)
            progress("mixed scheme", len(measured), most_measurements(len(order)), measured[count].kl)
        return estimated_drop(measured[count]) <= max_drop

    count = fewest(len(order), fits)
    raised = tuple(order if count is None else order[:count])
    found = measured[len(raised)]
    return measured[0], Mixed(raised_scheme(probe.scheme, raised), raised, found, count is not None)


def fewest(total: int, fits: Callable[[int], bool]) -> int | None:
    """Some count in 0..`total` that fits where the one below does not, found by bisection; 0 if that fits.

    None where `total` does not fit.
    """
    if fits(0):
        return 0
    if not fits(total):
        return None
    below, enough = 0, total
    while enough - below > 1:
        middle = (below + enough) // 2
        below, enough = (below, middle) if fits(middle) else (middle, enough)
    return enough


def most_measurements(total: int) -> int:
    """How often `fewest` asks at most."""
    return 2 + math.ceil(math.log2(total)) if total else 1


def mean_weight_bits(scheme: QuantScheme, damages: Collection[LayerDamage]) -> float:
    """Bits of a weight under `scheme`, averaged over all parameters of the layers."""
    total = sum(layer.parameters for layer in damages)
    return sum(layer.parameters * scheme.layer(layer.name).weight for layer in damages) / total


def _weight_ranges(model: PlainViT) -> dict[str, Tensor]:
    return {name: layer.weight_quantizer.amax.clone() for name, layer in quantized_layers(model).items()}
