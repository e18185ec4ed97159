from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from timm.models.deit import VisionTransformerDistilled
from torch import Tensor, nn

from calib.scheme import LayerBits, integer_range
from export.qdq import QDQLinear, qdq_module
from inversion.errors import InputError
from tests.small import grey_images, quantize_by_max, small_vit

FAMILIES = {
    "deit": {},
    "distilled": {"cls": VisionTransformerDistilled},
    "deit3": {"no_embed_class": True, "init_values": 1e-1},
    "average pool": {"global_pool": "avg", "class_token": False, "fc_norm": True},
    "registers, colour": {"reg_tokens": 2, "in_chans": 3},
    "clip": {"pre_norm": True, "norm_layer": nn.LayerNorm},
    "embedding norm": {"embed_norm_layer": nn.LayerNorm, "qkv_bias": False},
}


def fake_quant_hook(step: Tensor, bits: int, _: nn.Module, args: tuple[Tensor]) -> Tensor:
    low, high = integer_range(bits)
    return (args[0] / step).round().clamp(low, high) * step


@pytest.mark.parametrize("family", FAMILIES)
def test_module_with_float_inputs_equals_timm_with_rounded_weights(family: str) -> None:
    """For every family, the module is timm's own forward with each weight replaced by integer x step."""
    model = small_vit(**FAMILIES[family])
    images = grey_images(3, model.patch_embed.proj.in_channels)
    weights = quantize_by_max(model, "w4a16", images)
    logits = qdq_module(model, weights)(images)
    for name in weights.layers:
        model.get_submodule(name).weight.copy_(weights.float_weight(name))
    # the same float32 products, summed in another order
    torch.testing.assert_close(logits, model(images), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("bits", [4, 6, 8])
def test_activations_are_rounded_and_clamped_to_their_bits(bits: int) -> None:
    """A layer's input becomes round(x / step) * step, clamped to [-2^(b-1), 2^(b-1) - 1] steps."""
    step = 0.25
    layer = QDQLinear(torch.ones(1, 1, dtype=torch.int8), torch.ones(1), None, step, LayerBits(8, bits))
    x = torch.tensor([-1000, -2.1, -0.3, 0, 0.3, 0.4, 1000]).reshape(1, -1, 1)
    low, high = integer_range(bits)
    want = torch.tensor([low, max(low, -8), -1, 0, 1, 2, high]).reshape(1, -1, 1) * step
    assert torch.equal(layer(x), want)


def test_one_sided_inputs_have_integers_for_what_comes() -> None:
    """Of 4 bits, integers from -1 to 14 with zero point 0; the step is what the file says."""
    layer = QDQLinear(torch.ones(1, 1, dtype=torch.int8), torch.ones(1), None, 0.25, LayerBits(8, 4, one_sided=True))
    x = torch.tensor([-1000, -0.3, 0, 0.3, 3.4, 1000]).reshape(1, -1, 1)
    assert torch.equal(layer(x), torch.tensor([-1, -1, 0, 1, 14, 14]).reshape(1, -1, 1) * 0.25)


def test_whole_module_equals_timm_with_hooks() -> None:
    """End to end the module is timm with rounded weights and inputs; flips of one step stay within their noise."""
    model, images = small_vit(), grey_images(8)
    weights = quantize_by_max(model, "w4a8", images)
    teacher, logits = model(images), qdq_module(model, weights)(images)
    for name, bits in weights.layers.items():
        part, step = model.get_submodule(name), weights.tensors[f"{name}.input_step"]
        part.weight.copy_(weights.float_weight(name))
        part.register_forward_pre_hook(partial(fake_quant_hook, step, bits.activation))
    error = (logits - model(images)).norm()
    assert error < 0.05 * (logits - teacher).norm()


def test_teacher_is_left_as_it_was() -> None:
    """Making the module changes neither the teacher's weights nor its modules."""
    model, images = small_vit(), grey_images(2)
    before = model(images)
    qdq_module(model, quantize_by_max(model, "w8a8", images))
    assert torch.equal(model(images), before)
    assert isinstance(model.patch_embed.proj, nn.Conv2d)


def test_learned_float_parameters_replace_the_teachers() -> None:
    """Biases and norms come from the quantized weights, not from the teacher."""
    model, images = small_vit(), grey_images(2)
    weights = quantize_by_max(model, "w8a8", images)
    weights.tensors["norm.bias"].add_(1)
    weights.tensors["head.bias"].add_(2)
    module: Any = qdq_module(model, weights)
    assert torch.equal(module.norm.bias, model.norm.bias + 1)
    assert torch.equal(module.head.bias.flatten(), model.head.bias + 2)


@pytest.mark.parametrize("depth", [1, 3])
def test_weights_of_another_teacher_are_refused(depth: int) -> None:
    """Weights that lack a tensor, or have one too many, are refused by that tensor's name."""
    weights = quantize_by_max(small_vit(), "w8a8", grey_images(2))
    with pytest.raises(InputError, match=r"do not fit the teacher at 'blocks\.\d\.attn.*name that teacher"):
        qdq_module(small_vit(depth=depth), weights)


def test_weights_of_another_width_are_refused() -> None:
    """A tensor of another shape is refused by its name."""
    weights = quantize_by_max(small_vit(), "w8a8", grey_images(2))
    with pytest.raises(InputError, match=r"do not fit the teacher at '.*': these are weights of 'test'"):
        qdq_module(small_vit(num_classes=7), weights)
