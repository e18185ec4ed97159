"""A ViT's forward pass on any subset of its patches, and how much attention each patch gets."""

from __future__ import annotations

import torch
from timm.layers import Attention
from torch import Tensor
from torch.nn import functional as F

from inversion.plainvit import PlainViT


def patchify(images: Tensor, patch_size: tuple[int, int]) -> Tensor:
    """[B, C, H, W] -> [B, N, C*P*P], patches in row-major order."""
    batch, channels, height, width = images.shape
    ph, pw = patch_size
    tiles = images.reshape(batch, channels, height // ph, ph, width // pw, pw)
    return tiles.permute(0, 2, 4, 1, 3, 5).reshape(batch, -1, channels * ph * pw)


def unpatchify(patches: Tensor, grid: tuple[int, int], patch_size: tuple[int, int]) -> Tensor:
    """[B, N, C*P*P] -> [B, C, H, W], the inverse of `patchify`."""
    (rows, columns), (ph, pw) = grid, patch_size
    tiles = patches.reshape(patches.shape[0], rows, columns, -1, ph, pw)
    return tiles.permute(0, 3, 1, 4, 2, 5).reshape(patches.shape[0], -1, rows * ph, columns * pw)


def take(patches: Tensor, index: Tensor) -> Tensor:
    """Rows of `patches` [B, N, D] at `index` [B, K] -> [B, K, D]."""
    return patches.gather(1, index.unsqueeze(-1).expand(-1, -1, patches.shape[-1]))


def embed(model: PlainViT, patches: Tensor, kept: Tensor) -> Tensor:
    """Tokens [B, prefix + K, D] of normalised `patches` [B, K, C*P*P] at grid positions `kept` [B, K].

    The K patches pass the model's own projection side by side, as one picture of P by K*P pixels, so a quantized
    projection is used as it is. One above the other they must not: oneDNN's bfloat16 convolution on CPUs with AVX10 and
    AMX reads memory beyond a picture that is one patch wide (torch 2.14.1, error 25 where rounding is 0.05).
    """
    batch, count, _ = patches.shape
    ph, pw = model.patch_embed.patch_size
    strip = patches.view(batch, count, -1, ph, pw).permute(0, 2, 3, 1, 4).reshape(batch, -1, ph, count * pw)
    return place(model, model.patch_embed.proj(strip).flatten(2).transpose(1, 2), kept)


def embed_linear(model: PlainViT, patches: Tensor, kept: Tensor) -> Tensor:
    """`embed` with the projection as one matrix product: equal but for rounding.

    Its backward pass to the pixels is one product too, where a convolution's took an eighth of an iteration.
    """
    proj = model.patch_embed.proj
    return place(model, F.linear(patches, proj.weight.flatten(1), proj.bias), kept)


def place(model: PlainViT, projected: Tensor, kept: Tensor) -> Tensor:
    """Tokens [B, prefix + K, D]: `projected` patches [B, K, D] at positions `kept`, behind the prefix tokens."""
    x = model.patch_embed.norm(projected)
    # timm adds constants to the patches and puts constants before them, whatever its prefix tokens are called
    constants = model._pos_embed(x.new_zeros(1, model.patch_embed.num_patches, x.shape[-1]))
    prefix, positions = constants.split([model.num_prefix_tokens, model.patch_embed.num_patches], dim=1)
    x = x + positions[0][kept]
    # a copy by `cat` alone would change the layout, and so the order in which average pooling sums
    x = torch.cat([prefix.expand(len(x), -1, -1), x], dim=1) if model.num_prefix_tokens else x
    return model.norm_pre(x)


def sparse_forward(model: PlainViT, patches: Tensor, kept: Tensor) -> Tensor:
    """Logits [B, num_classes] of the patches alone; with all N patches in order, timm's own forward."""
    return classify(model, embed(model, patches, kept))


def classify(model: PlainViT, tokens: Tensor) -> Tensor:
    """Logits [B, num_classes] of tokens [B, prefix + K, D]."""
    return model.forward_head(model.norm(model.blocks(tokens)))


def classify_lean(model: PlainViT, tokens: Tensor) -> Tensor:
    """`classify`, equal but for rounding, with the last block computed only for the tokens that the classifier reads.

    Of that block, a dense pass needs keys and values of all tokens, and nothing else: 7% of DeiT's products go.
    """
    if model.global_pool == "avg":
        return classify(model, tokens)
    block, read = model.blocks[-1], _tokens_read(model)
    x = model.blocks[:-1](tokens)
    normed = block.norm1(x)
    x = x[:, :read]
    x = x + block.drop_path1(block.ls1(_attend(block.attn, normed[:, :read], normed)))
    x = x + block.drop_path2(block.ls2(block.mlp(block.norm2(x))))
    return model.forward_head(model.norm(x))


def _attend(attention: Attention, queries: Tensor, tokens: Tensor) -> Tensor:
    """What `attention` gives `queries` [B, Q, D], a part of its input `tokens` [B, L, D]: [B, Q, D]."""
    split = attention.num_heads * attention.head_dim
    weight, bias = attention.qkv.weight, attention.qkv.bias
    of_query, of_rest = (None, None) if bias is None else (bias[:split], bias[split:])
    query = F.linear(queries, weight[:split], of_query).unflatten(2, (attention.num_heads, -1))
    rest = F.linear(tokens, weight[split:], of_rest).unflatten(2, (2, attention.num_heads, -1))
    key, value = rest.permute(2, 0, 3, 1, 4).unbind(0)
    query, key = attention.q_norm(query.transpose(1, 2)), attention.k_norm(key)
    x = (query * attention.scale @ key.transpose(-2, -1)).softmax(-1) @ value
    return attention.proj(attention.norm(x.transpose(1, 2).flatten(2)))


def _tokens_read(model: PlainViT) -> int:
    """Prefix tokens that the classifier reads: the class token, and the distillation token where there is one."""
    return 2 if hasattr(model, "dist_token") else 1


@torch.no_grad()
def importance(model: PlainViT, patches: Tensor, kept: Tensor) -> Tensor:
    """Attention that each patch gets in the last layer, mean over heads and queries: [B, K] (section 3 of the paper).

    The queries are the prefix tokens that the classifier reads; for average pooling, all patches.
    """
    x = embed(model, patches, kept)
    for block in model.blocks[:-1]:
        x = block(x)
    attention = model.blocks[-1].attn
    batch, tokens, _ = x.shape
    qkv = attention.qkv(model.blocks[-1].norm1(x)).reshape(batch, tokens, 3, attention.num_heads, attention.head_dim)
    query, key, _ = qkv.permute(2, 0, 3, 1, 4).unbind(0)  # [B, heads, tokens, head_dim]
    query, key, prefix = attention.q_norm(query), attention.k_norm(key), model.num_prefix_tokens
    query = query[:, :, prefix:] if model.global_pool == "avg" else query[:, :, : _tokens_read(model)]
    scores = query * attention.scale @ key.transpose(-2, -1)
    return scores.float().softmax(-1).mean(dim=(1, 2))[:, prefix:]
