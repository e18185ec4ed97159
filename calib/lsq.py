"""Learned step sizes (LSQ, Esser et al., ICLR 2020) on ModelOpt's integer quantizers."""

from __future__ import annotations

import math
from typing import Any

import torch
from modelopt.torch.quantization.nn import TensorQuantizer
from torch import Tensor, nn

from calib.attention import attention_quantizers
from calib.layers import quantized_layers
from calib.quantizer import bounds_of
from inversion.plainvit import PlainViT

SMALLEST_STEP = 1e-8


class LSQFunction(torch.autograd.Function):
    """`clamp(round(x / s), Qn, Qp) * s`, Eqs. 1-3 of the paper; `s` broadcasts against `x`.

    Gradient to `x`: 1 inside the clip range, 0 outside. Gradient to `s`, per element, before it is scaled by
    `grad_scale` and summed over the elements that share the step: Qn where x/s <= Qn, Qp where x/s >= Qp, and
    `round(x/s) - x/s` between.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, step: Tensor, low: int, high: int, grad_scale: float) -> Tensor:
        ratio = x / step
        ctx.save_for_backward(ratio, step)
        ctx.bounds, ctx.grad_scale = (low, high), grad_scale
        return ratio.clamp(low, high).round_().mul_(step)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None, None, None]:
        (grad,) = grads
        ratio, step = ctx.saved_tensors
        low, high = ctx.bounds
        inside = (ratio > low) & (ratio < high)
        grad_x = grad * inside
        per_element = ratio.clamp(low, high).round_().sub_(ratio * inside).mul_(grad)
        return grad_x, per_element.sum_to_size(step.shape).mul_(ctx.grad_scale), None, None, None


class LSQQuantizer(TensorQuantizer):
    """A ModelOpt integer quantizer whose range is a parameter: `step` = amax / Qp, [out, 1, ...] or []."""

    step: nn.Parameter
    bounds: tuple[int, int]

    @classmethod
    def take_over(cls, quantizer: TensorQuantizer) -> nn.Parameter:
        """Convert `quantizer` in place, as ModelOpt converts its own; returns the new step."""
        bounds = bounds_of(quantizer)
        # a new one would have to be given range, calibrator and switches, which ModelOpt keeps in private attributes
        quantizer.__class__, quantizer.bounds = cls, bounds
        quantizer.step = nn.Parameter(quantizer.amax.detach().float() / quantizer.bounds[1])
        return quantizer.step

    def forward(self, inputs: Tensor) -> Tensor:
        # section 2.2: n is the features of one image for an activation, the weights that share a step for a weight
        scale = 1 / math.sqrt(inputs[0].numel() * self.bounds[1])
        return LSQFunction.apply(inputs, self.step, *self.bounds, scale)


def learn_steps(model: PlainViT) -> list[nn.Parameter]:
    """Turn every enabled quantizer of `model` into one that learns its step; returns the steps."""
    quantizers = [
        part for layer in quantized_layers(model).values() for part in (layer.input_quantizer, layer.weight_quantizer)
    ]
    quantizers += attention_quantizers(model).values()
    return [LSQQuantizer.take_over(part) for part in quantizers if part.is_enabled]


@torch.no_grad()
def keep_positive(steps: list[nn.Parameter]) -> None:
    """A step that an update took to 0 or below comes back to a tiny positive one."""
    for step in steps:
        step.clamp_(min=SMALLEST_STEP)
