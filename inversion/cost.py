"""What inversion costs: Theorem 1 of the paper, and FLOPs of an iteration by formula, which tests hold to torch's
own counter.

A FLOP is an addition or a multiplication, so a multiply-add is two. Theorem 1 counts multiply-adds of a forward pass.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from fractions import Fraction

from torch import nn

from inversion.errors import InputError
from inversion.plainvit import Module, PlainViT, heads_of
from inversion.schedule import Stage


@dataclass(frozen=True)
class Workload:
    """Theorem 1's quantities: N `patches` of `width` d in L `layers`, for I `images` and T `iterations`."""

    patches: int
    width: int
    layers: int = 1
    images: int = 1
    iterations: int = 1

    def __post_init__(self) -> None:
        _require_positive(self)


@dataclass(frozen=True)
class Cost:
    """Multiply-adds of self-attention (SA) and of the feed-forward network (FFN), exact."""

    attention: Fraction
    ffn: Fraction

    def __add__(self, other: Cost) -> Cost:
        return Cost(self.attention + other.attention, self.ffn + other.ffn)

    def __mul__(self, times: int | Fraction) -> Cost:
        return Cost(self.attention * times, self.ffn * times)


def layer_cost(patches: int | Fraction, width: int) -> Cost:
    """One layer on one image: 4Nd^2 + 2N^2d for SA, 8Nd^2 for the FFN (section 4.3)."""
    n = Fraction(patches)
    return Cost(attention=4 * n * width**2 + 2 * n**2 * width, ffn=8 * n * width**2)


def dmi_cost(work: Workload) -> Cost:
    """Eqs. 3 and 4: every layer, image and iteration with all N patches."""
    return layer_cost(work.patches, work.width) * _repeats(work)


def smi_cost(work: Workload, division_factor: int) -> Cost:
    """SMI* of appendix F: DMI with N/v patches from the first iteration on, as if pruning were free and immediate."""
    _require_division_factor(division_factor, at_least=1)
    return layer_cost(Fraction(work.patches, division_factor), work.width) * _repeats(work)


def pri_cost(work: Workload, division_factor: int) -> Cost:
    """PRI of appendix F, summed over v stages: N_k = N (1 - (k-1)/v) patches, I/v trajectories, T/v iterations.

    N/v, T/v and I/v are not rounded here; `inversion.schedule` has the stages that really run.
    """
    _require_division_factor(division_factor, at_least=1)
    total, share = Cost(Fraction(0), Fraction(0)), Fraction(1, division_factor)
    for stage in range(division_factor):
        active = work.patches * (1 - stage * share)
        total = total + layer_cost(active, work.width) * (_repeats(work) * share**2)
    return total


def pri_ffn_ratio(division_factor: int) -> Fraction:
    """FFN cost of PRI over that of SMI*: (v+1) / 2v, whatever N and d (appendix F)."""
    _require_division_factor(division_factor, at_least=1)
    return Fraction(division_factor + 1, 2 * division_factor)


def patch_bound(division_factor: int) -> Fraction:
    """N/d below which PRI's SA costs less than SMI*'s: 6v(v-1) / (2v^2 - 3v + 1), which falls from 4 at v = 2 to 3."""
    v = division_factor
    _require_division_factor(v, at_least=2)
    return Fraction(6 * v * (v - 1), 2 * v**2 - 3 * v + 1)


@dataclass(frozen=True)
class Geometry:
    """The sizes of a plain Vision Transformer that its FLOPs depend on.

    - `patches`          N of the whole grid, without prefix tokens
    - `prefix`           class, distillation and register tokens
    - `pixels_per_patch` C*P*P
    - `attention_width`  heads x width of a head
    - `mlp_weights`      weights of one block's MLP
    - `head_weights`     weights of all classifiers
    - `tokens_read`      prefix tokens that classifiers read; 0: the average of all
    """

    patches: int
    prefix: int
    pixels_per_patch: int
    width: int
    depth: int
    attention_width: int
    mlp_weights: int
    head_weights: int
    tokens_read: int

    def __post_init__(self) -> None:
        _require_positive(self, or_zero=("prefix", "tokens_read"))

    @classmethod
    def of(cls, model: PlainViT) -> Geometry:
        block, proj = model.blocks[0], model.patch_embed.proj
        heads = heads_of(model)
        return cls(
            patches=model.patch_embed.num_patches,
            prefix=model.num_prefix_tokens,
            pixels_per_patch=proj.weight[0].numel(),
            width=model.embed_dim,
            depth=len(model.blocks),
            attention_width=block.attn.num_heads * block.attn.head_dim,
            mlp_weights=_linear_weights([block.mlp]),
            head_weights=_linear_weights(heads),
            tokens_read=0 if model.global_pool == "avg" else len(heads),
        )


@dataclass(frozen=True)
class Products:
    """FLOPs of the matrix products of one forward pass. Norms, softmax, GELU, additions and the like are left out.

    - `projection` of pixels to tokens
    - `linear`     weights times tokens: qkv, proj, MLP, classifiers
    - `attention`  queries times keys, and their softmax times values: both factors depend on the pixels
    """

    projection: int
    linear: int
    attention: int

    @property
    def total(self) -> int:
        return self.projection + self.linear + self.attention


@dataclass(frozen=True)
class Flops:
    """FLOPs of one iteration of a batch."""

    forward: int
    backward: int

    @property
    def total(self) -> int:
        return self.forward + self.backward


def forward_products(model: Geometry, active: int, batch: int = 1, *, lean: bool = False) -> Products:
    """Products of one forward pass of `batch` trajectories with `active` patches each.

    `lean` counts what `inversion.loop` runs: of the last block, keys and values of all tokens, and the rest only for
    tokens that a classifier reads.
    """
    _require_active(model, active, batch)
    tokens, width, inner = model.prefix + active, model.width, model.attention_width
    last = model.tokens_read if lean and model.tokens_read else tokens  # tokens for which the last block is whole
    passes = (model.depth - 1) * tokens + last
    linear = passes * (2 * width * inner + model.mlp_weights)  # queries, proj and MLP
    linear += model.depth * tokens * 2 * width * inner  # keys and values
    return Products(
        projection=2 * batch * active * model.pixels_per_patch * width,
        linear=2 * batch * (linear + model.head_weights),
        attention=2 * batch * passes * 2 * tokens * inner,
    )


def iteration_flops(model: Geometry, active: int, batch: int = 1, *, lean: bool = False) -> Flops:
    """FLOPs of one inversion iteration: the teacher forward, and backward to the pixels alone.

    Backward, a product with weights costs one more, since weights get no gradient; a product of attention costs two
    more, since both its factors do. So an iteration is a little over two forward passes: 2.14 for DeiT-Tiny with all
    its patches. Left out: total variation and Adam, which have no matrix product, and the scoring of patches, one
    forward pass a stage.
    """
    products = forward_products(model, active, batch, lean=lean)
    return Flops(products.total, products.projection + products.linear + 2 * products.attention)


def mean_iteration_flops(model: Geometry, stages: Sequence[Stage], batch: int = 1, *, lean: bool = False) -> float:
    """FLOPs of an iteration on average over a trajectory's `stages` (`inversion.inverter.plan`).

    `batch` counts trajectories: `len(job.shards()[0])`, which is images / v for PRI.
    """
    total = sum(stage.iterations * iteration_flops(model, stage.active, batch, lean=lean).total for stage in stages)
    return total / _iterations(stages)


def paper_iteration_flops(model: Geometry, stages: Sequence[Stage], batch: int = 1) -> float:
    """FLOPs of an iteration as Tables 2 and A1 count them, on average over `stages`; `batch` counts trajectories.

    Found by fitting the 21 figures of Table A1, which agree within 0.3% and their rounding: the products that
    `torch.profiler` with `with_flops=True` sees in a training iteration.

    - 2 FLOPs a multiply-add, T = 4000, 128 images an iteration: 128, 64, 32 and 18 trajectories for v = 1, 2, 4, 7
    - forward + 2 x forward of blocks and classifier: weights get gradients too, which inversion has no use for
    - attention unfused, its softmax's two products included, once forward and twice backward
    - the projection of all N patches in every stage, also those that left, and forward only: the profiler knows no
      formula for a convolution's backward pass

    What is missing of the published figures, under 0.3%, is additions and multiplications of single elements, which
    the profiler counts as well; and at v = 7, where T is no multiple of v, 0.06% for stages that seem to end at T k / v
    rounded to the nearest iteration. DeiT-Small's DMI is printed as 3524.20 GFLOP, 0.6% above this count, while its
    other six figures lead to 3504.2: a misprint, it seems.
    """
    total = 0
    for stage in stages:
        products = forward_products(model, stage.active, batch)
        total += stage.iterations * 3 * (products.linear + products.attention)
    return total / _iterations(stages) + forward_products(model, model.patches, batch).projection


def _linear_weights(modules: Iterable[Module]) -> int:
    return sum(inner.weight.numel() for module in modules for inner in module.modules() if isinstance(inner, nn.Linear))


def _repeats(work: Workload) -> int:
    return work.layers * work.images * work.iterations


def _iterations(stages: Sequence[Stage]) -> int:
    if not stages:
        raise InputError("no stages have no average: take those of inversion.schedule.")
    return sum(stage.iterations for stage in stages)


def _require_active(model: Geometry, active: int, batch: int) -> None:
    if not 1 <= active <= model.patches:
        raise InputError(f"{active} active patches are not a part of {model.patches}: take 1 to {model.patches}.")
    if batch < 1:
        raise InputError(f"a batch of {batch} trajectories computes nothing: take at least 1.")


def _require_division_factor(v: int, at_least: int) -> None:
    if v < at_least:
        raise InputError(f"division factor {v} is out of Theorem 1's range: take at least {at_least}.")


def _require_positive(sizes: Workload | Geometry, or_zero: tuple[str, ...] = ()) -> None:
    for field in fields(sizes):
        least, value = int(field.name not in or_zero), getattr(sizes, field.name)
        if value < least:
            raise InputError(f"{field.name} must be at least {least}, not {value}.")
