"""Small quantized models and their files, made once for all tests of the folder."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

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


@pytest.fixture(scope="session")
def quantized(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Quantized]:
    """By scheme, each exported once."""
    folder, made = tmp_path_factory.mktemp("quantized"), {}

    def make(bits: str) -> Quantized:
        if bits not in made:
            model, images, path = small_vit(), grey_images(16), folder / f"{bits}.onnx"
            weights = quantize_by_max(model, bits, images)
            module = qdq_module(model, weights)
            export_quantized(module, SPEC, path, {"teacher": "small", "scheme": bits})
            made[bits] = Quantized(model, weights, module, path, images)
        return made[bits]

    return make


@pytest.fixture(scope="session")
def float_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("float") / "float.onnx"
    export_float(small_vit(), SPEC, path, {"teacher": "small"})
    return path
