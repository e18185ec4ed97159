"""Small teachers, hand-cut images, and small quantized models with their files."""

from __future__ import annotations

import copy
import json
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from timm.models.vision_transformer import VisionTransformer
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from calib.attention import QuantAttention, attention_layers, attention_quantizers
from calib.scheme import FLOAT_BITS, QuantScheme, integer_range
from calib.views import Views, make_views
from calib.weights import QuantizedWeights
from inversion.images import SparseImages
from inversion.sparse import patchify
from inversion.teacher import InputSpec, Teacher, load_teacher

CPU = torch.device("cpu")
SPEC = InputSpec((32, 32), (0.5,), (0.5,), "bicubic", 1.0, 10)


def small_teacher() -> Teacher:
    """16 patches of 8x8 grey pixels, two thin blocks, every weight random."""
    torch.manual_seed(0)
    model = VisionTransformer(32, 8, in_chans=1, num_classes=5, embed_dim=32, depth=2, num_heads=2)
    model = model.eval().requires_grad_(False)
    for weight in model.parameters():
        weight.add_(0.2 * torch.randn_like(weight))
    return Teacher(model, InputSpec((32, 32), (0.5,), (0.25,), "bicubic", 1.0, 5), "small", "0" * 64)


def sparse_images(trajectories: int, pictures: Tensor | None = None) -> SparseImages:
    """Each trajectory's picture [1, 32, 32], noise unless given, cut into images of 7, 7 and 2 random patches."""
    generator = Generator().manual_seed(trajectories)
    if pictures is None:
        coarse = torch.randn(trajectories, 1, 12, 12, generator=generator)
        pictures = F.interpolate(coarse, size=32, mode="bilinear").clamp(-2, 2)
    kept = torch.rand(trajectories, 16, generator=generator).argsort(1)
    kept = F.pad(kept, (0, 5), value=-1).view(-1, 7)
    trajectory = torch.arange(trajectories).repeat_interleave(3)
    patches = patchify(pictures, (8, 8))[trajectory.unsqueeze(1), kept.clamp(min=0)]
    return SparseImages(
        patches=patches * (kept >= 0).unsqueeze(-1),
        kept=kept.to(torch.int16),
        labels=(trajectory % 5).to(torch.int32),
        stage=torch.tensor([1, 2, 3], dtype=torch.int8).repeat(trajectories),
        trajectory=trajectory.to(torch.int32),
        metadata={"grid": "4x4", "patch_size": "8", "channels": "1", "teacher_sha256": "0" * 64},
    )


def views(trajectories: int, kind: str = "mosaic") -> Views:
    return make_views(sparse_images(trajectories), kind, CPU)


def inserted(teacher: Teacher, bits: str) -> VisionTransformer:
    """A copy of the teacher with quantizers, whose activations have no ranges yet."""
    from calib.ranges import insert_quantizers  # ModelOpt comes with it, which export's tests do without

    return insert_quantizers(teacher.model, QuantScheme.parse(bits))


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


def thin_teacher(folder: Path) -> str:
    """The built-in teacher without all but its first two blocks, in `folder`, and its name for --teacher: a build of it
    takes a quarter of the time."""
    state = {
        name: value.contiguous()
        for name, value in load_teacher("digits_vit").model.state_dict().items()
        if not name.startswith(("blocks.2", "blocks.3", "blocks.4", "blocks.5"))
    }
    folder.mkdir(parents=True)
    save_file(state, folder / "model.safetensors")
    shape = {"img_size": 32, "patch_size": 4, "in_chans": 1, "embed_dim": 96, "depth": 2, "num_heads": 3}
    pixels = {"input_size": [1, 32, 32], "mean": [0.5], "std": [0.5], "interpolation": "bicubic", "crop_pct": 1.0}
    about = {"num_classes": 10, "first_conv": "patch_embed.proj", "classifier": "head"}
    config = {
        "architecture": "vit_tiny_patch16_224", "num_classes": 10, "model_args": shape,
        "label_names": [str(digit) for digit in range(10)], "pretrained_cfg": {**pixels, **about},
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    return f"local-dir:{folder}"
