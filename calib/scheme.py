"""Which bits each part of a ViT gets."""

from __future__ import annotations

import re
from dataclasses import dataclass

from inversion.errors import InputError

FLOAT_BITS = 16
EDGE_LAYERS = ("patch_embed.proj", "head", "head_dist")


@dataclass(frozen=True)
class LayerBits:
    """Bits of one layer's weight and of its input; an input of 16 bits stays float."""

    weight: int
    activation: int


@dataclass(frozen=True)
class QuantScheme:
    """Symmetric integers: weights per output channel, activations per tensor.

    Every linear, the patch embedding and the head are quantized. The first and the last layer carry
    `max(weight_bits, 8)` bits, as in LSQ (Esser et al., 2020, section 3): they are 6% of DeiT-Tiny's weights.
    """

    weight_bits: int
    activation_bits: int

    def __post_init__(self) -> None:
        if not 2 <= self.weight_bits <= 8:
            raise InputError(f"weights of {self.weight_bits} bits are not supported: take 2 to 8, as in w4a8 or w8a8.")
        if self.activation_bits != FLOAT_BITS and not 4 <= self.activation_bits <= 8:
            raise InputError(
                f"activations of {self.activation_bits} bits are not supported: take 4 to 8, or 16 for float."
            )

    @classmethod
    def parse(cls, text: str) -> QuantScheme:
        """`w4a8` -> 4-bit weights, 8-bit activations."""
        match = re.fullmatch(r"w(\d{1,2})a(\d{1,2})", text.strip().lower())
        if not match:
            raise InputError(f"bits {text!r} are not understood: write w4a8, w8a8, w4a4 or w8a16.")
        return cls(int(match[1]), int(match[2]))

    def __str__(self) -> str:
        return f"w{self.weight_bits}a{self.activation_bits}"

    def layer(self, name: str) -> LayerBits:
        """Bits of the layer with this timm name."""
        return LayerBits(max(self.weight_bits, 8) if name in EDGE_LAYERS else self.weight_bits, self.activation_bits)


def integer_range(bits: int) -> tuple[int, int]:
    """Smallest and largest signed integer: (-Qn, Qp) of the LSQ paper, (-8, 7) for 4 bits."""
    return -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
