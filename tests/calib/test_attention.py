"""INT8 attention: what its quantizers see and do, their ranges, steps and way into the file."""

import functools
import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from timm.layers import Attention
from timm.models.vision_transformer import VisionTransformer
from torch import Generator, Tensor, nn

from calib.attention import QUANTIZERS, QuantAttention, attention_layers, attention_quantizers
from calib.freeze import freeze
from calib.lsq import LSQQuantizer, learn_steps
from calib.ranges import _shares, calibrate, input_quantizers, insert_quantizers
from calib.scheme import QuantScheme
from calib.settings import RANGE_METHODS, Calibration
from calib.weights import QuantizedWeights
from inversion.errors import InputError
from inversion.teacher import Teacher
from tests.small import small_teacher, views

NAMES = {f"blocks.{block}.attn.{part}" for block in (0, 1) for part in ("q", "k", "softmax", "v")}


def inserted(teacher: Teacher, bits: str = "w8a8") -> VisionTransformer:
    return insert_quantizers(teacher.model, QuantScheme.parse(bits, attention="int8"))


def calibrated(teacher: Teacher, method: Any = "max", bits: str = "w8a8") -> VisionTransformer:
    student = inserted(teacher, bits)
    calibrate(student, teacher.model, views(6), views(2), Calibration(method=method))
    return student


def ranges(model: VisionTransformer) -> dict[str, float]:
    return {name: float(quantizer.amax) for name, quantizer in attention_quantizers(model).items()}


def products(attention: Attention, x: Tensor) -> dict[str, Tensor]:
    """What the two products of float attention take, written out: softmax(q k) v with the scale in q."""
    qkv = attention.qkv(x).unflatten(2, (3, attention.num_heads, -1)).permute(2, 0, 3, 1, 4)
    q, k = attention.q_norm(qkv[0]) * attention.scale, attention.k_norm(qkv[1]).mT
    return {"q": q, "k": k, "softmax": (q @ k).softmax(-1), "v": qkv[2]}


@pytest.mark.parametrize(
    "kind", [{}, {"qkv_bias": True}, {"qk_norm": True, "scale_norm": True, "norm_layer": nn.LayerNorm}]
)
def test_without_rounding_it_is_timms_attention(kind: dict[str, object]) -> None:
    """With quantizers that change nothing, the answer is timm's own, bit for bit, norms included."""
    torch.manual_seed(0)
    attention = Attention(32, num_heads=2, **kind).eval()
    attention.fused_attn = False
    for parameter in attention.parameters():
        parameter.data.add_(0.3 * torch.randn_like(parameter))
    x = torch.randn(3, 7, 32)
    want = attention(x)
    QuantAttention.take_over(attention, lambda _: nn.Identity())
    assert torch.equal(attention(x), want)


def test_each_quantizer_sees_its_product_s_input() -> None:
    """q behind its scale, k transposed, v, and softmax's output, each under its own name."""
    attention = Attention(32, num_heads=2).eval()
    x, seen = torch.randn(3, 7, 32), {}
    want = products(attention, x)

    def make(part: str) -> nn.Module:
        module = nn.Identity()
        module.register_forward_hook(lambda _, args, __: seen.update({part: args[0]}))
        return module

    QuantAttention.take_over(attention, make)
    attention(x)
    assert seen.keys() == QUANTIZERS.keys()
    for part, value in want.items():
        assert torch.equal(seen[part], value), part


def test_int8_attention_gets_four_quantizers_a_block() -> None:
    """They have 8 bits whatever the scheme's; the teacher keeps its attention, and float schemes have none."""
    teacher = small_teacher()
    for bits in ("w4a4", "w8a16"):
        student = inserted(teacher, bits)
        assert set(attention_quantizers(student)) == NAMES <= set(input_quantizers(student))
        for quantizer in attention_quantizers(student).values():
            assert (quantizer.num_bits, quantizer.axis, quantizer.unsigned) == (8, None, False)
    assert set(input_quantizers(inserted(teacher, "w8a16"))) == NAMES
    for model in (teacher.model, insert_quantizers(teacher.model, QuantScheme.parse("w4a4"))):
        assert not attention_quantizers(model)
        assert all(type(layer) is Attention for layer in attention_layers(model).values())


class Strange(Attention):
    """Computes who knows what."""


@pytest.mark.parametrize(
    ("other", "kind"), [(Attention(32, 2, gated=True), "gated attention"), (Strange(32, 2), "Strange")]
)
def test_other_attention_is_refused(other: Attention, kind: str) -> None:
    """Attention that is not timm's plain one is named, with the way out."""
    teacher = small_teacher()
    teacher.model.blocks[1].attn = other
    message = f"blocks.1.attn is {kind}, which has no INT8 form here: take attention float."
    with pytest.raises(InputError, match=f"^{re.escape(message)}$"):
        inserted(teacher)


def test_layers_that_are_not_there_are_refused() -> None:
    """A scheme that names a layer which the teacher does not have makes no quantizers."""
    with pytest.raises(
        InputError, match=r"^no layer is called 'blocks\.2\.\*': take a name or a shell pattern of patch"
    ):
        insert_quantizers(small_teacher().model, QuantScheme.parse("w4a8", layers={"blocks.2.*": "w8a8"}))


def test_max_is_the_largest_input_of_each_product() -> None:
    """`max` is what each product is given at most, found with the linears' rounded weights."""
    teacher = small_teacher()
    student = inserted(teacher)
    largest: dict[str, float] = {}
    hooks = [
        layer.register_forward_pre_hook(
            lambda module, args, name=name: largest.update(
                {f"{name}.{part}": float(value.abs().max()) for part, value in products(module, args[0]).items()}
            )
        )
        for name, layer in attention_layers(student).items()
    ]
    for quantizer in input_quantizers(student).values():
        quantizer.disable()
    views(6).logits(student)
    for hook in hooks:
        hook.remove()
    # sums of the same products, over tensors that lie otherwise in memory
    assert ranges(calibrated(teacher)) == pytest.approx(largest, rel=1e-5)


@pytest.mark.parametrize("method", RANGE_METHODS)
def test_every_method_gives_a_range(method: str) -> None:
    """Each is positive and finite; none is above `max`, and `fisher` at its shares."""
    teacher = small_teacher()
    widest, found = ranges(calibrated(teacher)), ranges(calibrated(teacher, method))
    assert found.keys() == NAMES
    assert all(0 < amax < math.inf for amax in found.values())
    assert all(found[name] <= widest[name] * (1 + 1e-6) for name in NAMES)
    if method == "fisher":
        shares = {round(found[name] / widest[name], 3) for name in NAMES}
        assert shares <= {round(share, 3) for share in _shares((-128, 127))}
        assert len(shares) > 1


@pytest.mark.parametrize("method", RANGE_METHODS)
def test_zero_and_constant_attention_gets_a_step(method: str) -> None:
    """Where q, k and v are always 0, so that softmax is constant, all four ranges are positive and finite."""
    teacher = small_teacher()
    teacher.model.blocks[1].attn.qkv.weight.zero_()
    teacher.model.blocks[1].attn.qkv.bias.zero_()
    teacher.model.blocks[0].attn.qkv.weight.zero_()
    teacher.model.blocks[0].attn.qkv.bias.fill_(0.3)
    student = calibrated(teacher, method)
    assert all(0 < amax < math.inf for amax in ranges(student).values())
    assert bool(torch.isfinite(torch.cat(views(2).logits(student))).all())
    if method == "max":
        # a constant softmax is one over the 17 tokens
        assert ranges(student)["blocks.1.attn.softmax"] == pytest.approx(1 / 17, rel=1e-4)
        assert ranges(student)["blocks.0.attn.v"] == pytest.approx(0.3, rel=1e-4)


@pytest.mark.parametrize(("part", "row"), [("q", 0), ("k", 32), ("v", 64)])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_products_that_are_not_finite_are_refused(part: str, row: int, bad: float) -> None:
    """The error names the first product's input that is not finite."""
    teacher = small_teacher()
    teacher.model.blocks[1].attn.qkv.bias[row] = bad
    with pytest.raises(
        InputError, match=rf"^the inputs of blocks\.1\.attn\.{part} are not finite numbers: the teacher or"
    ):
        calibrated(teacher)


def learning(bits: str = "w8a8") -> VisionTransformer:
    student = calibrated(small_teacher(), bits=bits)
    learn_steps(student)
    return student


def test_attention_learns_steps() -> None:
    """Each quantizer becomes LSQ's with the step amax / 127, and each step gets a gradient that is not 0."""
    student = calibrated(small_teacher(), bits="w4a16")
    before = ranges(student)
    steps = learn_steps(student)
    assert len(steps) == 10 + 8
    quantizers = attention_quantizers(student)
    assert {name: float(part.step.detach()) * 127 for name, part in quantizers.items()} == pytest.approx(
        before, rel=1e-6
    )
    assert all(type(quantizer) is LSQQuantizer for quantizer in quantizers.values())
    patches, _ = views(6).groups[0]
    student(patches.new_ones(2, 1, 32, 32).normal_(generator=Generator().manual_seed(0))).square().sum().backward()
    assert all(float(quantizer.step.grad) != 0 for quantizer in quantizers.values())


def test_attention_equals_integer_arithmetic() -> None:
    """Attention's answer is exactly that of integers in [-128, 127] times steps, in both products."""
    attention = learning().blocks[1].attn
    x = 2 * torch.randn(3, 17, 32, generator=Generator().manual_seed(0))
    steps = {part: getattr(attention, name).step.detach() for part, name in QUANTIZERS.items()}

    def integers(part: str, value: Tensor) -> Tensor:
        return (value / steps[part]).round().clamp(-128, 127).to(torch.int8)

    with torch.no_grad():
        given = products(attention, x)
        q, k, v = ((integers(part, given[part]).float() * steps[part]) for part in ("q", "k", "v"))
        weights = integers("softmax", (q @ k).softmax(-1)).float() * steps["softmax"]
        want = attention.proj((weights @ v).transpose(1, 2).flatten(2))
        assert torch.equal(attention(x), want)
    assert not torch.equal(q, given["q"])


def test_attention_steps_come_back_from_the_file(tmp_path: Path) -> None:
    """Frozen, saved and loaded: every step is the module's own, and the scheme, overrides included, says int8."""
    scheme = QuantScheme.parse("w4a8", attention="int8", layers={"blocks.0.*": "w8a8"})
    student = insert_quantizers(small_teacher().model, scheme)
    calibrate(student, small_teacher().model, views(6), views(2), Calibration(method="max"))
    learn_steps(student)
    freeze(student, small_teacher(), scheme).save(tmp_path / "q.safetensors")
    found = QuantizedWeights.load(tmp_path / "q.safetensors")
    assert found.scheme == scheme
    for name, quantizer in attention_quantizers(student).items():
        assert torch.equal(found.tensors[f"{name}_step"], quantizer.step)
        assert found.tensors[f"{name}_step"].shape == ()
    assert not [key for key in found.tensors if "quantizer" in key]


@functools.cache
def frozen_int8() -> QuantizedWeights:
    return freeze(learning(), small_teacher(), QuantScheme.parse("w8a8", attention="int8"))


@pytest.mark.parametrize("bad", [None, 0.0, -1.0, math.nan, math.inf])
@pytest.mark.parametrize("part", ["q", "k", "softmax", "v"])
def test_attention_without_a_good_step_is_refused(part: str, bad: float | None) -> None:
    """Missing or not positive, a step is named and the weights cannot be made."""
    weights = frozen_int8()
    tensors = dict(weights.tensors)
    del tensors[f"blocks.1.attn.{part}_step"]
    if bad is not None:
        tensors[f"blocks.1.attn.{part}_step"] = torch.tensor(bad)
    message = f"blocks.1.attn has a {part}_step that is not a positive number: quantize again."
    with pytest.raises(InputError, match=f"^{re.escape(message)}$"):
        QuantizedWeights(weights.scheme, weights.teacher, weights.teacher_sha256, weights.layers, tensors)
