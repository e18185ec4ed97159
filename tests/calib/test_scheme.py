"""Bits of each layer, and which combinations are refused."""

import re

import pytest

from calib.scheme import LayerBits, QuantScheme, integer_range
from inversion.errors import InputError


@pytest.mark.parametrize(
    ("text", "weight", "activation"),
    [("w4a8", 4, 8), ("w8a8", 8, 8), ("w8a16", 8, 16), (" W4A4\n", 4, 4), ("w2a5", 2, 5), ("w3a16", 3, 16)],
)
def test_bits_are_parsed_and_written(text: str, weight: int, activation: int) -> None:
    """`w4a8` is 4-bit weights and 8-bit activations, in either case; its text comes back."""
    scheme = QuantScheme.parse(text)
    assert scheme == QuantScheme(weight, activation)
    assert str(scheme) == text.strip().lower()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("w1a8", "weights of 1 bits are not supported: take 2 to 8, as in w4a8 or w8a8."),
        ("w9a8", "weights of 9 bits are not supported: take 2 to 8, as in w4a8 or w8a8."),
        ("w4a32", "activations of 32 bits are not supported: take 4 to 8, or 16 for float."),
        ("w4a3", "activations of 3 bits are not supported: take 4 to 8, or 16 for float."),
        ("w4a12", "activations of 12 bits are not supported: take 4 to 8, or 16 for float."),
        *(
            (text, f"bits {text!r} are not understood: write w4a8, w8a8, w4a4 or w8a16.")
            for text in ("", "garbage", "w4", "a8", "4/8", "w4a8x", "w-4a8", "w4.0a8", "w4 a8", "w444a8")
        ),
    ],
)
def test_other_bits_are_refused(text: str, message: str) -> None:
    """What no quantizer of this project computes is refused, with the limit."""
    with pytest.raises(InputError, match=f"^{re.escape(message)}$"):
        QuantScheme.parse(text)


def test_edges_get_eight_bits() -> None:
    """First and last layer carry 8-bit weights; every layer's input has the scheme's bits."""
    scheme = QuantScheme.parse("w4a6")
    assert scheme.layer("blocks.0.attn.qkv") == scheme.layer("blocks.11.mlp.fc2") == LayerBits(4, 6)
    for name in ("patch_embed.proj", "head", "head_dist"):
        assert scheme.layer(name) == LayerBits(8, 6)
    assert QuantScheme.parse("w8a8").layer("head") == LayerBits(8, 8)


@pytest.mark.parametrize(("bits", "low", "high"), [(2, -2, 1), (4, -8, 7), (8, -128, 127)])
def test_integers_are_signed(bits: int, low: int, high: int) -> None:
    """b bits hold -2^(b-1) to 2^(b-1) - 1."""
    assert integer_range(bits) == (low, high)
