"""A timm ViT whose linears compute with integers, and attention where asked: the torch reference, which is exported."""

from __future__ import annotations

import copy
from functools import partial
from typing import Any

import torch
from timm.layers import Attention
from torch import Tensor, nn

from calib.attention import QuantAttention, attention_layers
from calib.scheme import ATTENTION_BITS, FLOAT_BITS, LayerBits, integer_range
from calib.weights import QuantizedWeights
from export.operators import dequantize, dequantize_columns, quantize
from inversion.errors import InputError
from inversion.plainvit import PlainViT

PATCH_EMBED = "patch_embed.proj"
CARRIER_RANGE = integer_range(8)


def to_grid(x: Tensor, step: float, bounds: tuple[int, int]) -> Tensor:
    """`x` as integers in `bounds` (low, high) times `step`, same shape; the integers are carried as int8."""
    low, high = bounds
    if bounds != CARRIER_RANGE:
        # Q saturates at the carrier's range only, so fewer bits are clamped before it
        x = x.clamp(low * step, high * step)
    carried: Tensor = dequantize(quantize(x, step), step)
    return carried


class QDQTensor(nn.Module):
    """Quantizer of an activation that is no linear's input."""

    def __init__(self, step: float, bits: int) -> None:
        super().__init__()
        self.step = step
        self.bits = bits

    def forward(self, x: Tensor) -> Tensor:
        return to_grid(x, self.step, integer_range(self.bits))

    def extra_repr(self) -> str:
        return f"a{self.bits}, step={self.step}"


class QDQLinear(nn.Module):
    """`x @ dequantize(weight) + bias`, where `x` passes a quantizer first.

    Integers have zero point 0, are carried as int8 and clamped to the layer's bits:

    - `weight`      int8 [in, out], the layout in which a MatMul needs no transpose
    - `weight_step` float32 [out]
    - `input_step`  float, or None where the input stays float
    - `bias`        float32 [1, 1, out], or None; this shape keeps runtimes from folding MatMul and Add into a
                    float Gemm before they have seen the integers
    """

    weight: Tensor
    weight_step: Tensor
    bias: Tensor | None

    def __init__(
        self, weight: Tensor, weight_step: Tensor, bias: Tensor | None, input_step: float | None, bits: LayerBits
    ) -> None:
        """`weight` int8 [out, in], `weight_step` [out], `bias` [out]."""
        super().__init__()
        self.register_buffer("weight", weight.t().contiguous())
        self.register_buffer("weight_step", weight_step.float().clone())
        self.register_buffer("bias", None if bias is None else bias.float().reshape(1, 1, -1).clone())
        self.input_step = input_step
        self.bits = bits

    def forward(self, x: Tensor) -> Tensor:
        """[B, N, in] -> [B, N, out], or [B, in] -> [B, out]."""
        if x.ndim == 2:  # a MatMul of rank 2 and its Add would be made a Gemm, which stays float
            return self.forward(x.unsqueeze(1)).squeeze(1)
        y = torch.matmul(self.fake_quantize(x), self.float_weight())
        return y if self.bias is None else y + self.bias

    def fake_quantize(self, x: Tensor) -> Tensor:
        """`x` on the grid of the layer's input, same shape."""
        return x if self.input_step is None else to_grid(x, self.input_step, self.bits.input_range)

    def float_weight(self) -> Tensor:
        """`weight * weight_step`, float32 [in, out]."""
        weight: Tensor = dequantize_columns(self.weight, self.weight_step)
        return weight

    def extra_repr(self) -> str:
        inputs, outputs = self.weight.shape
        return f"{inputs}, {outputs}, w{self.bits.weight}a{self.bits.activation}, input_step={self.input_step}"


class QDQPatchEmbed(nn.Module):
    """timm's patch embedding as one linear on flattened patches, so that it quantizes like every other layer."""

    def __init__(self, proj: QDQLinear, norm: nn.Module, patch_size: tuple[int, int]) -> None:
        super().__init__()
        self.proj = proj
        self.norm = norm
        self.patch_size = patch_size

    def forward(self, images: Tensor) -> Tensor:
        """[B, C, H, W] normalised pixels -> tokens [B, N, D], patches in row-major order."""
        _, channels, height, width = images.shape
        ph, pw = self.patch_size
        x = images.reshape(-1, channels, height // ph, ph, width // pw, pw)
        x = x.permute(0, 2, 4, 1, 3, 5).reshape(-1, (height // ph) * (width // pw), channels * ph * pw)
        return self.norm(self.proj(x))


def qdq_module(model: PlainViT, weights: QuantizedWeights) -> nn.Module:
    """A copy of `model` that computes with `weights`, on the CPU, in eval mode; `model` is left as it was.

    On the CPU wherever `model` is: it is traced for ONNX, whose bytes should not depend on a GPU, and layer by layer
    ONNX Runtime's CPU is held against it. Whoever only wants its answers moves it.

    Takes normalised images [B, C, H, W] and gives logits [B, num_classes].
    Raises `InputError` where `weights` are not those of `model`'s architecture.
    """
    module: Any = copy.deepcopy(model).cpu().eval().requires_grad_(False)
    plain_attention(module)
    _drop_folded(module, weights)
    _load_float(module, weights)
    for name, bits in weights.layers.items():
        if name == PATCH_EMBED:
            embed = module.patch_embed
            module.patch_embed = QDQPatchEmbed(_linear(weights, name, bits), embed.norm, embed.patch_size)
        else:
            module.set_submodule(name, _linear(weights, name, bits))
    if weights.scheme.attention == "int8":
        for name, attention in attention_layers(module).items():
            QuantAttention.take_over(attention, partial(_attention_input, weights, name))
    for attention in module.modules():
        if type(attention) is Attention and attention.gate is None:  # the same function, in a graph that runs faster
            QuantAttention.take_over(attention, lambda _: nn.Identity())
    module.dynamic_img_size = False  # the patch embedding gives [B, N, D], never a feature map
    return module


def plain_attention(model: nn.Module) -> None:
    """Let attention be MatMul, Softmax, MatMul: the fused call exports to a longer graph of the same value."""
    part: Any
    for part in model.modules():
        if hasattr(part, "fused_attn"):
            part.fused_attn = False


def _linear(weights: QuantizedWeights, name: str, bits: LayerBits) -> QDQLinear:
    step = None if bits.activation == FLOAT_BITS else float(weights.tensors[f"{name}.input_step"])
    tensors = weights.tensors
    # [D, C, P, P] of the patch embedding flattens in the order of `QDQPatchEmbed`
    weight = tensors[f"{name}.weight"].flatten(1)
    return QDQLinear(weight, tensors[f"{name}.weight_step"], tensors.get(f"{name}.bias"), step, bits)


def _attention_input(weights: QuantizedWeights, attention: str, part: str) -> QDQTensor:
    return QDQTensor(float(weights.tensors[f"{attention}.{part}_step"]), ATTENTION_BITS)


def _drop_folded(module: Any, weights: QuantizedWeights) -> None:
    """Take out each LayerScale that `weights` lack, as `calib.basis.fold` took it into the linear before it."""
    for number, block in enumerate(module.blocks):
        for name in ("ls1", "ls2"):
            if f"blocks.{number}.{name}.gamma" not in weights.tensors:
                setattr(block, name, nn.Identity())


def _load_float(module: nn.Module, weights: QuantizedWeights) -> None:
    """Load all but the integers, after checking that every tensor has its place and shape."""
    mend = f"these are weights of {weights.teacher!r}: name that teacher."
    expected = module.state_dict()
    found = {key: value for key, value in weights.tensors.items() if not key.endswith("_step")}
    differ = sorted(expected.keys() ^ found.keys())
    differ += [key for key in expected.keys() & found.keys() if expected[key].shape != found[key].shape]
    layers = {name for name, part in module.named_modules() if isinstance(part, nn.Linear | nn.Conv2d)}
    differ += sorted(set(weights.layers) - layers)
    if differ:
        raise InputError(f"quantized weights do not fit the teacher at {differ[0]!r}: {mend}")
    integers = {f"{name}.weight" for name in weights.layers}
    module.load_state_dict({key: value for key, value in found.items() if key not in integers}, strict=False)
