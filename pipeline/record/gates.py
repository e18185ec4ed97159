"""Gates: what must hold of a run. A rate or mean is held to the bound of its 95% interval, so that few pictures prove
little."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from export.edge.compare import Comparison

ONNX, FLOAT, GRAPH = "onnxruntime", "float", "engine graph"
FLOAT_KL = 1e-3
"""Nats by which the float file may differ from its teacher: it is the same function."""
SURE = 2 / 3
"""Share of its own mean confidence that the teacher's top-1 must reach on real pictures: less is no badly calibrated
teacher, but one that sees other labels or other pixels than its own."""
FEW = 100
"""Pictures below which a verdict carries a warning."""

Gate = dict[str, Any]
Limits = Mapping[str, float | None]


def at_least(name: str, value: float, limit: float | None) -> Gate:
    return {"name": name, "value": value, "limit": limit, "passed": limit is None or value >= limit}


def at_most(name: str, value: float, limit: float | None) -> Gate:
    return {"name": name, "value": value, "limit": limit, "passed": limit is None or value <= limit}


def synthetic_gates(found: Mapping[str, Comparison], limits: Limits) -> Iterable[Gate]:
    """Of each model's KL on all synthetic pictures together: its upper bound."""
    names = {ONNX: "synthetic_kl", GRAPH: "engine_graph_kl", FLOAT: "float_onnx_kl"}
    for name, one in found.items():
        limit = FLOAT_KL if name == FLOAT else limits["max_kl"]
        yield at_most(names.get(name, f"synthetic_kl_{name}"), one.kl_interval[1], limit)


def real_gates(found: Mapping[str, Comparison], limits: Limits) -> Iterable[Gate]:
    """On labelled pictures: of each quantized model, the lower bound of its agreement and the upper one of its drop; of
    the teacher, that it sees labels and pixels of its own."""
    for name, one in found.items():
        if name == FLOAT:
            continue
        suffix = "" if name == ONNX else f"_{name.replace(' ', '_')}"
        assert one.top1_drop_interval is not None  # labels were given
        yield at_least(f"real_agreement{suffix}", one.agreement_interval[0], limits["min_agreement"])
        yield at_most(f"real_top1_drop{suffix}", 100 * one.top1_drop_interval[1], limits["max_drop"])
    yield from teacher_gates(found[ONNX])


def teacher_gates(one: Comparison) -> Iterable[Gate]:
    """The teacher's top-1 on real pictures: above chance by its lower bound, and not far below its confidence by its
    upper one."""
    assert one.teacher_top1_interval is not None
    assert one.chance is not None
    low, high = one.teacher_top1_interval
    above = at_least("teacher_top1_above_chance", low, one.chance)
    above["passed"] = low > one.chance
    yield above
    yield at_least("teacher_top1_for_its_confidence", high, SURE * one.teacher_confidence)


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
    if real and not all(gate["passed"] for gate in teacher_gates(real)):
        assert real.teacher_top1 is not None
        found.append(
            f"the teacher itself is right on {100 * real.teacher_top1:.1f}% of these pictures, where its confidence "
            f"says {100 * real.teacher_confidence:.1f}%: labels or pixels are not the ones that it was trained on; "
            "look at the order of the classes (--class-map) and at the preprocessing."
        )
    return found
