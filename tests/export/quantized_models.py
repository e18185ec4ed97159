"""Small quantized models for the tests: weights and steps from their largest magnitudes."""

from __future__ import annotations

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from calib.quantized import QuantizedWeights
from calib.scheme import FLOAT_BITS, QuantScheme, integer_range


def quantize_by_max(model: VisionTransformer, bits: str, images: Tensor) -> QuantizedWeights:
    """Weights' step is amax / Qp per channel, inputs' step amax / Qp over `images` [M, C, H, W]."""
    scheme = QuantScheme.parse(bits)
    parts = {name: part for name, part in model.named_modules() if isinstance(part, nn.Linear | nn.Conv2d)}
    amax = _input_amax(model, parts, images)
    tensors = {key: value.detach().float().clone() for key, value in model.state_dict().items()}
    for name in parts:
        layer = scheme.layer(name)
        low, high = integer_range(layer.weight)
        weight = tensors[f"{name}.weight"]
        step = weight.flatten(1).abs().amax(1) / high
        wide = step.view(-1, *[1] * (weight.ndim - 1))
        tensors[f"{name}.weight"] = (weight / wide).round().clamp(low, high).to(torch.int8)
        tensors[f"{name}.weight_step"] = step
        if layer.activation != FLOAT_BITS:
            tensors[f"{name}.input_step"] = amax[name] / integer_range(layer.activation)[1]
    return QuantizedWeights(scheme, "test", "0" * 64, {name: scheme.layer(name) for name in parts}, tensors)


@torch.inference_mode()
def _input_amax(model: nn.Module, parts: dict[str, nn.Module], images: Tensor) -> dict[str, Tensor]:
    amax: dict[str, Tensor] = {}
    hooks = [
        part.register_forward_pre_hook(lambda _, args, name=name: amax.__setitem__(name, args[0].abs().max()))
        for name, part in parts.items()
    ]
    model(images)
    for hook in hooks:
        hook.remove()
    return {name: value.clone() for name, value in amax.items()}
