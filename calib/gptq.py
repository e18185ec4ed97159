"""GPTQ (Frantar et al., ICLR 2023): weights are rounded so that a layer's outputs err least, not its weights."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from calib.layers import quantized_layers
from calib.parallel import ALONE, Workers, part_of
from calib.scheme import integer_range
from calib.views import Views
from inversion.errors import InputError
from inversion.plainvit import Module, PlainViT
from inversion.progress import Progress, quiet

DAMPING = 0.1
"""Share of the Hessian's mean diagonal that is added to the diagonal (section 4, step 3). The paper takes 1%, of real
inputs; synthetic ones deserve less trust: at 1% DeiT-Tiny came no closer to its teacher than by rounding to nearest."""
CELL = 0.49
"""How far from its integer a weight may stay, in steps: a little less than half, so that it rounds to it again."""
STRIP = 384
"""Columns of a Hessian that are summed together: what lies above them is known by symmetry."""
BLOCK = 128
"""Columns whose errors reach the columns behind them in one matrix product."""


def block_linears(model: PlainViT) -> dict[str, Any]:
    """The attention and MLP linears by timm name, in the order in which they run."""
    return {name: layer for name, layer in quantized_layers(model).items() if name.startswith("blocks.")}


@torch.no_grad()
def round_model(
    model: PlainViT,
    views: Views,
    scales: Mapping[str, Tensor],
    bits: Mapping[str, int],
    damping: float = DAMPING,
    progress: Progress = quiet,
    saliency: Sequence[Mapping[str, Tensor]] | None = None,
    workers: Workers = ALONE,
) -> dict[str, Tensor]:
    """Change those `block_linears` of `model` that `bits` names so that rounding them to nearest is GPTQ's rounding;
    returns their integers [out, in] (int8) by name.

    `scales` gives each of them a positive [out]: a weight quantizer of that scale makes integers * scale of its weight,
    which moves no further than into the integer's cell. So training that starts there need not climb out of the
    middle of every cell before it changes an integer. `model` must quantize these weights, by those scales.

    A layer's inputs are what `views` bring it behind all layers that were rounded before; where `model` quantizes its
    inputs, they are those before that. `progress` counts layers.

    `saliency` (`calib.saliency`, a table a batch of what this worker sees) says how much each token [B, T, G] counts
    for each of G groups of a layer's outputs; without it all count alike. Several `workers` add up what their shares of
    the views bring, and each rounds by the sums.

    Raises `InputError` for inputs that are not finite.
    """
    tokens = _first_tokens(model, part_of(views, workers))
    integers: dict[str, Tensor] = {}
    for number, block in enumerate(model.blocks):
        for part, layer in quantized_layers(block).items():
            name = f"blocks.{number}.{part}"
            if name not in bits:
                continue
            counts = [batch[name] for batch in saliency] if saliency else None
            hessians = layer_hessians(layer, block, tokens, counts, workers)
            if not bool(torch.isfinite(hessians).all()):
                raise InputError(f"the inputs of {name} are not finite numbers: the teacher or the images are broken.")
            low, high = integer_range(bits[name])
            weights, steps = (part.tensor_split(len(hessians)) for part in (layer.weight, scales[name]))
            rounded = [
                gptq_round(weight, step, hessian, low, high, damping)
                for weight, step, hessian in zip(weights, steps, hessians, strict=True)
            ]
            integers[name], latent = (torch.cat(part) for part in zip(*rounded, strict=True))
            layer.weight.copy_(latent)
            progress("rounding", len(integers), len(bits), math.nan)
        tokens = [block(batch) for batch in tokens]
    return integers


def layer_hessians(
    layer: nn.Linear,
    block: Module,
    tokens: Sequence[Tensor],
    saliency: Sequence[Tensor] | None = None,
    workers: Workers = ALONE,
) -> Tensor:
    """Sums of x x^T [G, in, in] (float64) over the inputs x that `layer` gets when `block` runs on `tokens` [B, T, D],
    for each group of outputs times what the token counts there, `saliency` [B, T, G]; without it one sum. Added up over
    all `workers`."""
    size = layer.in_features
    counts = saliency or [batch.new_ones(*batch.shape[:2], 1) for batch in tokens]
    total = torch.zeros(counts[0].shape[-1], size, size, dtype=torch.float64, device=layer.weight.device)
    ahead = iter(counts)

    def add(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        x = inputs[0].reshape(-1, size).float()
        for group, count in enumerate(next(ahead).reshape(len(x), -1).unbind(-1)):
            weighed = x.T * count
            for start in range(0, size, STRIP):
                total[group, start:, start : start + STRIP] += weighed[start:] @ x[:, start : start + STRIP]
        raise _SeenEnough

    for batch in tokens:
        with suppress(_SeenEnough):  # what the block does behind the layer is not needed
            _run_hooked(layer, add, partial(block, batch))
    total = workers.total(total)
    return total.tril() + total.tril(-1).mT


def gptq_round(
    weight: Tensor, scale: Tensor, hessian: Tensor, low: int, high: int, damping: float = DAMPING
) -> tuple[Tensor, Tensor]:
    """Integers [out, in] (int8) in low..high such that `integers * scale` answers the layer's inputs as `weight` does,
    and latent weights [out, in] that round to them.

    - `weight`  [out, in]
    - `scale`   [out], positive
    - `hessian` [in, in], the sum of x x^T over inputs x, times any constant

    Algorithm 1 of the paper, in float64: column after column is rounded, and its error made good by the columns not
    yet rounded. A column whose input is always 0 is rounded to nearest, and so is a row whose squared output error
    (w - wq) H (w - wq)^T would otherwise exceed that of rounding to nearest: clipping can do that. A latent weight is
    what was rounded, the error of earlier columns in it, clipped to `CELL` around its integer.

    Columns keep their order. By falling diagonal (act-order), at 1% damping, DeiT-Tiny came closer with real images
    to its teacher, and further from it with synthetic ones, whose Hessian deserves less trust.
    """
    if not -128 <= low < high <= 127:
        raise InputError(f"integers from {low} to {high} do not fit 8 bits: take 2 to 8 bits.")
    # one row a column, so that a column lies in one piece of memory: [in, out]
    columns, scale, hessian = weight.double().T.contiguous(), scale.double(), hessian.double()
    nearest = (columns / scale).round().clamp(low, high)
    shifted, rounded = _round_columns(columns.clone(), scale, _inverse_factor(hessian, damping), low, high)
    worse = _output_error(columns - rounded * scale, hessian) > _output_error(columns - nearest * scale, hessian)
    rounded, shifted = torch.where(worse, nearest, rounded), torch.where(worse, columns, shifted)
    latent = (shifted / scale).clamp(rounded - CELL, rounded + CELL) * scale
    return rounded.T.contiguous().to(torch.int8), latent.T.contiguous().to(weight.dtype)


def _round_columns(columns: Tensor, scale: Tensor, factor: Tensor, low: int, high: int) -> tuple[Tensor, Tensor]:
    """`columns` [in, out], overwritten by what was rounded, and the integers; `factor` [in, in] is upper triangular."""
    rounded = torch.empty_like(columns)
    for start in range(0, len(columns), BLOCK):
        end = min(start + BLOCK, len(columns))
        errors = torch.empty_like(columns[start:end])
        for column in range(start, end):
            rounded[column] = (columns[column] / scale).round_().clamp_(low, high)
            error = (columns[column] - rounded[column] * scale) / factor[column, column]
            columns[column + 1 : end] -= factor[column, column + 1 : end].unsqueeze(1) * error
            errors[column - start] = error
        columns[end:] -= factor[start:end, end:].T @ errors
    return columns, rounded


def _inverse_factor(hessian: Tensor, damping: float) -> Tensor:
    """Upper triangular U with U^T U the inverse of the damped `hessian`: step 3 of section 4."""
    diagonal = hessian.diagonal()
    # an input that is always 0 pairs with no other: any positive number keeps its column to itself
    damped = hessian + torch.diag(torch.where(diagonal > 0, damping * diagonal.mean(), 1.0))
    # H = R R^T with R upper triangular makes U the inverse of R
    root = torch.linalg.cholesky(damped.flip(0, 1)).flip(0, 1)
    return torch.linalg.solve_triangular(root, torch.eye(len(root)).to(root), upper=True)


def _output_error(difference: Tensor, hessian: Tensor) -> Tensor:
    """d^T H d of each column d of `difference` [in, out]: [out]."""
    return (hessian @ difference * difference).sum(0)


class _SeenEnough(Exception):
    """Ends a forward pass that has shown what it was run for."""


def _first_tokens(model: PlainViT, views: Views) -> list[Tensor]:
    """What the first block gets, batch by batch [B, T, D]."""
    tokens: list[Tensor] = []
    _run_hooked(model.blocks[0], lambda _, inputs: tokens.append(inputs[0]), lambda: views.logits(model))
    return tokens


def _run_hooked(module: Module, see: Callable[[nn.Module, tuple[Any, ...]], None], run: Callable[[], Any]) -> None:
    """`run()` while `see` gets the inputs of `module`."""
    hook = module.register_forward_pre_hook(see)
    try:
        run()
    finally:
        hook.remove()
