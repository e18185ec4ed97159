"""timm's attention with quantizers on the inputs of both of its batch matmuls."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from timm.layers import Attention
from torch import Tensor, nn

from inversion.errors import InputError
from inversion.plainvit import Module, PlainViT

QUANTIZERS = {
    "q": "q_bmm_quantizer",
    "k": "k_bmm_quantizer",
    "softmax": "softmax_quantizer",
    "v": "v_bmm_quantizer",
}
"""ModelOpt's name of the quantizer of each input: softmax(q @ k), then softmax @ v."""


class QuantAttention(Attention):
    """timm's attention whose `QUANTIZERS`, modules that keep a tensor's shape, see what the two products take.

    Each stands directly before its product, behind the scale and the transpose: TensorRT fuses INT8 attention where
    products take dequantized tensors and the scale lies before the first one. q, k and v are cut from a tensor of four
    dimensions: timm's of five ONNX Runtime takes apart, with a copy of each.
    """

    q_bmm_quantizer: Any
    k_bmm_quantizer: Any
    softmax_quantizer: Any
    v_bmm_quantizer: Any

    @classmethod
    def take_over(cls, attention: Attention, make: Callable[[str], nn.Module]) -> None:
        """Convert `attention` in place; `make` gives the quantizer of each key of `QUANTIZERS`."""
        # a module made anew would have to be given every part, those that ModelOpt has converted and its hooks too
        attention.__class__ = cls
        for part, name in QUANTIZERS.items():
            attention.add_module(name, make(part))

    def forward(self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
        """[B, N, D] -> [B, N, D]; a plain ViT masks nothing."""
        assert attn_mask is None
        assert not is_causal
        batch, tokens, _ = x.shape
        qkv = self.qkv(x).reshape(batch, tokens, 3 * self.num_heads, self.head_dim).transpose(1, 2)
        q, k, v = qkv.chunk(3, 1)  # [B, heads, N, head_dim]
        q = self.q_bmm_quantizer(self.q_norm(q) * self.scale)
        k = self.k_bmm_quantizer(self.k_norm(k).transpose(-2, -1))
        weights = self.softmax_quantizer((q @ k).softmax(dim=-1))  # [B, heads, N, N]
        x = self.attn_drop(weights) @ self.v_bmm_quantizer(v)
        x = self.norm(x.transpose(1, 2).reshape(batch, tokens, self.attn_dim))
        return self.proj_drop(self.proj(x))


def attention_layers(model: PlainViT) -> dict[str, Any]:
    """Each block's attention, by timm name.

    Raises `InputError` for attention of another kind than timm's plain one, which could not be quantized.
    """
    found: dict[str, Any] = {f"blocks.{number}.attn": block.attn for number, block in enumerate(model.blocks)}
    for name, layer in found.items():
        if type(layer) not in (Attention, QuantAttention) or layer.gate is not None:
            kind = "gated attention" if type(layer) is Attention else type(layer).__name__
            raise InputError(f"{name} is {kind}, which has no INT8 form here: take attention float.")
    return found


def attention_quantizers(model: Module) -> dict[str, Any]:
    """The quantizers of all `QuantAttention`s as `blocks.0.attn.q`, with q, k, softmax or v; none in a plain model."""
    return {
        f"{name}.{part}": getattr(layer, quantizer)
        for name, layer in model.named_modules()
        if isinstance(layer, QuantAttention)
        for part, quantizer in QUANTIZERS.items()
    }
