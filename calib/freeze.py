"""A trained module in, its integers and steps out."""

from __future__ import annotations

import torch
from torch import Tensor

from calib.attention import attention_quantizers
from calib.layers import layer_bits, quantized_layers
from calib.scheme import FLOAT_BITS, QuantScheme, integer_range
from calib.weights import QuantizedWeights
from inversion.plainvit import PlainViT
from inversion.teacher import Teacher


@torch.no_grad()
def freeze(student: PlainViT, teacher: Teacher, scheme: QuantScheme) -> QuantizedWeights:
    """Integers and steps of a trained module."""
    layers = layer_bits(student, scheme)
    tensors: dict[str, Tensor] = {}
    for name, layer in quantized_layers(student).items():
        step: Tensor = layer.weight_quantizer.step.detach()
        low, high = integer_range(layers[name].weight)
        tensors[f"{name}.weight"] = (layer.weight / step).clamp(low, high).round().to("cpu", torch.int8)
        tensors[f"{name}.weight_step"] = step.flatten().cpu().clone()
        if layers[name].activation < FLOAT_BITS:
            tensors[f"{name}.input_step"] = layer.input_quantizer.step.detach().reshape(()).cpu().clone()
    for name, quantizer in attention_quantizers(student).items():
        tensors[f"{name}_step"] = quantizer.step.detach().reshape(()).cpu().clone()
    for key, value in student.state_dict().items():
        if "_quantizer." not in key and key not in tensors:
            tensors[key] = value.detach().float().cpu().clone()
    return QuantizedWeights(scheme, teacher.name, teacher.sha256, layers, tensors)
