"""Gates hold the bounds of intervals, and the teacher itself has to know its pictures."""

from __future__ import annotations

import numpy as np
import pytest

from export.edge.compare import Comparison, compare
from pipeline.judge.answers import Answers, mistaken, together
from pipeline.record.gates import (
    FLOAT,
    GRAPH,
    ONNX,
    RULES,
    Measured,
    at_least,
    at_most,
    gates_of,
    real_fidelity,
    synthetic_kl,
    teacher_on_real,
    warnings,
)
from pipeline.record.proof import Gate

LIMITS = {"max_kl": 0.1, "min_agreement": 90.0, "max_drop": 3.0}


def logits(classes: np.ndarray, of: int = 10, sure: float = 6.0) -> np.ndarray:
    return sure * np.eye(of)[classes]


def real(said: np.ndarray, labels: np.ndarray, sure: float = 6.0, candidate: np.ndarray | None = None) -> Comparison:
    return compare(logits(said, sure=sure), logits(said if candidate is None else candidate, sure=sure), labels)


def on_real(one: Comparison) -> list[Gate]:
    measured = Measured(synthetic={}, real={ONNX: one})
    return [*real_fidelity(measured, LIMITS), *teacher_on_real(measured, LIMITS)]


def verdicts(one: Comparison) -> dict[str, bool]:
    return {gate.name: gate.passed for gate in on_real(one)}


def test_few_pictures_prove_little() -> None:
    """All 20 of 20 agree: the interval reaches down to 84%, and neither gate passes; 400 of 400 pass both."""
    few, many = (np.arange(n) % 10 for n in (20, 400))
    assert verdicts(real(few, few)) == {
        "real_agreement": False, "real_top1_drop": False, "teacher_top1_above_chance": True,
        "teacher_top1_for_its_confidence": True,
    }  # fmt: skip
    assert all(verdicts(real(many, many)).values())


def test_a_gate_tells_the_bound() -> None:
    """Its value is the interval's worse end, in percent points."""
    labels = np.arange(400) % 10
    candidate = labels.copy()
    candidate[:20] = (candidate[:20] + 1) % 10
    one = real(labels, labels, candidate=candidate)
    found = {gate.name: gate.value for gate in on_real(one)}
    assert found["real_agreement"] == 100 * one.agreement_interval[0] < 95
    assert one.top1_drop_interval is not None
    assert found["real_top1_drop"] == 100 * one.top1_drop_interval[1] > 5
    assert one.agreement == 0.95


def test_the_float_file_is_held_tighter() -> None:
    """Each model has a gate on all synthetic pictures; the float one is the teacher's own function."""
    rng = np.random.default_rng(0)
    teacher = rng.standard_normal((200, 10))
    near = compare(teacher, teacher + 0.2 * rng.standard_normal((200, 10)))
    measured = Measured(synthetic={ONNX: near, FLOAT: near, GRAPH: near, "e.plan": near})
    gates = {gate.name: gate for gate in synthetic_kl(measured, LIMITS)}
    assert {name: bool(gate) for name, gate in gates.items()} == {
        "synthetic_kl": True, "float_onnx_kl": False, "engine_graph_kl": True, "synthetic_kl_e.plan": True,
    }  # fmt: skip
    assert gates["synthetic_kl"].value == near.kl_interval[1] > near.kl


@pytest.mark.parametrize(
    ("said", "sure", "passed"),
    [
        (np.arange(400) % 10, 6.0, True),
        ((np.arange(400) % 10 + 1) % 10, 6.0, False),  # labels in another order
        (np.full(400, 8), 6.0, False),  # white pictures: one answer for all
        (np.full(400, 8), 0.1, False),  # and unsure of it
        (np.where(np.arange(400) % 10 < 4, np.arange(400) % 10, 0), 6.0, False),  # 40%, where it is sure of 98%
        (np.where(np.arange(400) % 20 < 12, np.arange(400) % 10, 0), 0.5, True),  # poor, and not surer than that
    ],
)
def test_a_teacher_that_sees_other_labels_or_pixels_fails(said: np.ndarray, sure: float, passed: bool) -> None:
    """At chance, or far below its own confidence, whatever the quantized model does; and a sentence says it."""
    one = real(said, np.arange(400) % 10, sure)
    gates = {name: held for name, held in verdicts(one).items() if name.startswith("teacher")}
    assert all(gates.values()) == passed
    told = warnings({}, one, 400)
    assert len(told) == (0 if passed else 1)
    assert passed or "labels or pixels are not the ones that it was trained on" in told[0]


def test_few_pictures_warn() -> None:
    """Real ones and synthetic ones, by their number."""
    labels = np.arange(60) % 10
    one = real(labels, labels)
    first, second = warnings({"mosaics": one}, one, 60)
    assert "rests on 60 mosaics" in first
    assert "rests on 60 only" in second
    assert warnings({}, None, 100) == []


def test_classes_that_are_swapped_are_named() -> None:
    """Two folders of ten changed places: too few for the teacher's top-1 to look bad, and told all the same."""
    labels = np.arange(400) % 10
    said = np.select([labels == 3, labels == 7], [7, 3], labels)
    answers = Answers(logits(said), {}, labels)
    (told,) = mistaken(answers)
    assert told.startswith("40 of the 40 pictures of class 3 are class 7 to the teacher, and 1 more classes")
    assert mistaken(Answers(logits(labels), {}, labels)) == []


def test_kinds_are_judged_together() -> None:
    """The numbers of all pictures of both kinds, without labels."""
    parts = [Answers(logits(np.arange(n) % 10), {ONNX: logits(np.arange(n) % 10)}) for n in (3, 5)]
    assert together(parts).comparisons()[ONNX].n == 8


def test_a_gate_is_true_or_false() -> None:
    """At its limit it holds; without a limit there is none."""
    (held,), (missed,) = at_least("a", 1, 1), at_most("b", 2, 1)
    assert held
    assert not missed
    assert (missed.name, missed.value, missed.limit, missed.passed) == ("b", 2, 1, False)
    assert [*at_least("c", 1, None), *at_most("d", 1, None)] == []


def test_gates_stand_in_one_order() -> None:
    """All that a build can have, in the order of reports and junit.xml; what was not measured makes none."""
    labels = np.arange(400) % 10
    one = real(labels, labels)
    limits = {**LIMITS, "min_integer_coverage": 1.0, "max_latency_ratio": 2.0}
    measured = Measured(
        synthetic={ONNX: one, FLOAT: one}, real={ONNX: one, FLOAT: one, GRAPH: one}, against_torch=one,
        integer_layers=(25, 26), exact_layers=(26, 26), coverage={"": 1.0, "_sm89": 0.5},
        latency_ratios={"": [0.5, 3.0], "_openvino": [0.4]},
    )  # fmt: skip
    found = gates_of(measured, limits)
    assert [gate.name for gate in found] == [
        "integer_layers", "exact_layers", "synthetic_kl", "float_onnx_kl", "onnx_against_torch_kl", "real_agreement",
        "real_top1_drop", "real_agreement_engine_graph", "real_top1_drop_engine_graph", "teacher_top1_above_chance",
        "teacher_top1_for_its_confidence", "integer_coverage", "integer_coverage_sm89", "latency_ratio",
        "latency_ratio", "latency_ratio_openvino",
    ]  # fmt: skip
    assert [gate.name for gate in found if not gate] == ["integer_layers", "integer_coverage_sm89", "latency_ratio"]
    assert [gate.name for gate in gates_of(Measured(synthetic={FLOAT: one}), limits)] == ["float_onnx_kl"]


def test_a_new_gate_is_one_entry(monkeypatch: pytest.MonkeyPatch) -> None:
    """What stands in `RULES` is asked, and nothing else need know of it."""

    def never_flips(measured: Measured, limits: dict[str, float | None]) -> list[Gate]:
        return [Gate("kinds", len(measured.synthetic), 1, len(measured.synthetic) >= limits.get("kinds", 1))]

    monkeypatch.setattr("pipeline.record.gates.RULES", (*RULES, never_flips))
    assert gates_of(Measured(synthetic={}), {})[-1] == Gate("kinds", 0, 1, False)
