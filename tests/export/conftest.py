"""Small quantized models and their files, made once for all tests of the folder."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from calib.attention import QuantAttention, attention_layers, attention_quantizers
from calib.quantized import QuantizedWeights
from calib.scheme import FLOAT_BITS, QuantScheme, integer_range
from export.graph import export_float, export_quantized
from export.qdq import qdq_module
from inversion.teacher import InputSpec

SPEC = InputSpec((32, 32), (0.5,), (0.5,), "bicubic", 1.0, 10)


@dataclass(frozen=True)
class Quantized:
    """A float model, its quantized weights, the module that computes with them, and the module's ONNX file."""

    model: VisionTransformer
    weights: QuantizedWeights
    module: nn.Module
    path: Path
    images: Tensor


def grey_images(count: int, channels: int = 1) -> Tensor:
    return torch.randn(count, channels, 32, 32, generator=torch.Generator().manual_seed(1))


def small_vit(cls: type[VisionTransformer] = VisionTransformer, **kwargs: object) -> VisionTransformer:
    """The built-in teacher's shape at two blocks; every parameter is random, or equal biases would share a name."""
    torch.manual_seed(0)
    shape = {"img_size": 32, "patch_size": 4, "in_chans": 1, "num_classes": 10, "embed_dim": 96, "num_heads": 3}
    model = cls(**{**shape, "depth": 2, **kwargs}).eval().requires_grad_(False)
    for parameter in model.parameters():
        parameter.add_(0.05 * torch.randn_like(parameter))
    return model


def quantize_by_max(model: VisionTransformer, scheme: str | QuantScheme, images: Tensor) -> QuantizedWeights:
    """Weights' step is amax / Qp per channel, inputs' step amax / Qp over `images` [M, C, H, W]."""
    scheme = QuantScheme.parse(scheme) if isinstance(scheme, str) else scheme
    parts = {name: part for name, part in model.named_modules() if isinstance(part, nn.Linear | nn.Conv2d)}
    amax = _input_amax(model, images)
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
    if scheme.attention == "int8":
        tensors |= {f"{name}_step": amax[name] / 127 for name in amax if name not in parts}
    return QuantizedWeights(scheme, "test", "0" * 64, {name: scheme.layer(name) for name in parts}, tensors)


@torch.inference_mode()
def _input_amax(model: VisionTransformer, images: Tensor) -> dict[str, Tensor]:
    """Largest input of each linear by name, and of each of attention's products as `blocks.0.attn.q`."""
    model, amax = copy.deepcopy(model), {}
    for attention in attention_layers(model).values():
        QuantAttention.take_over(attention, lambda _: nn.Identity())
    parts = {name: part for name, part in model.named_modules() if isinstance(part, nn.Linear | nn.Conv2d)}
    for name, part in (parts | attention_quantizers(model)).items():
        part.register_forward_pre_hook(lambda _, args, name=name: amax.__setitem__(name, args[0].abs().max()))
    model(images)
    return {name: value.clone() for name, value in amax.items()}


@pytest.fixture(scope="session")
def quantized(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Quantized]:
    """By bits and kind of attention, each exported once."""
    made: dict[tuple[str, str], Quantized] = {}

    def make(bits: str, attention: str = "float") -> Quantized:
        key = (bits, attention)
        if key not in made:
            model, images, path = small_vit(), grey_images(16), tmp_path_factory.mktemp(attention) / f"{bits}.onnx"
            weights = quantize_by_max(model, QuantScheme.parse(bits, attention=attention), images)
            module = qdq_module(model, weights)
            export_quantized(module, SPEC, path, {"teacher": "small", "scheme": bits})
            made[key] = Quantized(model, weights, module, path, images)
        return made[key]

    return make


@pytest.fixture(scope="session")
def float_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("float") / "float.onnx"
    export_float(small_vit(), SPEC, path, {"teacher": "small"})
    return path
