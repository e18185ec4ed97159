"""Another basis for the same function: norms are folded into the linears behind them, then the residual stream and the
values of attention are rotated, all in the weights.

A LayerNorm without scale and shift commutes with an orthogonal Q whose rows sum to 1: LN(x Q) = LN(x) Q. So where
whatever reads the stream does so through such a norm, Q can be taken into the weights on both sides, and no operation
is added: readers (qkv, fc1, head) become W Q, writers (patch embedding, attn.proj, fc2, class and register tokens,
positions) Q^T W. Within a head, the values and the columns of attn.proj are rotated alike, and that cancels. The model
answers as before; its weights are others, and a good Q makes rounding them hurt less. Language models are rotated so by
SliceGPT (Ashkboos et al., ICLR 2024), QuaRot (Ashkboos et al., NeurIPS 2024) and SpinQuant (Liu et al., ICLR 2025).
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from timm.layers import LayerScale, RmsNorm
from torch import Tensor, nn

from calib.parallel import ALONE, Workers, part_of
from calib.views import Views
from inversion.plainvit import PlainViT, heads_of, tokens_of

NORMS = (nn.LayerNorm, nn.RMSNorm, RmsNorm)
"""What commutes with a rotation once its scale is folded."""
SMALLEST_SCALE = 1e-6
"""Of a norm's scale, relative to its largest: what is smaller cannot be divided by."""


@dataclass(frozen=True)
class Rotations:
    """`stream` [D, D] is orthogonal with rows and columns that sum to 1, or None; `values` has, by the attention's
    name, an orthogonal matrix a head, [heads, head_dim, head_dim]. Both multiply from the right: x becomes x Q."""

    stream: Tensor | None = None
    values: dict[str, Tensor] = field(default_factory=dict)

    def tensors(self) -> dict[str, Tensor]:
        """For a file; `from_tensors` reads them."""
        return self.values | ({} if self.stream is None else {"stream": self.stream})

    @classmethod
    def from_tensors(cls, tensors: dict[str, Tensor]) -> Rotations:
        return cls(tensors.get("stream"), {name: value for name, value in tensors.items() if name != "stream"})


@torch.no_grad()
def fold(model: PlainViT) -> tuple[PlainViT, tuple[str, ...]]:
    """A copy of `model` that computes the same with every LayerScale taken into the linear before it and every norm's
    scale and shift into the linears behind it; and a sentence for each thing that could not be folded or will stand
    in the way of a rotation."""
    folded = copy.deepcopy(model)
    for block in folded.blocks:
        block.ls1 = _fold_layer_scale(block.ls1, block.attn.proj)
        block.ls2 = _fold_layer_scale(block.ls2, block.mlp.fc2)
    for norm, linears in _readers(folded):
        if isinstance(norm, NORMS):
            _fold_norm(norm, linears)
    return folded, _obstacles(folded)


@torch.no_grad()
def rotate(model: PlainViT, rotations: Rotations) -> PlainViT:
    """A copy of `model`, made by `fold`, that computes the same in the basis of `rotations`. The products are taken in
    float64."""
    rotated, device = copy.deepcopy(model), model.pos_embed.device
    for name, values in rotations.values.items():
        _rotate_values(rotated.get_submodule(name), values.to(device, torch.float64))
    if rotations.stream is not None:
        _rotate_stream(rotated, rotations.stream.to(device, torch.float64))
    return rotated


@torch.no_grad()
def centre(model: PlainViT, views: Views, workers: Workers = ALONE) -> PlainViT:
    """A copy of `model` that computes the same, in which what each norm gives has mean 0 in each channel on `views`:
    the mean leaves by the norm's shift and comes back by the bias of the linears behind it. Norms and linears without
    a place for it stay."""
    centred = copy.deepcopy(model)
    places: list[tuple[Any, list[Any]]] = [
        (norm, linears)
        for norm, linears in _readers(centred)
        if getattr(norm, "bias", None) is not None and all(linear.bias is not None for linear in linears)
    ]

    # of each norm, the sum of what it gave and how often it gave something
    seen: dict[nn.Module, Tensor] = {norm: torch.zeros(len(norm.bias) + 1).to(norm.bias).double() for norm, _ in places}

    def see(norm: nn.Module, _: Any, output: Tensor) -> None:
        rows = output.flatten(0, -2).double()
        seen[norm][:-1] += rows.sum(0)
        seen[norm][-1] += len(rows)

    hooks = [norm.register_forward_hook(see) for norm, _ in places]
    part_of(views, workers).logits(centred)
    for hook in hooks:
        hook.remove()
    for norm, linears in places:
        mean = workers.total(seen[norm])[:-1] / seen[norm][-1]
        for linear in linears:
            linear.bias.add_(linear.weight.double() @ mean)
        norm.bias.sub_(mean)
    return centred


def rotates(model: PlainViT) -> bool:
    """Whether the residual stream of `model`, made by `fold`, can be rotated."""
    ahead = (model.patch_embed.norm, model.norm_pre)
    return all(_commutes(norm) for norm in (*ahead, *(norm for norm, _ in _readers(model))))


def value_attentions(model: PlainViT) -> dict[str, Any]:
    """Each attention whose values can be rotated, by timm name: nothing may stand between them and attn.proj."""
    found = {f"blocks.{number}.attn": block.attn for number, block in enumerate(model.blocks)}
    return {name: attention for name, attention in found.items() if isinstance(attention.norm, nn.Identity)}


def _readers(model: PlainViT) -> Iterator[tuple[nn.Module, list[Any]]]:
    """Each norm behind the stream, with the linears that read what it gives."""
    for block in model.blocks:
        yield block.norm1, [block.attn.qkv]
        yield block.norm2, [block.mlp.fc1]
    last = model.fc_norm if isinstance(model.norm, nn.Identity) else model.norm
    yield last, heads_of(model)


def _writers(model: PlainViT) -> Iterator[Any]:
    """Each layer whose output is added to the stream."""
    yield model.patch_embed.proj
    for block in model.blocks:
        yield block.attn.proj
        yield block.mlp.fc2


def _fold_layer_scale(scale: nn.Module, linear: Any) -> nn.Module:
    """What stands in its place: nothing, as `linear` gives scaled outputs now."""
    if not isinstance(scale, LayerScale):
        return scale
    linear.weight.mul_(scale.gamma.unsqueeze(1))
    if linear.bias is not None:
        linear.bias.mul_(scale.gamma)
    return nn.Identity()


def _fold_norm(norm: Any, linears: list[Any]) -> None:
    """Leaves scale 1 and, where all `linears` have a bias, shift 0; else the shift stays, in units of the new scale."""
    scale: Any = norm.weight
    shift: Any = getattr(norm, "bias", None)
    if scale is None:
        return
    biased = all(linear.bias is not None for linear in linears)
    shifted = shift is not None and bool(shift.any())
    if shifted and not biased and bool((scale.abs() <= SMALLEST_SCALE * scale.abs().max()).any()):
        return
    for linear in linears:
        weight = linear.weight.double()
        if shifted and biased:
            linear.bias.copy_(linear.bias.double() + weight @ shift.double())
        linear.weight.copy_(weight * scale.double())
    if shifted:
        shift.copy_(torch.zeros_like(shift) if biased else shift.double() / scale.double())
    scale.fill_(1.0)


def _commutes(norm: nn.Module) -> bool:
    """Whether `norm`, whose shift may be rotated, does what it does in any basis: its scale is one number."""
    if isinstance(norm, nn.Identity):
        return True
    return isinstance(norm, NORMS) and (norm.weight is None or bool((norm.weight == norm.weight[0]).all()))


def _obstacles(folded: PlainViT) -> tuple[str, ...]:
    found = []
    for name in ("patch_embed.norm", "norm_pre"):
        if not _commutes(folded.get_submodule(name)):
            found.append(f"the residual stream is not rotated: {name} scales it before the first block.")
    unfolded = [norm for norm, _ in _readers(folded) if not _commutes(norm)]
    if unfolded:
        kinds = ", ".join(sorted({type(norm).__name__ for norm in unfolded}))
        found.append(f"the residual stream is not rotated: {len(unfolded)} norms ({kinds}) cannot be folded.")
    if left := len(folded.blocks) - len(value_attentions(folded)):
        found.append(f"the values of {left} blocks are not rotated: a norm stands between them and attn.proj.")
    return tuple(found)


def _rotate_values(attention: Any, rotations: Tensor) -> None:
    """Values [..., heads, head_dim] times `rotations` [heads, head_dim, head_dim], undone by attn.proj."""
    heads, size = attention.num_heads, attention.head_dim
    first = 2 * heads * size
    weight, proj = attention.qkv.weight[first:], attention.proj.weight
    rows = torch.einsum("hsi,hst->hti", weight.double().view(heads, size, -1), rotations)
    weight.copy_(rows.reshape(heads * size, -1))
    if attention.qkv.bias is not None:
        bias = attention.qkv.bias[first:]
        bias.copy_(torch.einsum("hs,hst->ht", bias.double().view(heads, size), rotations).flatten())
    columns = torch.einsum("ohs,hst->oht", proj.double().view(-1, heads, size), rotations)
    proj.copy_(columns.reshape(proj.shape))


def _rotate_stream(model: PlainViT, rotation: Tensor) -> None:
    for norm, linears in _readers(model):
        _rotate_shift(norm, rotation)
        for linear in linears:
            linear.weight.copy_(linear.weight.double() @ rotation)
    for norm in (model.patch_embed.norm, model.norm_pre):
        _rotate_shift(norm, rotation)
    for writer in _writers(model):
        weight = writer.weight  # [D, in], or [D, C, P, P] of the patch embedding
        weight.copy_((rotation.T @ weight.double().flatten(1)).view(weight.shape))
        if writer.bias is not None:
            writer.bias.copy_(writer.bias.double() @ rotation)
    for token in tokens_of(model):
        token.copy_(token.double() @ rotation)


def _rotate_shift(norm: Any, rotation: Tensor) -> None:
    shift = getattr(norm, "bias", None)
    if shift is not None:
        shift.copy_(shift.double() @ rotation)
