"""The sparse forward is timm's own, on any subset of the patches; importance is timm's own attention."""

import copy
from typing import Any

import pytest
import torch
from timm.models.deit import VisionTransformerDistilled
from timm.models.vision_transformer import VisionTransformer
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from inversion.sparse import classify_lean, embed, embed_linear, importance, patchify, sparse_forward, take, unpatchify

FAMILIES: dict[str, dict[str, Any]] = {
    "class token": {},
    "distilled": {"cls": VisionTransformerDistilled},
    "registers": {"reg_tokens": 3},
    "average pooling": {"global_pool": "avg", "class_token": False, "fc_norm": True},
    "average pooling, class token": {"global_pool": "avg"},
    "average pooling with prefix": {"global_pool": "avg", "pool_include_prefix": True},
    "deit3": {"no_embed_class": True, "init_values": 0.1},
    "registers without position": {"reg_tokens": 2, "no_embed_class": True},
    "clip": {"pre_norm": True, "norm_layer": nn.LayerNorm, "qkv_bias": False},
    "normalised queries": {"qk_norm": True},
    "normalised embedding": {"embed_norm_layer": nn.LayerNorm},
    "colour": {"in_chans": 3},
    "rectangular picture": {"img_size": (24, 40)},
    "rectangular patches": {"img_size": (32, 24), "patch_size": (8, 4), "in_chans": 3},
    "patch count that is no square": {"img_size": (8, 56)},
    "one patch": {"img_size": 8},
}
FAMILY = pytest.mark.parametrize("family", FAMILIES)


def vit(cls: type[VisionTransformer] = VisionTransformer, **kwargs: object) -> VisionTransformer:
    """Two thin blocks; every weight is random, so that no token, head or norm is without effect."""
    torch.manual_seed(0)
    shape = {"img_size": 32, "patch_size": 8, "in_chans": 1, "num_classes": 7, "embed_dim": 32, "num_heads": 2}
    model = cls(**{**shape, "depth": 2, **kwargs}).eval().requires_grad_(False)
    for weight in model.parameters():
        weight.add_(0.2 * torch.randn_like(weight))
    return model


def pictures(model: VisionTransformer, count: int = 3) -> Tensor:
    """Normalised noise [count, C, H, W]."""
    size = (count, model.patch_embed.proj.in_channels, *model.patch_embed.img_size)
    return torch.randn(size, generator=Generator().manual_seed(1))


def all_patches(model: VisionTransformer, images: Tensor) -> tuple[Tensor, Tensor]:
    patches = patchify(images, model.patch_embed.patch_size)
    return patches, torch.arange(patches.shape[1]).expand(len(images), -1)


def some(count: int, of: int, images: int, seed: int = 2) -> Tensor:
    """For each image `count` different positions, in random order: [images, count]."""
    noise = torch.rand(images, of, generator=Generator().manual_seed(seed))
    return noise.argsort(1)[:, :count]


@FAMILY
def test_all_patches_give_timms_own_logits(family: str) -> None:
    """With every patch in order, the sparse forward equals timm's forward bit for bit."""
    model = vit(**FAMILIES[family])
    images = pictures(model)
    assert torch.equal(sparse_forward(model, *all_patches(model, images)), model(images))


@FAMILY
def test_a_subset_is_what_the_blocks_make_of_those_tokens(family: str) -> None:
    """Without a patch, its token is absent from every block; the others keep their own positions."""
    model = vit(**FAMILIES[family])
    images = pictures(model)
    patches, everywhere = all_patches(model, images)
    kept = some(-(-everywhere.shape[1] // 3), everywhere.shape[1], len(images))
    prefix = model.num_prefix_tokens
    tokens = model.norm_pre(model._pos_embed(model.patch_embed(images)))
    tokens = torch.cat([tokens[:, :prefix], take(tokens[:, prefix:], kept)], dim=1)
    want = model.forward_head(model.norm(model.blocks(tokens)))
    # the projection of fewer patches is a matrix product of another height, which may sum in another order
    torch.testing.assert_close(sparse_forward(model, take(patches, kept), kept), want, rtol=1e-4, atol=1e-4)


@FAMILY
def test_the_lean_forward_is_the_same(family: str) -> None:
    """One product for the projection and a last block for what the classifier reads: the same logits and gradient."""
    model = vit(**FAMILIES[family]).double()
    patches, everywhere = all_patches(model, pictures(model).double())
    kept = some(-(-everywhere.shape[1] // 2), everywhere.shape[1], len(patches))
    patches = take(patches, kept).requires_grad_()
    want = sparse_forward(model, patches, kept)
    found = classify_lean(model, embed_linear(model, patches, kept))
    # float64 sums in another order
    torch.testing.assert_close(found, want, rtol=1e-10, atol=1e-10)
    gradients = [torch.autograd.grad(logits.square().sum(), patches)[0] for logits in (want, found)]
    torch.testing.assert_close(*gradients, rtol=1e-9, atol=1e-10)


@FAMILY
def test_order_of_patches_does_not_matter(family: str) -> None:
    """Patches with their positions in another order give the same logits, up to the order of sums."""
    model = vit(**FAMILIES[family])
    patches, everywhere = all_patches(model, pictures(model))
    order = some(everywhere.shape[1], everywhere.shape[1], len(patches))
    logits = sparse_forward(model, take(patches, order), order)
    # softmax and its products sum over patches in another order: some float32 roundings
    torch.testing.assert_close(logits, sparse_forward(model, patches, everywhere), rtol=1e-4, atol=1e-4)


def test_positions_matter() -> None:
    """The same pixels elsewhere are another picture."""
    model = vit()
    patches, everywhere = all_patches(model, pictures(model))
    elsewhere = everywhere.roll(1, 1)
    assert not torch.allclose(sparse_forward(model, patches, elsewhere), sparse_forward(model, patches, everywhere))


def test_tokens_have_the_documented_shape() -> None:
    """[B, prefix + K, D], prefix tokens first."""
    model = vit(reg_tokens=3)
    kept = some(5, 16, 2)
    tokens = embed(model, take(patchify(pictures(model, 2), (8, 8)), kept), kept)
    assert tokens.shape == (2, 1 + 3 + 5, 32)
    assert torch.equal(tokens[:, 0], (model.cls_token[0] + model.pos_embed[0, :1]).expand(2, -1))


@pytest.mark.parametrize(("size", "patch"), [((32, 32), (8, 8)), ((24, 40), (8, 8)), ((12, 30), (3, 5))])
def test_patches_and_pictures_are_each_others_inverse(size: tuple[int, int], patch: tuple[int, int]) -> None:
    """Patches are row-major, each [C, P, P]; unpatchify puts every pixel back."""
    images = torch.arange(2 * 3 * size[0] * size[1]).view(2, 3, *size)
    patches = patchify(images, patch)
    rows, columns = size[0] // patch[0], size[1] // patch[1]
    assert patches.shape == (2, rows * columns, 3 * patch[0] * patch[1])
    for position in range(rows * columns):
        row, column = divmod(position, columns)
        tile = images[:, :, row * patch[0] : (row + 1) * patch[0], column * patch[1] : (column + 1) * patch[1]].flatten(
            1
        )
        assert torch.equal(patches[:, position], tile)
    assert torch.equal(unpatchify(patches, (rows, columns), patch), images)


def attention_of(model: VisionTransformer, patches: Tensor, kept: Tensor) -> Tensor:
    """The last layer's attention [B, heads, queries, keys], caught in timm's unfused computation."""
    attention, caught = model.blocks[-1].attn, []
    attention.fused_attn = False
    hook = attention.attn_drop.register_forward_hook(lambda _, __, output: caught.append(output))
    sparse_forward(model, patches, kept)
    hook.remove()
    return caught[0]


@FAMILY
def test_importance_is_the_last_layers_attention(family: str) -> None:
    """Mean over heads of what the tokens that the classifier reads attend to; prefix tokens get no place."""
    model = vit(**FAMILIES[family])
    patches, everywhere = all_patches(model, pictures(model))
    kept = some(-(-everywhere.shape[1] // 2), everywhere.shape[1], len(patches))
    scores = importance(model, take(patches, kept), kept)
    attention = attention_of(model, take(patches, kept), kept)
    prefix = model.num_prefix_tokens
    if model.global_pool == "avg":
        queries = range(prefix, attention.shape[2])
    else:
        queries = range(2) if family == "distilled" else range(1)
    want = sum(attention[:, :, query, prefix:].mean(1) for query in queries) / len(queries)
    # timm scales queries in the same way; only the number of rows of the product differs
    torch.testing.assert_close(scores, want, rtol=1e-5, atol=1e-6)
    assert scores.shape == kept.shape
    total = scores.sum(1)
    if prefix:
        assert bool((total < 1).all())
    else:
        torch.testing.assert_close(total, torch.ones_like(total))


@FAMILY
def test_gradient_is_the_dense_one(family: str) -> None:
    """With nothing removed, pixels get the gradient that timm's own forward gives them."""
    model = vit(**FAMILIES[family])
    images = pictures(model).requires_grad_()
    labels = torch.tensor([0, 3, 6])
    (dense,) = torch.autograd.grad(F.cross_entropy(model(images), labels, reduction="sum"), images)
    patches, kept = all_patches(model, images.detach())
    patches.requires_grad_()
    (sparse,) = torch.autograd.grad(
        F.cross_entropy(sparse_forward(model, patches, kept), labels, reduction="sum"), patches
    )
    assert float(dense.abs().max()) > 0
    # the backward products run on another layout of the same numbers
    torch.testing.assert_close(sparse, patchify(dense, model.patch_embed.patch_size), rtol=1e-4, atol=1e-5)


def test_weights_get_no_gradient() -> None:
    """A backward pass through a frozen model computes pixels' gradients and no other."""
    model = vit()
    patches, kept = all_patches(model, pictures(model))
    patches.requires_grad_()
    sparse_forward(model, patches, kept).sum().backward()
    assert patches.grad is not None
    assert all(weight.grad is None for weight in model.parameters())


def test_importance_leaves_no_trace() -> None:
    """Scoring builds no graph, and changes neither the model's hooks nor its attention's mode."""
    model = vit()
    fused = [block.attn.fused_attn for block in model.blocks]
    patches, kept = all_patches(model, pictures(model))
    assert not importance(model, patches.requires_grad_(), kept).requires_grad
    assert [block.attn.fused_attn for block in model.blocks] == fused
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


@pytest.mark.parametrize("count", [1, 2, 8, 16])
@pytest.mark.parametrize("patch", [4, 8, 16])
def test_bfloat16_tokens_do_not_depend_on_what_lay_in_memory(patch: int, count: int) -> None:
    """They are float32's but for rounding. On CPUs with AVX10 and AMX, oneDNN's convolution read beyond patches that
    lay one above the other."""
    model = vit(patch_size=patch, img_size=4 * patch)
    patches = torch.randn(4, count, patch * patch)
    kept = torch.arange(count).expand(4, -1)
    wanted = embed(model, patches, kept)
    half = copy.deepcopy(model).bfloat16()
    for filling in (1e30, torch.nan):
        for size in range(10, 21):
            torch.full((2**size,), filling)
        found = embed(half, patches.bfloat16(), kept)
        torch.testing.assert_close(found.float(), wanted, rtol=0.02, atol=0.02 * float(wanted.abs().max()))
