"""Which layers are quantized. Imports no ModelOpt, so that a scheme is checked before that is loaded."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from timm.layers import GELU, GELUTanh, Mlp, QuickGELU
from torch import nn

from calib.attention import attention_layers
from calib.scheme import LayerBits, QuantScheme
from inversion.plainvit import Module, PlainViT

LINEAR = (nn.Linear, nn.Conv2d)
ONE_SIDED = (nn.GELU, nn.ReLU, nn.SiLU, GELU, GELUTanh, QuickGELU)
"""Activations that never fall far below 0."""


def quantized_layers(model: Module) -> dict[str, Any]:
    """Every linear of a model or of a part of one, the patch embedding and the head, by timm name."""
    return {name: module for name, module in model.named_modules() if isinstance(module, LINEAR)}


def layer_bits(model: PlainViT, scheme: QuantScheme) -> dict[str, LayerBits]:
    """What `scheme` gives each quantized layer; below 8 bits, inputs straight from a GELU or its like are one-sided."""
    found = {name: scheme.layer(name) for name in quantized_layers(model)}
    for number, block in enumerate(model.blocks):
        name, mlp = f"blocks.{number}.mlp.fc2", block.mlp
        straight = isinstance(mlp, Mlp) and isinstance(mlp.act, ONE_SIDED) and isinstance(mlp.norm, nn.Identity)
        if straight and found[name].activation < 8:
            found[name] = replace(found[name], one_sided=True)
    return found


def require_layers(model: PlainViT, scheme: QuantScheme) -> None:
    """Raises `InputError` where `scheme` asks for what `model` has not: a layer's name, or attention that quantizes."""
    scheme.check(quantized_layers(model))
    if scheme.attention != "float":
        attention_layers(model)
