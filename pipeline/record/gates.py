"""Gates: what must hold of a run. A rate or mean is held to the bound of its 95% interval, so that few pictures prove
little. Agreement, top-1 and its drop are percent points in a gate, value and limit; KL is in nats, the rest are shares,
ratios and counts.

How to add a gate:

1. Here, write a rule: a function of what was `Measured` and of the limits that yields `at_least` or `at_most` of a
   name, a value and a limit. A limit of None makes no gate.
2. Put it into `RULES`, where it is to stand in reports. The table on screen, report.html, junit.xml, the exit code and
   manifest.json take every gate from there.
3. A limit that a recipe may set is a value of `Validation` in pipeline/recipe/recipe.py, and one of its `limits`; any
   other is a constant here.

So a gate on what is measured takes this file, and recipe.py where its limit can be set. What nothing measures yet is a
value of `Measured`, which pipeline/judge/validation.py fills.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from export.edge.compare import Comparison
from pipeline.record.proof import Gate, Number

ONNX, FLOAT, GRAPH, ORT_FILE = "onnxruntime", "float", "engine graph", "ort_file"
FLOAT_KL = 1e-3
"""Nats by which the float file may differ from its teacher: it is the same function."""
SURE = 2 / 3
"""Share of its own mean confidence that the teacher's top-1 must reach on real pictures: less is no badly calibrated
teacher, but one that sees other labels or other pixels than its own."""
FEW = 100
"""Pictures below which a verdict carries a warning."""

Limits = Mapping[str, float | None]


@dataclass(frozen=True)
class Measured:
    """What gates may ask of. Comparisons are with the teacher, by the model's name.

    - `synthetic`       on all synthetic pictures together; `real` on labelled ones, where there are some
    - `against_torch`   of the file with the torch module that it was made from
    - `integer_layers`, `exact_layers`  how many layers' weights fit their bits and how many are torch's, of how many
    - `coverage`        share of a runtime's products that run on integers, by what its gate's name ends with
    - `latency_ratios`  quantized to float, at each batch and number of threads, by what its gate's name ends with
    - `engine_ratios`   what an engine surely takes of the FP16 engine's time, by what its gate's name ends with
    """

    synthetic: Mapping[str, Comparison]
    real: Mapping[str, Comparison] = field(default_factory=dict)
    against_torch: Comparison | None = None
    integer_layers: tuple[int, int] | None = None
    exact_layers: tuple[int, int] | None = None
    coverage: Mapping[str, float] = field(default_factory=dict)
    latency_ratios: Mapping[str, Sequence[float]] = field(default_factory=dict)
    engine_ratios: Mapping[str, float] = field(default_factory=dict)


Rule = Callable[[Measured, Limits], Iterable[Gate]]


def gates_of(measured: Measured, limits: Limits) -> tuple[Gate, ...]:
    """Every rule's gates, in order."""
    return tuple(gate for rule in RULES for gate in rule(measured, limits))


def at_least(name: str, value: Number, limit: Number | None) -> Iterator[Gate]:
    if limit is not None:
        yield Gate(name, value, limit, value >= limit)


def at_most(name: str, value: Number, limit: Number | None) -> Iterator[Gate]:
    if limit is not None:
        yield Gate(name, value, limit, value <= limit)


def layers(measured: Measured, limits: Limits) -> Iterator[Gate]:  # noqa: ARG001 - every layer, whatever the recipe
    """Every layer's weights stand in the file as integers of its bits, and it computes what torch's does."""
    for name in ("integer_layers", "exact_layers"):
        if counts := getattr(measured, name):
            yield from at_least(name, *counts)


def synthetic_kl(measured: Measured, limits: Limits) -> Iterator[Gate]:
    """Of each model's KL on all synthetic pictures together: its upper bound."""
    names = {ONNX: "synthetic_kl", GRAPH: "engine_graph_kl", FLOAT: "float_onnx_kl"}
    for name, one in measured.synthetic.items():
        limit = FLOAT_KL if name == FLOAT else limits["max_kl"]
        yield from at_most(names.get(name, f"synthetic_kl_{name}"), one.kl_interval[1], limit)


def kl_against_torch(measured: Measured, limits: Limits) -> Iterator[Gate]:
    if measured.against_torch:
        yield from at_most("onnx_against_torch_kl", measured.against_torch.kl_interval[1], limits["max_kl"])


def real_fidelity(measured: Measured, limits: Limits) -> Iterator[Gate]:
    """On labelled pictures, of each quantized model: the lower bound of its agreement and the upper one of its drop."""
    for name, one in measured.real.items():
        if name == FLOAT:
            continue
        suffix = "" if name == ONNX else f"_{name.replace(' ', '_')}"
        assert one.top1_drop_interval is not None  # labels were given
        yield from at_least(f"real_agreement{suffix}", 100 * one.agreement_interval[0], limits["min_agreement"])
        yield from at_most(f"real_top1_drop{suffix}", 100 * one.top1_drop_interval[1], limits["max_drop"])


def teacher_on_real(measured: Measured, limits: Limits) -> Iterator[Gate]:  # noqa: ARG001 - of the teacher, not ours
    """The teacher sees labels and pixels of its own."""
    if measured.real:
        yield from teacher_gates(measured.real[ONNX])


def teacher_gates(one: Comparison) -> Iterator[Gate]:
    """The teacher's top-1 on real pictures: above chance by its lower bound, and not far below its confidence by its
    upper one."""
    assert one.teacher_top1_interval is not None
    assert one.chance is not None
    low, high = one.teacher_top1_interval
    yield Gate("teacher_top1_above_chance", 100 * low, 100 * one.chance, low > one.chance)
    yield from at_least("teacher_top1_for_its_confidence", 100 * high, 100 * SURE * one.teacher_confidence)


def integer_coverage(measured: Measured, limits: Limits) -> Iterator[Gate]:
    """Of the products whose factors are both quantized, the share that each runtime computes with integers."""
    for suffix, share in measured.coverage.items():
        yield from at_least(f"integer_coverage{suffix}", share, limits["min_integer_coverage"])


def latency(measured: Measured, limits: Limits) -> Iterator[Gate]:
    for suffix, ratios in measured.latency_ratios.items():
        for ratio in ratios:
            yield from at_most(f"latency_ratio{suffix}", ratio, limits["max_latency_ratio"])


def engine_latency(measured: Measured, limits: Limits) -> Iterator[Gate]:
    """No engine is surely slower than FP16's: by the lower bound of its ratio, as a busy GPU proves nothing."""
    for suffix, ratio in measured.engine_ratios.items():
        yield from at_most(f"engine_ratio{suffix}", ratio, limits["max_engine_ratio"])


RULES: tuple[Rule, ...] = (
    layers, synthetic_kl, kl_against_torch, real_fidelity, teacher_on_real, integer_coverage, latency, engine_latency,
)  # fmt: skip


def warnings(kinds: Mapping[str, Comparison], real: Comparison | None, all_synthetic: int) -> list[str]:
    """What a reader of the verdict must know beside the gates, in sentences."""
    found = []
    if all_synthetic < FEW:
        parts = " and ".join(f"{one.n} {name}" for name, one in kinds.items())
        found.append(f"the synthetic verdict rests on {parts}: set validation.pictures to {4 * FEW} or more.")
    if real and real.n < FEW:
        found.append(
            f"the verdict on real pictures rests on {real.n} only, and gates hold the bounds of its wide intervals: "
            f"give {FEW} or more with --val-data."
        )
    if real and not all(teacher_gates(real)):
        assert real.teacher_top1 is not None
        found.append(
            f"the teacher itself is right on {100 * real.teacher_top1:.1f}% of these pictures, where its confidence "
            f"says {100 * real.teacher_confidence:.1f}%: labels or pixels are not the ones that it was trained on; "
            "look at the order of the classes (--class-map) and at the preprocessing."
        )
    return found
