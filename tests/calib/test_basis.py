"""Another basis: the same function for every kind of teacher, no operation more, and sentences where it cannot be."""

import copy
from functools import partial
from typing import Any

import pytest
import torch
from timm.layers import RmsNorm, SimpleNorm
from timm.models.deit import VisionTransformerDistilled
from timm.models.vision_transformer import VisionTransformer
from torch import Generator, Tensor, nn

from calib.basis import Rotations, centre, fold, rotate, rotates, value_attentions
from calib.layers import quantized_layers
from calib.quantization import change_basis, quantize
from calib.rotation import (
    Rounded,
    cayley,
    keep_ones,
    learn_rotations,
    random_rotation,
    relative_error,
    rounding_error,
)
from calib.scheme import QuantScheme
from calib.settings import Basis, Calibration, Rounding, Training
from calib.views import Views
from export.qdq import qdq_module
from inversion.errors import InputError
from inversion.sparse import patchify, sparse_forward
from inversion.teacher import InputSpec, Teacher
from tests.small import small_teacher, sparse_images

KINDS: dict[str, dict[str, Any]] = {
    "class token": {},
    "distilled": {"kind": VisionTransformerDistilled},
    "layer scale": {"init_values": 0.3, "no_embed_class": True},
    "average, norm behind": {"global_pool": "avg", "class_token": False},
    "average, norm before": {"global_pool": "avg", "fc_norm": False},
    "class token, norm behind": {"fc_norm": True},
    "registers": {"reg_tokens": 3, "no_embed_class": True},
    "qk_norm": {"qk_norm": True},
    "RMSNorm": {"norm_layer": RmsNorm},
    "torch's RMSNorm": {"norm_layer": partial(nn.RMSNorm, eps=1e-6)},
    "no bias in qkv": {"qkv_bias": False},
    "no bias at all": {"qkv_bias": False, "proj_bias": False},
    "no last norm": {"final_norm": False},
    "norms without scale": {"norm_layer": partial(nn.LayerNorm, elementwise_affine=False)},
    "norm in attention": {"scale_attn_norm": True},
    "norm in the MLP": {"scale_mlp_norm": True},
    "CLIP": {"pre_norm": True},
    "norm of patches": {"embed_norm_layer": nn.LayerNorm},
    "foreign norm": {"norm_layer": SimpleNorm},
}
STILL = {
    "CLIP": "the residual stream is not rotated: norm_pre scales it before the first block.",
    "norm of patches": "the residual stream is not rotated: patch_embed.norm scales it before the first block.",
    "foreign norm": "the residual stream is not rotated: 5 norms (SimpleNorm) cannot be folded.",
    "norm in attention": "the values of 2 blocks are not rotated: a norm stands between them and attn.proj.",
}
"""What is left out of which kind."""


def model_of(kind: str) -> VisionTransformer:
    """Two thin blocks of 16 patches of grey pixels, every parameter random."""
    torch.manual_seed(7)
    options = dict(KINDS[kind])
    build = options.pop("kind", VisionTransformer)
    model = build(img_size=32, patch_size=8, in_chans=1, num_classes=5, embed_dim=24, depth=2, num_heads=2, **options)
    model = model.eval().requires_grad_(False)
    for parameter in model.parameters():
        parameter.add_(0.3 * torch.randn_like(parameter))
    return model


def pictures(dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(6, 1, 32, 32, generator=Generator().manual_seed(1)).to(dtype)


def random_basis(model: VisionTransformer) -> Rotations:
    return learn_rotations(model, {}, 0, seed=3)


def apart(ours: Tensor, theirs: Tensor) -> float:
    """The largest difference, in spreads of the answers."""
    return float((ours - theirs).abs().max() / theirs.std())


@pytest.mark.parametrize("kind", KINDS)
def test_the_function_stays_the_same(kind: str) -> None:
    """Folded and rotated, the logits are the teacher's to 1e-9 in float64 and to 1e-4 of their spread in float32; so
    are those of a part of the patches."""
    for dtype, limit in ((torch.float64, 1e-9), (torch.float32, 1e-4)):
        model = model_of(kind).to(dtype)
        before = copy.deepcopy(model.state_dict())
        images = pictures(dtype)
        folded, _ = fold(model)
        rotated = rotate(folded, random_basis(folded))
        assert apart(folded(images), model(images)) < limit
        assert apart(rotated(images), model(images)) < limit
        kept = torch.tensor([3, 0, 9, 14, 7]).expand(6, -1)
        part = patchify(images, (8, 8)).gather(1, kept.unsqueeze(-1).expand(-1, -1, 64))
        assert apart(sparse_forward(rotated, part, kept), sparse_forward(model, part, kept)) < limit
        assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("kind", KINDS)
def test_what_cannot_be_rotated_is_said(kind: str) -> None:
    """The possible part is done, and a sentence names each part that is not; every other kind rotates whole."""
    model = model_of(kind)
    folded, left_out = fold(model)
    assert left_out == ((STILL[kind],) if kind in STILL else ())
    rotations = random_basis(folded)
    rotated = rotate(folded, rotations)
    changed = {
        name for name, value in rotated.state_dict().items() if not torch.allclose(value, folded.state_dict()[name])
    }
    assert (
        ("blocks.1.mlp.fc1.weight" in changed) == rotates(folded) == (kind == "norm in attention" or kind not in STILL)
    )
    assert ("blocks.1.attn.proj.weight" in changed) == bool(rotates(folded) or value_attentions(folded))
    assert bool(rotations.values) == (kind != "norm in attention")


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in STILL])
def test_norms_have_nothing_left_to_scale(kind: str) -> None:
    """Behind the fold every norm that reads the stream has scale 1, LayerScale is gone, and shifts are 0 where the
    linear behind can hold them."""
    folded, _ = fold(model_of(kind))
    for block in folded.blocks:
        assert isinstance(block.ls1, nn.Identity)
        for norm, linear in ((block.norm1, block.attn.qkv), (block.norm2, block.mlp.fc1)):
            assert norm.weight is None or bool((norm.weight == 1).all())
            if linear.bias is not None and getattr(norm, "bias", None) is not None:
                assert not bool(norm.bias.any())


def test_a_scale_of_zero_before_no_bias_stays() -> None:
    """A shift whose scale is 0 cannot be held by a linear without bias: that norm stays, and the stream with it."""
    model = model_of("no bias in qkv")
    model.blocks[1].norm1.weight[3] = 0
    folded, left_out = fold(model)
    assert left_out == ("the residual stream is not rotated: 1 norms (LayerNorm) cannot be folded.",)
    assert apart(rotate(folded, random_basis(folded))(pictures()), model(pictures())) < 1e-4


def test_rotations_are_orthogonal_and_keep_ones() -> None:
    """Q Q^T = I and Q 1 = 1 to float64's precision, random and learned alike."""
    generator = Generator().manual_seed(0)
    for turned in (random_rotation(7, generator), cayley(torch.randn(3, 7, 7, generator=generator).double())):
        torch.testing.assert_close(turned @ turned.mT, torch.eye(7).double().expand_as(turned), rtol=0, atol=1e-12)
    stream = keep_ones(random_rotation(7, generator))
    torch.testing.assert_close(stream @ stream.T, torch.eye(8).double(), rtol=0, atol=1e-12)
    torch.testing.assert_close(stream.sum(1), torch.ones(8).double(), rtol=0, atol=1e-12)
    assert float((stream - torch.eye(8)).abs().max()) > 0.1


def four_bits(model: VisionTransformer) -> dict[str, int]:
    return dict.fromkeys(quantized_layers(model), 4)


def test_learning_makes_rounding_err_less() -> None:
    """Learned rotations err less than the random ones that they start from, and those less than a spiky basis."""
    model = small_teacher().model
    model.blocks[0].norm1.weight[5] = 20
    folded, _ = fold(model)
    bits, errors = four_bits(folded), []
    for updates in (0, 60):
        errors.append(rounding_error(rotate(folded, learn_rotations(folded, bits, updates)), bits))
    assert errors[1] < 0.93 * errors[0] < 0.93 * rounding_error(folded, bits)


def test_learning_minimises_the_objective_that_it_is_given() -> None:
    """What one layer costs falls further where nothing else counts; and an objective sees each layer's own rounding
    error, rows of values by head, in the basis as it is."""
    folded, _ = fold(small_teacher().model)
    bits, wanted = four_bits(folded), "blocks.0.mlp.fc1"
    shapes: dict[str, set[tuple[int, ...]]] = {}

    def one_layer(rounded: Rounded) -> Tensor:
        shapes.setdefault(rounded.layer, set()).add(tuple(rounded.error.shape))
        return relative_error(rounded) * (rounded.layer == wanted)

    def error(rotations: Rotations) -> float:
        layer = rotate(folded, rotations).get_submodule(wanted)
        return rounding_error(nn.Sequential(layer), {"0": 4})

    alone = error(learn_rotations(folded, bits, 60, objective=one_layer))
    assert alone < 0.8 * error(learn_rotations(folded, bits, 60))
    attention, width = folded.blocks[0].attn, folded.embed_dim
    assert shapes["blocks.0.attn.qkv"] == {(2 * width, width), (attention.num_heads, attention.head_dim, width)}
    assert shapes.keys() == bits.keys()


def test_learning_depends_on_its_seed_alone() -> None:
    """The same seed gives the same bytes, another seed others."""
    folded, _ = fold(small_teacher().model)
    bits = four_bits(folded)
    one, same, other = (learn_rotations(folded, bits, 5, seed).tensors() for seed in (1, 1, 2))
    assert all(torch.equal(value, same[name]) for name, value in one.items())
    assert not torch.equal(one["stream"], other["stream"])


def test_a_part_of_the_rows_will_do(monkeypatch: pytest.MonkeyPatch) -> None:
    """Larger models show each update some of their rows: still nearly all of the error goes that goes with all rows."""
    folded, _ = fold(small_teacher().model)
    bits = four_bits(folded)
    start = rounding_error(rotate(folded, learn_rotations(folded, bits, 0)), bits)
    whole = rounding_error(rotate(folded, learn_rotations(folded, bits, 80)), bits)
    monkeypatch.setattr("calib.rotation.WORK", 4e5)
    part = rounding_error(rotate(folded, learn_rotations(folded, bits, 80)), bits)
    assert start - part > 0.7 * (start - whole) > 0


@pytest.mark.parametrize("kind", ["layer scale", "distilled", "no bias in qkv", "CLIP"])
def test_quantized_weights_of_a_new_basis_are_the_teachers(kind: str) -> None:
    """What `quantize` makes loads into the teacher's own architecture and answers as the teacher does, with no more
    parameters than it has."""
    teacher = Teacher(model_of(kind), InputSpec((32, 32), (0.5,), (0.25,), "bicubic", 1.0, 5), "small", "0" * 64)
    settings = Calibration(leaves=4), Rounding(), Training(updates=0)
    made = quantize(teacher, sparse_images(8), QuantScheme.parse("w8a16"), Basis(updates=5), *settings)
    module = qdq_module(teacher.model, made.weights)
    answers = teacher.model(pictures())
    error = module(pictures()) - answers
    assert float(error.square().mean()) < 0.01 * float(answers.square().mean())
    assert made.basis.left_out == ((STILL[kind],) if kind in STILL else ())
    assert made.basis.method == "learned"


def test_no_change_of_basis_leaves_the_weights() -> None:
    """`none` is the teacher as it came."""
    teacher = small_teacher()
    model, about, rotations = change_basis(teacher.model, QuantScheme.parse("w4a8"), Basis(method="none"))
    assert model is teacher.model
    assert (about.method, about.left_out, rotations.tensors()) == ("none", (), {})
    assert about.error == about.error_before


def test_settings_are_checked() -> None:
    """A wrong method, and learning without an update, are refused by a sentence."""
    with pytest.raises(InputError, match=r"^unknown basis\.method 'pca': take one of learned, random, none\.$"):
        Basis(method="pca")  # type: ignore[arg-type] # that is the test
    with pytest.raises(InputError, match=r"^basis.updates must be at least 1, not 0: or take basis.method=random\.$"):
        Basis(updates=0)


def test_views_see_the_same_in_any_basis() -> None:
    """The images stay the teacher's own: a model in another basis answers them as the teacher does."""
    model = model_of("class token")
    folded, _ = fold(model)
    patches = patchify(pictures(), (8, 8))
    views = Views(((patches, torch.arange(16).expand(6, -1)),))
    ours, theirs = (torch.cat(views.logits(each)) for each in (rotate(folded, random_basis(folded)), model))
    assert apart(ours, theirs) < 1e-4


@pytest.mark.parametrize("kind", ["class token", "average, norm behind", "RMSNorm", "no bias in qkv", "distilled"])
def test_centring_moves_a_mean_and_nothing_else(kind: str) -> None:
    """What each norm gives has mean 0 in each channel where norm and linears have a place for it; the logits stay."""
    model = model_of(kind)
    patches = patchify(pictures(), (8, 8))
    views = Views(((patches, torch.arange(16).expand(6, -1)),))
    centred = centre(model, views)
    assert apart(centred(pictures()), model(pictures())) < 1e-4
    seen: dict[str, Tensor] = {}
    for name in ("norm1", "norm2"):
        norm = centred.blocks[1].get_submodule(name)
        norm.register_forward_hook(lambda _, __, output, name=name: seen.update({name: output.flatten(0, -2).mean(0)}))
    views.logits(centred)
    moved = {name for name, mean in seen.items() if float(mean.abs().max()) < 1e-5}
    wanted = set() if kind == "RMSNorm" else {"norm2"} if kind == "no bias in qkv" else {"norm1", "norm2"}
    assert moved == wanted
