"""ModelOpt's quantizers in a copy of the teacher, and the ranges that synthetic images give them."""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from io import StringIO
from typing import Any

import modelopt.torch.quantization as mtq
import torch
from modelopt.torch.quantization.calib import HistogramCalibrator
from modelopt.torch.quantization.config import QuantizerAttributeConfig
from modelopt.torch.quantization.extensions import get_cuda_ext
from modelopt.torch.quantization.nn import TensorQuantizer
from torch import Generator, Tensor

from calib.attention import QuantAttention, attention_layers, attention_quantizers
from calib.fidelity import Fidelity, fidelity
from calib.fisher import answer_gradients, images_of
from calib.histograms import collect
from calib.layers import layer_bits, quantized_layers
from calib.parallel import ALONE, Workers, agreed_fidelity, part_of
from calib.quantizer import RangeQuantizer, bounds_of
from calib.scheme import ATTENTION_BITS, FLOAT_BITS, QuantScheme, integer_range
from calib.settings import AUTO, FISHER, RANGE_METHODS, SEARCH_IMAGES, Calibration, tried_shares
from calib.views import Views
from inversion.errors import InputError
from inversion.plainvit import PlainViT
from inversion.progress import Progress, quiet

Quantizers = dict[str, TensorQuantizer]

PERCENTILE = 99.99
SMALLEST_RANGE = 1e-30
"""Inputs that are all but 0 would get a step below float32's normal numbers, and be divided by 0."""


def insert_quantizers(model: PlainViT, scheme: QuantScheme) -> PlainViT:
    """A copy of `model` with ModelOpt quantizers on the inputs and weights of all linears and, where `scheme` asks
    for it, on the inputs of attention's products.

    Weight ranges are set per output channel to what minimises the weight's squared error (ModelOpt's `mse`);
    input quantizers have no range yet and are switched off.

    Raises `InputError` where `scheme` names layers that `model` does not have, or its attention has no INT8 form.
    """
    names = list(quantized_layers(model))
    scheme.check(names)
    config: list[dict[str, Any]] = [{"quantizer_name": "*", "enable": False}]
    layers = layer_bits(model, scheme)
    for name, bits in layers.items():
        config.append({"quantizer_name": f"{name}.weight_quantizer", "cfg": {"num_bits": bits.weight, "axis": 0}})
        if bits.activation < FLOAT_BITS:
            cfg = {"num_bits": bits.activation, "axis": None}
            config.append({"quantizer_name": f"{name}.input_quantizer", "cfg": cfg})
    clip = {"method": "mse", "start_multiplier": 0.3, "stop_multiplier": 1.0, "step_size": 0.02}
    # on CUDA, ModelOpt 0.47 would compile kernels of its own, for minutes; without, it computes as on a CPU
    get_cuda_ext.extension = None
    with _quiet():
        quantized = mtq.quantize(copy.deepcopy(model), {"quant_cfg": config, "algorithm": clip})
    for name, bits in layers.items():
        if bits.one_sided:
            RangeQuantizer.take_over(quantized.get_submodule(name).input_quantizer, bits.input_range)
    if scheme.attention == "int8":
        per_tensor = QuantizerAttributeConfig(num_bits=ATTENTION_BITS, axis=None)
        for attention in attention_layers(quantized).values():
            QuantAttention.take_over(attention, lambda _: TensorQuantizer(per_tensor))
    for quantizer in input_quantizers(quantized).values():
        quantizer.disable_quant()
    return quantized


def input_quantizers(model: PlainViT) -> dict[str, TensorQuantizer]:
    """The activation quantizers that the scheme asks for: those of inputs by the layer's name, those of attention's
    products as `blocks.0.attn.q`."""
    named = {name: getattr(module, "input_quantizer", None) for name, module in model.named_modules()}
    named |= attention_quantizers(model)
    return {name: quantizer for name, quantizer in named.items() if quantizer is not None and quantizer.is_enabled}


def some_ranges(model: PlainViT) -> None:
    """Give every activation quantizer a range of 1, in a model whose ranges are to be loaded."""
    for quantizer in input_quantizers(model).values():
        quantizer.amax = torch.tensor(1.0, device=model.pos_embed.device)
        quantizer.enable_quant()


def calibrate(
    model: PlainViT,
    teacher: PlainViT,
    images: Views,
    held_out: Views,
    settings: Calibration,
    progress: Progress = quiet,
    workers: Workers = ALONE,
) -> tuple[str, dict[str, Fidelity]]:
    """Set every activation range of `model` from `images`; returns the method taken and what each one tried gave.

    `auto` takes the method with the least KL to the teacher on the held-out synthetic images. `progress` counts
    the images that `fisher` has seen. Several `workers` share the images, and all set the same ranges.
    """
    quantizers, teacher_logits = input_quantizers(model), held_out.logits(teacher)
    methods = RANGE_METHODS if settings.method == AUTO else (settings.method,)
    if methods != (FISHER,):
        with _collecting(quantizers):
            collect(model, [quantizer._calibrator for quantizer in quantizers.values()], images, workers)
    tried: dict[str, Fidelity] = {}
    found: dict[str, dict[str, Tensor]] = {}
    for method in methods:
        if method == FISHER:
            fisher_ranges(model, images.first(SEARCH_IMAGES), settings.seed, progress, workers)
        else:
            for quantizer in quantizers.values():
                _set_range(quantizer, method, model.pos_embed.device)
        tried[method] = agreed_fidelity(fidelity(model, held_out, teacher_logits), workers)
        found[method] = {name: quantizer.amax.clone() for name, quantizer in quantizers.items()}
    best = min(tried, key=lambda name: tried[name])
    for name, quantizer in quantizers.items():
        quantizer.amax = found[best][name]
    return best, tried


def fisher_ranges(
    model: PlainViT, images: Views, seed: int = 0, progress: Progress = quiet, workers: Workers = ALONE
) -> None:
    """For each activation quantizer by itself, the share of its widest range that moves the answers least; `model` is
    float but for its quantizers, which are off meanwhile.

    To second order the KL to the float model is half the mean of (g . e)^2, of a quantizer's error e and the gradient g
    of the log likelihood of drawn answers (`calib.fisher`). Errors of rounding add up by chance, so that their share in
    it is told best by the sum of (g e)^2; those of clipping add up: both are counted. One forward and backward pass
    serves all quantizers; several `workers` share the images.
    """
    quantizers = input_quantizers(model)
    for quantizer in quantizers.values():
        quantizer.disable_quant()
    own = part_of(images, workers)
    widest = _largest_inputs(model, quantizers, own)
    if workers.size > 1:
        widest = {name: workers.largest(value.clone()) for name, value in widest.items()}
    errors = {name: torch.zeros(len(_shares(bounds_of(quantizer))), dtype=torch.float64, device=model.pos_embed.device)
              for name, quantizer in quantizers.items()}  # fmt: skip
    views, done = images if quantizers else Views(()), 0
    for seen in answer_gradients(model, views, quantizers, "inputs", Generator().manual_seed(seed), workers):
        for name, (inputs, gradients) in seen.items():
            errors[name] += _answer_errors(inputs, gradients, widest[name], bounds_of(quantizers[name]))
        done += images_of(seen)
        progress("ranges", done, len(own), math.nan)
    for name, quantizer in quantizers.items():
        least = int(workers.total(errors[name]).argmin())
        quantizer.amax = widest[name] * _shares(bounds_of(quantizer))[least]
        quantizer.enable_quant()


def _shares(bounds: tuple[int, int]) -> list[float]:
    return tried_shares(bounds == integer_range(8))


def _answer_errors(inputs: Tensor, gradients: Tensor, widest: Tensor, bounds: tuple[int, int]) -> Tensor:
    """For each share, what rounding `inputs` [B, ...] changes by `gradients` [draws, B, ...]: [shares] (float64)."""
    low, high = bounds
    flat, slopes = inputs.flatten(1), gradients.flatten(2)
    squared, found = slopes.square().sum(0), []
    for share in _shares(bounds):
        step = widest * share / high
        error = (flat / step).round_().clamp_(low, high).mul_(step).sub_(flat)
        together = (slopes * error).sum(-1).double().square().sum()
        found.append((squared * error.square()).sum().double() + together)
    return torch.stack(found)


@torch.inference_mode()
def _largest_inputs(model: PlainViT, quantizers: Quantizers, images: Views) -> dict[str, Tensor]:
    """The largest absolute value that each quantizer is given."""
    largest = {name: torch.tensor(SMALLEST_RANGE, device=model.pos_embed.device) for name in quantizers}

    def see(name: str, inputs: Tensor) -> None:
        found = inputs.abs().max()
        if not bool(torch.isfinite(found)):
            raise InputError(f"the inputs of {name} are not finite numbers: the teacher or the images are broken.")
        largest[name] = torch.maximum(largest[name], found)

    hooks = [
        quantizer.register_forward_pre_hook(lambda _, inputs, name=name: see(name, inputs[0]))
        for name, quantizer in quantizers.items()
    ]
    try:
        images.logits(model)
    finally:
        for hook in hooks:
            hook.remove()
    return largest


class _Histogram(HistogramCalibrator):
    """ModelOpt's histogram of a layer's inputs, which by itself cannot start from zeros or tell what is not finite."""

    def __init__(self, name: str, bits: int) -> None:
        super().__init__(bits)
        self.name = name

    def collect(self, x: Tensor) -> None:
        if not bool(torch.isfinite(x).all()):
            raise InputError(f"the inputs of {self.name} are not finite numbers: the teacher or the images are broken.")
        if bool(x.any()):
            super().collect(x)


@contextmanager
def _collecting(quantizers: dict[str, TensorQuantizer]) -> Iterator[None]:
    for name, quantizer in quantizers.items():
        quantizer._calibrator = _Histogram(name, quantizer.num_bits)
        quantizer.disable_quant()
        quantizer.enable_calib()
    yield
    for quantizer in quantizers.values():
        quantizer.disable_calib()
        quantizer.enable_quant()


def _set_range(quantizer: TensorQuantizer, method: str, device: torch.device) -> None:
    calibrator = quantizer._calibrator
    counts, edges = calibrator._calib_hist, calibrator._calib_bin_edges
    if counts is None:
        amax = torch.tensor(1.0)  # a layer whose input is always 0 needs some step, and any will do
    elif method == "max":
        amax = edges[-1]
    elif method == "percentile":
        amax = calibrator.compute_amax("percentile", percentile=PERCENTILE)
    else:
        amax = _least_squares(counts.cpu(), edges.cpu(), quantizer.num_bits)  # ModelOpt 0.47 makes edges on the CPU
    quantizer.amax = torch.as_tensor(amax, dtype=torch.float32, device=device).clamp(min=SMALLEST_RANGE)


def _least_squares(counts: Tensor, edges: Tensor, bits: int) -> Tensor:
    """The range whose rounding and clipping of a histogram of absolute values err least in squares.

    ModelOpt 0.47 hands its own search the bits as a bias, so that it always ends at its smallest candidate.
    """
    _, high = integer_range(bits)
    centers = (edges[1:] + edges[:-1]) / 2
    candidates = edges[-1] * torch.linspace(1, 0.02, 99)
    errors = [
        ((centers * high / amax).round().clamp(max=high) * amax / high - centers).square() @ counts
        for amax in candidates
    ]
    return candidates[torch.stack(errors).argmin()]


@contextmanager
def _quiet() -> Iterator[None]:
    """ModelOpt prints what it inserted, and warns of extensions that only its other formats use."""
    with warnings.catch_warnings(), redirect_stdout(StringIO()), redirect_stderr(StringIO()):
        warnings.simplefilter("ignore")
        yield
