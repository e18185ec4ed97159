"""Bits of each layer, and which combinations are refused."""

import json
import re
from typing import Any

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


@pytest.mark.parametrize("weight", [1, 0, -4, 9])
@pytest.mark.parametrize("make", [QuantScheme, LayerBits])
def test_impossible_weights_cannot_be_made(make: type, weight: int) -> None:
    """A scheme and a layer's bits refuse what parsing would, however they are made."""
    with pytest.raises(InputError, match=f"^weights of {weight} bits are not supported"):
        make(weight, 8)


@pytest.mark.parametrize("activation", [0, 3, 9, 15, 32])
@pytest.mark.parametrize("make", [QuantScheme, LayerBits])
def test_impossible_activations_cannot_be_made(make: type, activation: int) -> None:
    """Inputs have 4 to 8 bits, or 16 for float."""
    with pytest.raises(InputError, match=f"^activations of {activation} bits are not supported"):
        make(4, activation)


EDGES = ("patch_embed.proj", "head", "head_dist")


@pytest.mark.parametrize(
    ("bits", "edge", "inner"),
    [
        ("w4a6", LayerBits(8, 8), LayerBits(4, 6)),
        ("w4a4", LayerBits(8, 8), LayerBits(4, 4)),
        ("w8a8", LayerBits(8, 8), LayerBits(8, 8)),
        ("w4a16", LayerBits(8, 16), LayerBits(4, 16)),
    ],
)
def test_edges_get_eight_bits_at_least(bits: str, edge: LayerBits, inner: LayerBits) -> None:
    """Pixels, the head's input and both weights are never coarser than 8 bits, nor finer than the scheme asks."""
    scheme = QuantScheme.parse(bits)
    assert scheme.layer("blocks.0.attn.qkv") == scheme.layer("blocks.11.mlp.fc2") == inner
    assert all(scheme.layer(name) == edge for name in EDGES)


def test_edges_take_the_bits_that_they_are_given() -> None:
    """`edges` decides for the first and last layer alone, also below 8 bits."""
    scheme = QuantScheme.parse("w8a8", edges="w4a5")
    assert all(scheme.layer(name) == LayerBits(4, 5) for name in EDGES)
    assert scheme.layer("blocks.0.attn.qkv") == LayerBits(8, 8)


def test_the_last_pattern_that_matches_decides() -> None:
    """Shell patterns on whole names: later beats earlier, any beats `edges`, and `1` is not `11`."""
    patterns = {"*": "w5a5", "blocks.1.*": "w6a6", "blocks.*.mlp.fc1": "w7a16", "head": "w8a16"}
    scheme = QuantScheme.parse("w4a8", edges="w8a8", layers=patterns)
    assert scheme.layer("blocks.1.attn.qkv") == LayerBits(6, 6)
    assert scheme.layer("blocks.1.mlp.fc1") == scheme.layer("blocks.0.mlp.fc1") == LayerBits(7, 16)
    assert scheme.layer("blocks.11.attn.qkv") == scheme.layer("patch_embed.proj") == LayerBits(5, 5)
    assert scheme.layer("head") == LayerBits(8, 16)
    turned = QuantScheme.parse("w4a8", layers=dict(reversed(patterns.items())))
    assert turned.layer("head") == turned.layer("blocks.1.mlp.fc1") == LayerBits(5, 5)


@pytest.mark.parametrize(
    ("scheme", "text"),
    [
        (QuantScheme.parse("w4a8"), "w4a8"),
        (QuantScheme.parse("w4a8", attention="int8"), "w4a8 (attention int8)"),
        (QuantScheme.parse("w8a8", "w4a8", "int8", {"head": "w4a4"}), "w8a8 (edges w4a8, attention int8, 1 override)"),
        (QuantScheme.parse("w4a8", layers={"head": "w4a4", "blocks.0.*": "w8a8"}), "w4a8 (2 overrides)"),
    ],
)
def test_a_scheme_says_what_it_is_and_can_be_made_again(scheme: QuantScheme, text: str) -> None:
    """Its text names every part that differs; bits and overrides, through JSON, make an equal scheme."""
    assert str(scheme) == text
    again = QuantScheme.parse(scheme.bits, **json.loads(json.dumps(scheme.overrides())))
    assert again == scheme
    assert hash(again) == hash(scheme)


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"attention": "int4"}, "attention 'int4' is not understood: take float or int8."),
        ({"edges": "w1a8"}, "weights of 1 bits are not supported: take 2 to 8, as in w4a8 or w8a8."),
        ({"layers": {"head": "w4a32"}}, "activations of 32 bits are not supported: take 4 to 8, or 16 for float."),
        ({"layers": {"head": "8"}}, "bits '8' are not understood: write w4a8, w8a8, w4a4 or w8a16."),
    ],
)
def test_wrong_parts_are_refused(parts: dict[str, Any], message: str) -> None:
    """An override is held to the same limits as the scheme itself."""
    with pytest.raises(InputError, match=f"^{re.escape(message)}$"):
        QuantScheme.parse("w4a8", **parts)


def test_a_pattern_stands_once() -> None:
    """Two bits for one pattern would be one too many, and lost in a file."""
    with pytest.raises(InputError, match=r"^the layers 'head' are given bits twice: keep one of them\.$"):
        QuantScheme(4, 8, layers=(("head", LayerBits(8, 8)), ("*", LayerBits(4, 4)), ("head", LayerBits(4, 8))))


def test_names_that_no_layer_has_are_refused() -> None:
    """The sentence names the pattern and some layers that there are; patterns that match are accepted."""
    names = ["patch_embed.proj", *(f"blocks.{i}.attn.qkv" for i in range(12)), "head"]
    QuantScheme.parse("w4a8", layers={"blocks.*": "w8a8", "head": "w8a8"}).check(names)
    QuantScheme.parse("w4a8").check([])
    message = (
        "no layer is called 'blocks.12.*': take a name or a shell pattern of patch_embed.proj, blocks.0.attn.qkv, "
        "blocks.1.attn.qkv, blocks.2.attn.qkv, ..., head."
    )
    with pytest.raises(InputError, match=f"^{re.escape(message)}$"):
        QuantScheme.parse("w4a8", layers={"blocks.*": "w8a8", "blocks.12.*": "w8a8"}).check(iter(names))
    with pytest.raises(InputError, match=r"^no layer is called 'heads': take a name or a shell pattern of fc, head\.$"):
        QuantScheme.parse("w4a8", layers={"heads": "w8a8"}).check(["fc", "head"])


@pytest.mark.parametrize(("bits", "low", "high"), [(2, -2, 1), (4, -8, 7), (8, -128, 127)])
def test_integers_are_signed(bits: int, low: int, high: int) -> None:
    """b bits hold -2^(b-1) to 2^(b-1) - 1."""
    assert integer_range(bits) == (low, high)
