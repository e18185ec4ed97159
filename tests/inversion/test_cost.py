"""What inversion costs: Theorem 1, the formula of an iteration against torch's counter, and the paper's Table A1."""

import copy
import dataclasses
import re
from fractions import Fraction
from functools import cache
from typing import Any

import pytest
import timm
import torch
from hypothesis import given
from hypothesis import strategies as st
from timm.layers import Attention, SwiGLU
from timm.models.deit import VisionTransformerDistilled
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

from inversion.cost import (
    Flops,
    Geometry,
    Workload,
    dmi_cost,
    forward_products,
    iteration_flops,
    layer_cost,
    mean_iteration_flops,
    paper_iteration_flops,
    patch_bound,
    pri_cost,
    pri_ffn_ratio,
    smi_cost,
)
from inversion.errors import InputError
from inversion.inverter import Inverter
from inversion.job import Inversion
from inversion.plainvit import PlainViT
from inversion.schedule import Stage, schedule
from inversion.sparse import classify_lean, embed_linear, sparse_forward
from inversion.teacher import digits_vit, load_teacher
from pipeline.reproduce.paper import METHODS, TEACHERS, efficiency

FACTORS = st.integers(min_value=2, max_value=40)
SIZES = st.integers(min_value=1, max_value=2000)

# ---------------------------------------------------------------- Theorem 1


@given(patches=SIZES, width=SIZES, v=FACTORS)
def test_pri_is_cheapest_where_the_theorem_says(patches: int, width: int, v: int) -> None:
    """For N < 3d both modules cost PRI < SMI* < DMI; the FFN always does."""
    work = Workload(patches, width, layers=12, images=128, iterations=4000)
    dmi, smi, pri = dmi_cost(work), smi_cost(work, v), pri_cost(work, v)
    assert pri.ffn < smi.ffn < dmi.ffn
    assert smi.attention < dmi.attention
    if patches < 3 * width:
        assert pri.attention < smi.attention


@given(v=FACTORS, scale=st.integers(min_value=1, max_value=100))
def test_the_bound_is_where_attention_costs_the_same(v: int, scale: int) -> None:
    """At N = bound x d PRI's SA costs exactly SMI*'s; one patch less it is cheaper, one more it is dearer."""
    bound = patch_bound(v)
    width = bound.denominator * scale
    patches = int(bound * width)
    margins = []
    for count in (patches - 1, patches, patches + 1):
        work = Workload(count, width)
        margins.append(pri_cost(work, v).attention - smi_cost(work, v).attention)
    assert margins[0] < 0 == margins[1] < margins[2]


def test_bounds_are_the_papers() -> None:
    """4 at v = 2, 3.6 at v = 3, falling to 3 (appendix F)."""
    assert patch_bound(2) == 4
    assert patch_bound(3) == Fraction(36, 10)
    bounds = [patch_bound(v) for v in range(2, 200)]
    assert bounds == sorted(bounds, reverse=True)
    assert len(set(bounds)) == len(bounds)
    assert 3 < patch_bound(10**9) < 3 + 1e-8


@given(
    work=st.builds(Workload, SIZES, SIZES, layers=st.integers(1, 48), images=SIZES, iterations=st.integers(1, 10**5)),
    v=st.integers(min_value=1, max_value=40),
)
def test_the_sum_over_stages_is_the_closed_form(work: Workload, v: int) -> None:
    """Summed stage by stage, PRI costs exactly what appendix F's last equations say, for integers of any size."""
    n, d = work.patches, work.width
    scale = Fraction(work.layers * work.images * work.iterations, v**2)
    pri = pri_cost(work, v)
    first, second = Fraction(v * (v + 1), 2 * v), Fraction(v * (v + 1) * (2 * v + 1), 6 * v**2)
    assert pri.attention == scale * (4 * n * d**2 * first + 2 * n**2 * d * second)
    assert pri.ffn == scale * 8 * n * d**2 * first


@given(patches=SIZES, width=SIZES, v=FACTORS)
def test_ratios_of_the_feed_forward_network(patches: int, width: int, v: int) -> None:
    """DMI / SMI* is v and PRI / SMI* is (v+1) / 2v, whatever N and d."""
    work = Workload(patches, width)
    assert dmi_cost(work).ffn / smi_cost(work, v).ffn == v
    assert pri_cost(work, v).ffn / smi_cost(work, v).ffn == pri_ffn_ratio(v) == Fraction(v + 1, 2 * v)


def test_a_quarter_less_at_two() -> None:
    """At v = 2 PRI's FFN is 25% cheaper than SMI*'s; the gain nears a half."""
    assert pri_ffn_ratio(2) == Fraction(3, 4)
    assert 0.5 < pri_ffn_ratio(10**6) < 0.500001


@given(patches=SIZES, width=SIZES)
def test_one_stage_is_dense(patches: int, width: int) -> None:
    """With division factor 1, PRI and SMI* are DMI."""
    work = Workload(patches, width, 3, 5, 7)
    assert pri_cost(work, 1) == smi_cost(work, 1) == dmi_cost(work)


@pytest.mark.parametrize("name", ["deit_tiny", "deit_small", "deit_base"])
def test_the_theorem_counts_the_blocks_multiply_adds(name: str) -> None:
    """4Nd^2 + 2N^2d and 8Nd^2 a layer are the multiply-adds of a DeiT's blocks, with N all tokens."""
    geometry = Geometry.of(model_of(name))
    products = forward_products(geometry, active=196)
    blocks = products.total - products.projection - 2 * geometry.head_weights
    layer = layer_cost(197, geometry.width)
    assert 2 * 12 * (layer.attention + layer.ffn) == blocks


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Workload(0, 192), "patches must be at least 1, not 0."),
        (lambda: Workload(196, 192, iterations=-1), "iterations must be at least 1, not -1."),
        (lambda: pri_cost(Workload(196, 192), 0), "division factor 0 is out of Theorem 1's range: take at least 1."),
        (lambda: smi_cost(Workload(196, 192), 0), "division factor 0 is out of Theorem 1's range: take at least 1."),
        (lambda: pri_ffn_ratio(-2), "division factor -2 is out of Theorem 1's range: take at least 1."),
        (lambda: patch_bound(1), "division factor 1 is out of Theorem 1's range: take at least 2."),
        (lambda: iteration_flops(DIGITS, 65), "65 active patches are not a part of 64: take 1 to 64."),
        (lambda: iteration_flops(DIGITS, 0), "0 active patches are not a part of 64: take 1 to 64."),
        (lambda: iteration_flops(DIGITS, 64, 0), "a batch of 0 trajectories computes nothing: take at least 1."),
        (lambda: mean_iteration_flops(DIGITS, []), "no stages have no average: take those of inversion.schedule."),
        (lambda: dataclasses.replace(DIGITS, prefix=-1), "prefix must be at least 0, not -1."),
        (lambda: dataclasses.replace(DIGITS, depth=0), "depth must be at least 1, not 0."),
    ],
)
def test_impossible_sizes_are_refused(make: object, message: str) -> None:
    """One sentence names the value and the limit."""
    with pytest.raises(InputError, match=f"^{re.escape(message)}$"):
        make()


# ---------------------------------------------------------------- formula and counter


class WideHeads(Attention):
    """Heads that are together wider than the tokens."""

    def __init__(self, dim: int, num_heads: int, **options: object) -> None:
        super().__init__(dim, num_heads, attn_head_dim=24, **options)


DIGITS: Geometry = Geometry.of(digits_vit())


def count_flops(model: PlainViT, active: int, batch: int = 1, *, lean: bool = False) -> Flops:
    """`iteration_flops` counted by torch: its `FlopCounterMode` around `sparse_forward` and the gradient of the pixels.

    It runs on a copy without numbers (device `meta`), so that any size takes about a second, and with attention
    unfused: of a fused kernel, torch 2.14 counts nothing at all on a CPU, and on CUDA a backward pass of 2.5 times the
    forward one (flash attention computes the scores again), where the mathematics takes 2.
    """
    ghost = _without_numbers(model)
    patches = torch.empty(batch, active, model.patch_embed.proj.weight[0].numel(), device="meta", requires_grad=True)
    kept = torch.empty(batch, active, dtype=torch.long, device="meta")
    with FlopCounterMode(display=False) as forward:
        logits = _lean_forward(ghost, patches, kept) if lean else sparse_forward(ghost, patches, kept)
    with FlopCounterMode(display=False) as backward:
        torch.autograd.grad(logits.sum(), patches)
    return Flops(forward.get_total_flops(), backward.get_total_flops())


def _lean_forward(model: PlainViT, patches: Tensor, kept: Tensor) -> Tensor:
    return classify_lean(model, embed_linear(model, patches, kept))


def _without_numbers(model: PlainViT) -> PlainViT:
    """A frozen float32 copy on device `meta`, attention unfused, made without copying any weight."""
    ghosts: dict[int, Tensor] = {}
    for parameter in model.parameters():
        ghosts[id(parameter)] = nn.Parameter(torch.empty_like(parameter, device="meta").float(), requires_grad=False)
    for buffer in model.buffers():
        ghosts[id(buffer)] = buffer.to("meta")
    copied = copy.deepcopy(model, ghosts)
    for block in copied.blocks:
        block.attn.fused_attn = False
    return copied


FAMILIES: dict[str, dict[str, object]] = {
    "distilled": {"cls": VisionTransformerDistilled},
    "registers": {"reg_tokens": 3},
    "average pooling": {"global_pool": "avg", "class_token": False},
    "average pooling, class token": {"global_pool": "avg"},
    "deit3": {"no_embed_class": True, "init_values": 0.1},
    "clip": {"pre_norm": True, "norm_layer": nn.LayerNorm, "qkv_bias": False},
    "normalised queries": {"qk_norm": True},
    "wide heads": {"attn_layer": WideHeads},
    "gated mlp": {"mlp_layer": SwiGLU},
    "rectangular patches": {"img_size": (32, 24), "patch_size": (8, 4), "in_chans": 3},
    "one block": {"depth": 1},
}


@cache
def model_of(name: str) -> VisionTransformer:
    """A teacher's architecture, without numbers but for digits_vit."""
    if name == "digits_vit":
        return digits_vit()
    if name in FAMILIES:
        options = dict(FAMILIES[name])
        cls = options.pop("cls", VisionTransformer)
        shape = {"img_size": 32, "patch_size": 8, "in_chans": 1, "num_classes": 7, "embed_dim": 32, "num_heads": 2}
        assert callable(cls)
        model = cls(**{**shape, "depth": 2, **options})
        assert isinstance(model, VisionTransformer)
        return model
    with torch.device("meta"):
        return timm.create_model(f"{name}_patch16_224")


@pytest.mark.parametrize("lean", [False, True])
@pytest.mark.parametrize(
    ("name", "active"),
    [("digits_vit", 64), ("digits_vit", 17), ("digits_vit", 1), ("deit_tiny", 196), ("deit_tiny", 49),
     ("deit_small", 147), ("deit_small", 26), ("deit_base", 98), *((family, 5) for family in FAMILIES)],
)  # fmt: skip
def test_formula_and_counter_agree(name: str, active: int, lean: bool) -> None:
    """Forward and backward apart, the formula is what torch counts in the pass itself, exactly."""
    model = model_of(name)
    counted = count_flops(model, active, batch=3, lean=lean)
    assert iteration_flops(Geometry.of(model), active, batch=3, lean=lean) == counted
    assert 0 < counted.forward <= counted.backward < 2 * counted.forward


def test_the_real_update_costs_what_the_formula_says() -> None:
    """What torch counts in `Loop.step`, total variation and Adam included, is the lean formula, stage after stage."""
    teacher = load_teacher("digits_vit")
    for block in teacher.model.blocks:
        block.attn.fused_attn = False
    job = Inversion(images=12, batch=12, iterations=8, division_factor=4, precision="float32")
    inverter = Inverter(teacher, job)
    loop, counts = inverter.loop(0), []
    for stage in inverter.stages:
        with FlopCounterMode(display=False) as counter:
            loop.step()
        counts.append(counter.get_total_flops())
        if stage is not inverter.stages[-1]:
            loop.detach(stage.leave)
    batch = len(job.shards()[0])
    assert counts == [iteration_flops(DIGITS, stage.active, batch, lean=True).total for stage in inverter.stages]
    assert sum(counts) / 4 == mean_iteration_flops(DIGITS, inverter.stages, batch, lean=True)


def test_the_mean_weighs_stages_by_their_iterations() -> None:
    """A stage three times as long counts three times."""
    stages = [Stage(30, 64, 48), Stage(10, 16, 16)]
    dense, sparse = (iteration_flops(DIGITS, active, 2).total for active in (64, 16))
    assert mean_iteration_flops(DIGITS, stages, 2) == (3 * dense + sparse) / 4


def test_an_iteration_is_little_over_two_forward_passes() -> None:
    """Weights need no gradient, so only attention costs more than its forward pass once again: 2.14 for DeiT-Tiny."""
    geometry = Geometry.of(model_of("deit_tiny"))
    forward = forward_products(geometry, 196).total
    assert iteration_flops(geometry, 196).total / forward == pytest.approx(2.143, abs=0.001)
    assert iteration_flops(geometry, 196, lean=True).total / forward == pytest.approx(1.992, abs=0.001)


def test_torch_counts_fused_attention_otherwise() -> None:
    """Why attention is counted unfused: torch takes a fused backward pass for 2.5 forward ones, where ours takes 2."""
    shape = (1, 3, 17, 32)
    assert sdpa_backward_flop_count(shape, shape, shape, shape) == 2.5 * sdpa_flop_count(shape, shape, shape)
    products = forward_products(DIGITS, 16)
    assert products.attention == 6 * sdpa_flop_count(shape, shape, shape)
    count = count_flops(digits_vit(), 16)
    assert count.backward - count.forward == products.attention


# ---------------------------------------------------------------- the paper's Table A1

MISPRINT = ("deit_small", "dmi")


def stages_of(method: str) -> tuple[list[Stage], int]:
    """Stages and trajectories of one of Table A1's columns: 196 patches, T = 4000, 128 images an iteration."""
    kind: Any
    kind, _, level = method.partition("_")
    v = int(level[1:]) if kind == "pri" else 1
    job = Inversion(kind, iterations=4000, division_factor=v, sparsity=int(level) if kind == "smi" else 76)
    return schedule(job, 196), 128 // v


def published(teacher: str, method: str) -> tuple[float, float]:
    """FLOPs of an iteration as printed, and half a unit of the last printed digit."""
    table = efficiency(teacher)
    assert table is not None
    return table[method].flops, 5e9 if teacher == "deit_base" else 5e6


@pytest.mark.parametrize(
    ("teacher", "method"),
    [(teacher, method) for teacher in TEACHERS for method in METHODS if (teacher, method) != MISPRINT],
)
def test_table_a1_is_reproduced(teacher: str, method: str) -> None:
    """Counted as the paper counts, 20 of Table A1's 21 figures come out: additions and the like, which are left out
    here, make them up to 0.3% larger, and they are printed with two digits or in tens of GFLOP."""
    ours = paper_iteration_flops(Geometry.of(model_of(teacher)), *stages_of(method))
    theirs, rounding = published(teacher, method)
    assert ours - rounding < theirs < 1.003 * ours + rounding


def test_the_one_figure_that_differs() -> None:
    """DeiT-Small's DMI, 3524.20, is 0.62% above the count; 3504.20 would be 0.05% above it, as its neighbours are."""
    geometry = Geometry.of(model_of("deit_small"))
    ours = paper_iteration_flops(geometry, *stages_of("dmi"))
    assert published(*MISPRINT)[0] / ours - 1 == pytest.approx(0.0062, abs=1e-4)
    neighbours = []
    for method in ("smi_50", "smi_76", "pri_v2", "pri_v4"):
        neighbours.append(published("deit_small", method)[0] / paper_iteration_flops(geometry, *stages_of(method)) - 1)
    assert all(0.0004 < excess < 0.0007 for excess in neighbours)
    assert 0.0004 < 3504.20e9 / ours - 1 < 0.0007


def test_the_papers_convention_is_torch_profilers() -> None:
    """Of a training iteration with unfused attention, the profiler sees exactly the products that are counted here."""
    model = digits_vit()
    for block in model.blocks:
        block.attn.fused_attn = False
    images = torch.zeros(2, 1, 32, 32, requires_grad=True)
    with profile(activities=[ProfilerActivity.CPU], with_flops=True) as profiled:
        model(images).sum().backward()
    seen = {event.key: event.flops for event in profiled.key_averages() if event.flops}
    products = {f"aten::{name}" for name in ("conv2d", "addmm", "mm", "bmm")}
    assert products < seen.keys() <= products | {"aten::add", "aten::mul"}
    dense = paper_iteration_flops(DIGITS, [Stage(1, 64, 64)], batch=2)
    assert sum(seen[name] for name in products) == dense
    assert 0 < seen["aten::add"] + seen["aten::mul"] < 0.01 * dense


@pytest.mark.parametrize(("teacher", "share"), [("deit_tiny", 0.725), ("deit_small", 0.698), ("deit_base", 0.683)])
def test_an_iteration_is_two_thirds_of_the_papers(teacher: str, share: float) -> None:
    """Products with weights are forward + backward here and forward + 2 x forward there: two thirds, exactly.

    Attention costs the same in both, and the projection's backward pass is not counted there: so DMI as a whole is a
    little more than two thirds, the less attention the nearer.
    """
    geometry = Geometry.of(model_of(teacher))
    stages, batch = stages_of("dmi")
    products = forward_products(geometry, 196, batch)
    ours, theirs = mean_iteration_flops(geometry, stages, batch), paper_iteration_flops(geometry, stages, batch)
    weights_here = ours - 3 * products.attention - 2 * products.projection
    weights_there = theirs - 3 * products.attention - products.projection
    assert 3 * weights_here == 2 * weights_there == 6 * products.linear
    assert ours / theirs == pytest.approx(share, abs=0.001)
