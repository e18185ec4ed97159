"""Which basis hurts least: rotations learned from the weights alone, so that rounding them errs least."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial

import torch
from torch import Generator, Tensor

from calib.basis import Rotations, rotates, value_attentions
from calib.layers import quantized_layers
from calib.scheme import integer_range
from inversion.plainvit import PATCH_EMBED, Module, PlainViT
from inversion.progress import Progress, quiet

RATE = 0.01
"""Of Adam, at the start of a cosine."""
CLIPS = (0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
"""Shares of a row's largest weight that are tried as its first range."""
WORK = 4e9
"""Multiplications of an update's forward pass: of larger models, each update sees a part of the rows."""
TRY = 0.1
"""How far from a row's step another is tried in each update, at most."""

Turn = Callable[[Tensor, Tensor, Tensor | None], Tensor]
"""(row numbers, Q, R) -> those rows of a weight in the basis of Q and R."""


@dataclass(frozen=True)
class Rounded:
    """How rows of one weight err in the basis of `stream` [D, D] and, where its values rotate, `values` [heads, s, s].

    `error` [k, in] is that of the rows `chosen` [k]; of value rows [heads, k, in], numbers counting within a head.
    `size` is the whole weight's sum of squares.
    """

    layer: str
    error: Tensor
    chosen: Tensor
    stream: Tensor
    values: Tensor | None
    size: Tensor


Objective = Callable[[Rounded], Tensor]
"""What a rounding costs, summed over its rows."""


def relative_error(rounded: Rounded) -> Tensor:
    """The squared error over the squared weights."""
    return rounded.error.square().sum() / rounded.size


def learn_rotations(
    folded: PlainViT,
    bits: Mapping[str, int],
    updates: int,
    seed: int = 0,
    progress: Progress = quiet,
    objective: Objective = relative_error,
) -> Rotations:
    """The rotations of `folded`, made by `calib.basis.fold`, in which rounding its weights to `bits` costs least by
    `objective`, summed over the layers; `updates` of 0 leave them random.

    No image is needed. `progress` counts updates, and tells the mean cost.
    """
    generator = Generator().manual_seed(seed)
    basis = _Basis(folded, generator)
    if not basis.skews or not updates:
        return basis.rotations()
    rows = list(_rows(folded, bits))
    work = folded.embed_dim * sum(layer.weight.numel() for layer in quantized_layers(folded).values())
    share = min(1.0, WORK / work)
    optimizer = torch.optim.Adam(basis.skews, lr=RATE)
    for update in range(updates):
        optimizer.param_groups[0]["lr"] = RATE * 0.5 * (1 + math.cos(math.pi * update / updates))
        stream, values = basis.matrices()
        error = torch.stack([part.cost(objective, stream, values, share, generator) for part in rows]).mean()
        optimizer.zero_grad()
        error.backward()
        optimizer.step()
        progress("basis", update + 1, updates, float(error.detach()))
    return basis.rotations()


class _Basis:
    """The rotations as fixed random ones times Cayley transforms of what is learned."""

    def __init__(self, model: PlainViT, generator: Generator) -> None:
        width, device = model.embed_dim, model.pos_embed.device
        self.start: dict[str, Tensor] = {}
        if rotates(model):
            self.start["stream"] = random_rotation(width - 1, generator)
        for name, attention in value_attentions(model).items():
            heads = [random_rotation(attention.head_dim, generator) for _ in range(attention.num_heads)]
            self.start[name] = torch.stack(heads)
        self.start = {name: start.to(device) for name, start in self.start.items()}
        self.near = {name: start.float() for name, start in self.start.items()}
        self.learned = {name: torch.zeros_like(start, requires_grad=True) for name, start in self.near.items()}
        self.skews = list(self.learned.values())
        self.still = torch.eye(width, device=device)

    def matrices(self) -> tuple[Tensor, dict[str, Tensor]]:
        """Q [D, D], and R [heads, head_dim, head_dim] by the attention's name, in float32."""
        turned = {name: self.near[name] @ cayley(skew) for name, skew in self.learned.items()}
        stream = turned.pop("stream", None)
        return self.still if stream is None else keep_ones(stream), turned

    def rotations(self) -> Rotations:
        """The same, orthogonal to float64's precision."""
        turned = {name: self.start[name] @ cayley(skew.detach().double()) for name, skew in self.learned.items()}
        stream = turned.pop("stream", None)
        return Rotations(None if stream is None else keep_ones(stream), turned)


class Rounder:
    """Rounds rows to nearest, and remembers the step at which each was rounded last, to begin there."""

    def __init__(self, bits: int, shape: tuple[int, ...], like: Tensor) -> None:
        """`shape` is that of all steps, on the device of `like`."""
        self.low, self.high = integer_range(bits)
        self.steps = like.new_zeros(shape)

    @torch.no_grad()
    def round(self, rows: Tensor, chosen: Tensor, generator: Generator) -> Tensor:
        """`rows` [..., k, columns], of the numbers `chosen` [k] below the last of `shape`, as integers times steps."""
        rounded, steps = self._fit(rows, self._steps(rows, self.steps[..., chosen], generator))
        self.steps[..., chosen] = steps
        return rounded

    def _steps(self, rows: Tensor, steps: Tensor, generator: Generator) -> Tensor:
        """The better of the steps that rows had and ones a little larger or smaller; for new rows, the best of some."""
        if not bool((steps > 0).all()):
            largest = rows.abs().amax(-1).clamp(min=1e-12) / self.high
            tried = [largest * clip for clip in CLIPS]
        else:
            tried = [steps, steps * (1 + TRY * (2 * torch.rand((), generator=generator).item() - 1))]
        errors = torch.stack([(rows - self._fit(rows, each)[0]).square().sum(-1) for each in tried])
        return torch.stack(tried).gather(0, errors.argmin(0, keepdim=True)).squeeze(0)

    def _fit(self, rows: Tensor, steps: Tensor) -> tuple[Tensor, Tensor]:
        """`rows` rounded at `steps`, which are then fitted to the integers by least squares; and the fitted steps."""
        integers = (rows / steps.unsqueeze(-1)).round_().clamp_(self.low, self.high)
        fitted = (rows * integers).sum(-1) / integers.square().sum(-1).clamp(min=1)
        fitted = torch.where(fitted > 0, fitted, steps)
        return integers * fitted.unsqueeze(-1), fitted


class _Rows:
    """The rows of one layer's weight, of which each update takes some."""

    def __init__(
        self, layer: str, turn: Turn, weight: Tensor, bits: int, values: str | None, shape: tuple[int, ...]
    ) -> None:
        """`turn` gives rows [..., k, columns] of k row numbers below the last of `shape`, the shape of all steps."""
        self.layer, self.turn, self.values, self.count = layer, turn, values, shape[-1]
        self.rounder = Rounder(bits, shape, weight)
        self.size = weight.square().sum()

    def cost(
        self, objective: Objective, stream: Tensor, values: Mapping[str, Tensor], share: float, generator: Generator
    ) -> Tensor:
        """What rounding costs, of a `share` of the rows as if of all.

        The gradient is taken with integers and steps held fixed: those fit best, so it is the true one between flips.
        """
        taken = max(1, round(share * self.count))
        chosen = torch.randperm(self.count, generator=generator)[:taken].to(stream.device)
        turned = values[self.values] if self.values else None
        rows = self.turn(chosen, stream, turned)
        error = rows - self.rounder.round(rows, chosen, generator)
        return objective(Rounded(self.layer, error, chosen, stream, turned, self.size)) * (self.count / taken)


def _rows(model: PlainViT, bits: Mapping[str, int]) -> Iterator[_Rows]:
    """Of each layer that touches the stream; of a qkv with values that rotate, in two parts."""
    attentions = value_attentions(model)
    for name, layer in quantized_layers(model).items():
        weight, owner = layer.weight.detach().float().flatten(1), name.rpartition(".")[0]
        if name.endswith(".attn.qkv") and owner in attentions:
            heads, size = attentions[owner].num_heads, attentions[owner].head_dim
            plain, values = weight[: 2 * heads * size], weight[2 * heads * size :].view(heads, size, -1)
            yield _Rows(name, partial(_read, plain), plain, bits[name], None, plain.shape[:1])
            yield _Rows(name, partial(_read_values, values), values, bits[name], owner, values.shape[:2])
        elif name.endswith(".attn.proj") and owner in attentions:
            heads, size = attentions[owner].num_heads, attentions[owner].head_dim
            written = weight.view(-1, heads, size)
            yield _Rows(name, partial(_write_values, written), weight, bits[name], owner, weight.shape[:1])
        elif name.endswith((".attn.proj", ".mlp.fc2")) or name == PATCH_EMBED:
            yield _Rows(name, partial(_write, weight), weight, bits[name], None, weight.shape[:1])
        else:
            yield _Rows(name, partial(_read, weight), weight, bits[name], None, weight.shape[:1])


def _read(weight: Tensor, chosen: Tensor, stream: Tensor, _: Tensor | None) -> Tensor:
    """W Q: [k, D] of `weight` [out, D]."""
    return weight[chosen] @ stream


def _read_values(weight: Tensor, chosen: Tensor, stream: Tensor, values: Tensor | None) -> Tensor:
    """R^T W Q in each head: [heads, k, D] of `weight` [heads, head_dim, D]."""
    assert values is not None
    return values[..., chosen].mT @ weight @ stream


def _write(weight: Tensor, chosen: Tensor, stream: Tensor, _: Tensor | None) -> Tensor:
    """Q^T W: [k, in] of `weight` [D, in]."""
    return stream[:, chosen].T @ weight


def _write_values(weight: Tensor, chosen: Tensor, stream: Tensor, values: Tensor | None) -> Tensor:
    """Q^T W R in each head: [k, heads * head_dim] of `weight` [D, heads, head_dim]."""
    assert values is not None
    written = (stream[:, chosen].T @ weight.flatten(1)).unflatten(1, weight.shape[1:])
    return torch.einsum("khs,hst->kht", written, values).flatten(1)


@torch.no_grad()
def rounding_error(model: Module, bits: Mapping[str, int]) -> float:
    """Squared error of rounding each layer's weight to nearest, relative to its squared size; mean over the layers."""
    errors = []
    for name, layer in quantized_layers(model).items():
        weight = layer.weight.detach().float().flatten(1)
        everything = torch.arange(len(weight), device=weight.device)
        rounded = Rounder(bits[name], weight.shape[:1], weight).round(weight, everything, Generator())
        errors.append(float((weight - rounded).square().sum() / weight.square().sum()))
    return sum(errors) / len(errors)


def random_rotation(size: int, generator: Generator) -> Tensor:
    """Orthogonal [size, size] (float64), drawn evenly."""
    q, r = torch.linalg.qr(torch.randn(size, size, generator=generator, dtype=torch.float64))
    return q * r.diagonal().sign()


def keep_ones(rotation: Tensor) -> Tensor:
    """`rotation` [D-1, D-1] of what is orthogonal to the vector of ones, as [D, D] whose rows and columns sum to 1."""
    size = len(rotation) + 1
    normal = torch.full((size,), -1 / math.sqrt(size), dtype=torch.float64)
    normal[0] += 1
    normal = (normal / normal.norm()).to(rotation)
    # on both sides, the Householder reflection that takes the first axis to the direction of all ones
    turned = torch.block_diag(rotation.new_ones(1, 1), rotation)
    turned = turned - 2 * normal.outer(normal @ turned)
    return turned - 2 * (turned @ normal).outer(normal)


def cayley(skew: Tensor) -> Tensor:
    """(I + S)^-1 (I - S) of S = skew - skew^T, [..., n, n]: orthogonal."""
    eye = torch.eye(skew.shape[-1]).to(skew)
    generator = skew - skew.mT
    return torch.linalg.solve(eye + generator, eye - generator)
