"""Which bits each part of a ViT gets."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from inversion.errors import InputError

FLOAT_BITS = 16
EDGE_LAYERS = ("patch_embed.proj", "head", "head_dist")
EDGE_BITS = 8
ATTENTION = ("float", "int8")
ATTENTION_BITS = 8
NAMES_SHOWN = 4


@dataclass(frozen=True)
class LayerBits:
    """Bits of one layer's weight and of its input; an input of 16 bits stays float.

    `one_sided`: the input comes from a GELU or its like, which hardly falls below 0, and has fewer than 8 bits; its
    integers lie in -1 to 2^bits - 2 then, so that none is spent on what never comes.
    """

    weight: int
    activation: int
    one_sided: bool = False

    def __post_init__(self) -> None:
        if not 2 <= self.weight <= 8:
            raise InputError(f"weights of {self.weight} bits are not supported: take 2 to 8, as in w4a8 or w8a8.")
        if self.activation != FLOAT_BITS and not 4 <= self.activation <= 8:
            raise InputError(f"activations of {self.activation} bits are not supported: take 4 to 8, or 16 for float.")
        if self.one_sided and self.activation >= 8:
            raise InputError(f"an input of {self.activation} bits is not one-sided: that is for fewer than 8.")

    @classmethod
    def parse(cls, text: str) -> LayerBits:
        """`w4a8` -> 4-bit weights, 8-bit activations."""
        match = re.fullmatch(r"w(\d{1,2})a(\d{1,2})", str(text).strip().lower())
        if not match:
            raise InputError(f"bits {text!r} are not understood: write w4a8, w8a8, w4a4 or w8a16.")
        return cls(int(match[1]), int(match[2]))

    def __str__(self) -> str:
        return f"w{self.weight}a{self.activation}"

    @property
    def input_range(self) -> tuple[int, int]:
        """Smallest and largest integer of the input; its zero point is 0 and it fits INT8 either way."""
        return (-1, 2**self.activation - 2) if self.one_sided else integer_range(self.activation)


@dataclass(frozen=True)
class QuantScheme:
    """Symmetric integers: weights per output channel, activations per tensor.

    Every linear, the patch embedding and the head are quantized to `weight_bits` and `activation_bits`, except

    - the first and the last layer, which get `edges`, by default at least 8 bits for weight and input, as in LSQ
      (Esser et al., 2020, section 3): they are 6% of DeiT-Tiny's weights, and see pixels and logits;
    - layers whose timm name a shell pattern of `layers` matches: the last one that does decides.

    With `attention` "int8" the inputs of both batch matmuls (q, k, v and softmax's output) carry 8 bits; with "float"
    attention computes in float.

        QuantScheme.parse("w4a8", layers={"blocks.0.*": "w8a8"})
    """

    weight_bits: int
    activation_bits: int
    edges: LayerBits | None = None
    attention: str = "float"
    layers: tuple[tuple[str, LayerBits], ...] = ()

    def __post_init__(self) -> None:
        LayerBits(self.weight_bits, self.activation_bits)
        if self.attention not in ATTENTION:
            raise InputError(f"attention {self.attention!r} is not understood: take {' or '.join(ATTENTION)}.")
        patterns = [pattern for pattern, _ in self.layers]
        if twice := [pattern for pattern in patterns if patterns.count(pattern) > 1]:
            raise InputError(f"the layers {twice[0]!r} are given bits twice: keep one of them.")

    @classmethod
    def parse(
        cls,
        bits: str,
        edges: str | None = None,
        attention: str = "float",
        layers: Mapping[str, str] | None = None,
    ) -> QuantScheme:
        """`bits`, `edges` and the values of `layers`, whose keys are patterns, are written as `w4a8`."""
        all_layers = LayerBits.parse(bits)
        return cls(
            all_layers.weight,
            all_layers.activation,
            None if edges is None else LayerBits.parse(edges),
            attention,
            tuple((pattern, LayerBits.parse(text)) for pattern, text in (layers or {}).items()),
        )

    @property
    def bits(self) -> str:
        """What layers get that nothing else is said of, as `w4a8`."""
        return str(LayerBits(self.weight_bits, self.activation_bits))

    def overrides(self) -> dict[str, Any]:
        """The arguments that `parse` needs beside `bits` to make this scheme again, as plain values."""
        return {
            "edges": self.edges and str(self.edges),
            "attention": self.attention,
            "layers": {pattern: str(bits) for pattern, bits in self.layers},
        }

    def __str__(self) -> str:
        said = [
            f"edges {self.edges}" if self.edges else "",
            f"attention {self.attention}" if self.attention != "float" else "",
            f"{len(self.layers)} override{'s' * (len(self.layers) > 1)}" if self.layers else "",
        ]
        more = ", ".join(part for part in said if part)
        return f"{self.bits} ({more})" if more else self.bits

    def layer(self, name: str) -> LayerBits:
        """Bits of the layer with this timm name."""
        for pattern, bits in reversed(self.layers):
            if fnmatchcase(name, pattern):
                return bits
        if name in EDGE_LAYERS:
            return self.edges or LayerBits(max(self.weight_bits, EDGE_BITS), max(self.activation_bits, EDGE_BITS))
        return LayerBits(self.weight_bits, self.activation_bits)

    def check(self, names: Iterable[str]) -> None:
        """`InputError` for a pattern of `layers` that none of a model's layer `names` matches."""
        known = list(names)
        for pattern, _ in self.layers:
            if not any(fnmatchcase(name, pattern) for name in known):
                some = ", ".join([*known[:NAMES_SHOWN], "...", known[-1]] if len(known) > NAMES_SHOWN + 1 else known)
                raise InputError(f"no layer is called {pattern!r}: take a name or a shell pattern of {some}.")


def integer_range(bits: int) -> tuple[int, int]:
    """Smallest and largest signed integer: (-Qn, Qp) of the LSQ paper, (-8, 7) for 4 bits."""
    return -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
