"""Teacher and synthetic images in, quantized weights out."""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.metadata
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from calib.basis import Rotations, centre, fold, rotate
from calib.fidelity import Fidelity
from calib.freeze import freeze
from calib.gptq import block_linears, round_model
from calib.layers import quantized_layers
from calib.parallel import ALONE, Workers, agree
from calib.qat import Outcome, train
from calib.ranges import calibrate, insert_quantizers, some_ranges
from calib.rotation import learn_rotations, rounding_error
from calib.saliency import token_saliency
from calib.scheme import QuantScheme, integer_range
from calib.settings import JUDGES, Basis, Calibration, Rounding, Training
from calib.training_checkpoint import Checkpoint
from calib.views import Views, dense_views, make_views, split_held_out
from calib.weights import QuantizedWeights
from inversion.images import SparseImages
from inversion.leaves import dead_leaves
from inversion.machine import choose_precision
from inversion.plainvit import PlainViT
from inversion.progress import Progress, quiet
from inversion.teacher import Teacher

CARRIED = "basis/"
"""Before the names of rotations in a checkpoint."""


@dataclass(frozen=True)
class Rebased:
    """In which basis the weights were rounded: `left_out` are sentences on what of it this teacher does not allow, the
    errors those of rounding all weights to nearest, as they came and in the basis (`calib.rotation.rounding_error`)."""

    method: str
    left_out: tuple[str, ...]
    error_before: float
    error: float


@dataclass(frozen=True)
class Quantized:
    """The result, with how it came about: basis and range method taken, fidelity of each tried, outcome of training."""

    weights: QuantizedWeights
    basis: Rebased
    method: str
    tried: dict[str, Fidelity]
    training: Outcome

    def save(self, path: Path | str) -> None:
        """Write the weights to `path`, as `QuantizedWeights.load` reads them."""
        self.weights.save(path)


BASIS, CALIBRATION, ROUNDING, TRAINING = Basis(), Calibration(), Rounding(), Training()


def quantize(
    teacher: Teacher,
    images: SparseImages,
    scheme: QuantScheme | str,
    basis: Basis = BASIS,
    calibration: Calibration = CALIBRATION,
    rounding: Rounding = ROUNDING,
    training: Training = TRAINING,
    progress: Progress = quiet,
    checkpoint: Path | None = None,
    workers: Workers = ALONE,
) -> Quantized:
    """Change the basis, set ranges, round weights, then learn steps and weights, from `images` and dead leaves alone.

    `scheme` may be written "w4a8". The defaults are those of effort quick: nothing is trained.

        quantized = quantize(teacher, images, "w4a8")
        quantized.save("quantized.safetensors")

    `progress` is told of basis, ranges, saliency, rounding and training, with the error or KL where there is one.
    Interrupted in training, the same call with the same `checkpoint` goes on from what the file there holds, and ends
    with the same bytes; whoever has published the result removes it.

    Several `workers` (`calib.parallel`), in a process each, call it alike and share the images; all get the same
    result, which is that of one within rounding. Worker 0 alone saves a `checkpoint`; each reads its own copy of it.
    """
    scheme = QuantScheme.parse(scheme) if isinstance(scheme, str) else scheme
    show, held_out = material(teacher, images, calibration)
    identity = _identity(teacher, images, scheme, workers.size, basis, calibration, rounding, training)
    kept = Checkpoint(checkpoint, identity) if checkpoint else None
    if kept and kept.saved:
        tensors, notes = kept.saved[0], kept.saved[1]["notes"]
        model, about, rotations = change_basis(teacher.model, scheme, basis, known=_carried(tensors))
        student = insert_quantizers(model, scheme)
        some_ranges(student)  # training restores its own
        method, tried = notes["method"], {name: Fidelity(**value) for name, value in notes["tried"].items()}
    else:
        model, about, rotations = change_basis(teacher.model, scheme, basis, progress)
        student = quantizable(model, scheme, show(calibration.views), workers)
        method, tried = set_ranges(student, model, show(calibration.views), held_out, calibration, progress, workers)
        round_weights(student, model, scheme, show(rounding.views), rounding, calibration.seed, progress, workers)
        agree(student, workers)
    if kept:
        notes = {"method": method, "tried": {name: dataclasses.asdict(value) for name, value in tried.items()}}
        kept.carry({f"{CARRIED}{name}": value for name, value in rotations.tensors().items()}, notes)
    outcome = train(student, model, show(training.views), held_out, training, progress, kept, workers)
    return Quantized(freeze(student, teacher, scheme), about, method, tried, outcome)


def change_basis(
    model: PlainViT,
    scheme: QuantScheme,
    basis: Basis,
    progress: Progress = quiet,
    known: Rotations | None = None,
) -> tuple[PlainViT, Rebased, Rotations]:
    """A copy of `model` in the basis that `basis` asks for, what is to be said of it, and its rotations: those `known`
    from an earlier process, or found here."""
    bits = {name: scheme.layer(name).weight for name in quantized_layers(model)}
    before = rounding_error(model, bits)
    if basis.method == "none":
        return model, Rebased(basis.method, (), before, before), Rotations()
    folded, left_out = fold(model)
    updates = basis.updates if basis.method == "learned" else 0
    rotations = known or learn_rotations(folded, bits, updates, basis.seed, progress)
    rotated = rotate(folded, rotations)
    return rotated, Rebased(basis.method, left_out, before, rounding_error(rotated, bits)), rotations


def quantizable(model: PlainViT, scheme: QuantScheme, views: Views, workers: Workers = ALONE) -> PlainViT:
    """A copy of `model` with quantizers; below 8 bits of activations, its norms' outputs are centred on `views`: of so
    few steps, none should be spent on a constant."""
    return insert_quantizers(centre(model, views, workers) if scheme.activation_bits < 8 else model, scheme)


def set_ranges(
    student: PlainViT,
    model: PlainViT,
    views: Views,
    held_out: Views,
    calibration: Calibration,
    progress: Progress = quiet,
    workers: Workers = ALONE,
) -> tuple[str, dict[str, Fidelity]]:
    """The ranges of all activations of `student`, a quantized copy of `model`, weights being float meanwhile."""
    with float_weights(student):
        return calibrate(student, model, views, held_out, calibration, progress, workers)


def _identity(teacher: Teacher, images: SparseImages, scheme: QuantScheme, workers: int, *settings: Any) -> str:
    """A hash of all that the result depends on."""
    about: list[object] = [teacher.sha256, images.sha256(), [dataclasses.asdict(part) for part in (scheme, *settings)]]
    about += [importlib.metadata.version(package) for package in ("torch", "timm", "nvidia-modelopt")]
    about.append(
        str(choose_precision(settings[-1].precision, teacher.device))
    )  # of training: auto may differ elsewhere
    about += [workers] if workers > 1 else []
    return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()


def _carried(tensors: dict[str, Tensor]) -> Rotations:
    """The rotations that a checkpoint holds."""
    found = {name.removeprefix(CARRIED): value for name, value in tensors.items() if name.startswith(CARRIED)}
    return Rotations.from_tensors(found)


def material(teacher: Teacher, images: SparseImages, calibration: Calibration) -> tuple[Callable[[str], Views], Views]:
    """What may be learned from, as a function from a kind of views to them, and the views that only judge: dead leaves
    of other numbers, whose KL follows that of real pictures best (docs/decisions/0016), or without leaves the mosaics
    that were held out."""
    seen, unseen = split_held_out(images, calibration.held_out)
    leaves = dead_leaves(teacher.spec, calibration.leaves, calibration.seed)
    show = partial(make_views, seen, device=teacher.device, leaves=leaves)
    if not calibration.leaves:
        return show, make_views(unseen, "mosaic", teacher.device)
    judges = dead_leaves(teacher.spec, JUDGES, calibration.seed, first=calibration.leaves)
    return show, dense_views(judges.to(teacher.device), teacher.patch_size)


def round_weights(
    student: PlainViT,
    model: PlainViT,
    scheme: QuantScheme,
    views: Views,
    rounding: Rounding,
    seed: int = 0,
    progress: Progress = quiet,
    workers: Workers = ALONE,
) -> None:
    """GPTQ, where `rounding` asks for it, for each attention and MLP weight below 8 bits of `student`, a quantized copy
    of `model`; `seed` is that of the tokens' saliency."""
    if rounding.method != "gptq":
        return
    layers = block_linears(student)
    bits = {name: scheme.layer(name).weight for name in layers if scheme.layer(name).weight < 8}
    scales = {name: layers[name].weight_quantizer.amax.flatten() / integer_range(bits[name])[1] for name in bits}
    saliency = None
    if rounding.saliency and bits:
        outputs = {name: model.get_submodule(name) for name in bits}
        saliency = token_saliency(model, views, outputs, seed, progress, workers)
    round_model(student, views, scales, bits, rounding.damping, progress, saliency, workers)


@contextmanager
def float_weights(student: PlainViT) -> Iterator[None]:
    """Weight quantizers pause, so that nothing but activations tells the ranges apart."""
    quantizers = [layer.weight_quantizer for layer in quantized_layers(student).values()]
    for quantizer in quantizers:
        quantizer.disable_quant()
    yield
    for quantizer in quantizers:
        quantizer.enable_quant()
