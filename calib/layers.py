"""Which layers are quantized. Imports no ModelOpt, so that a scheme is checked before that is loaded."""

from __future__ import annotations

from typing import Any

from timm.models.vision_transformer import VisionTransformer
from torch import nn

from calib.attention import attention_layers
from calib.scheme import QuantScheme

LINEAR = (nn.Linear, nn.Conv2d)


def quantized_layers(model: VisionTransformer) -> dict[str, Any]:
    """Every linear, the patch embedding and the head, by timm name."""
    return {name: module for name, module in model.named_modules() if isinstance(module, LINEAR)}


def require_layers(model: VisionTransformer, scheme: QuantScheme) -> None:
    """Raises `InputError` where `scheme` asks for what `model` has not: a layer's name, or attention that quantizes."""
    scheme.check(quantized_layers(model))
    if scheme.attention != "float":
        attention_layers(model)
