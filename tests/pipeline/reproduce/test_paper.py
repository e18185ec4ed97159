"""The paper's published figures: every table is whole, and unknown names have none."""

import json
from pathlib import Path

import pytest

from pipeline.reproduce.paper import (
    FIGURES,
    METHODS,
    SELECTIONS,
    TEACHERS,
    Efficiency,
    distillation,
    distillation_teacher,
    efficiency,
    quantization,
    quantization_teacher,
    selection,
)

DATASETS = ("cifar10", "cifar100", "tiny_imagenet")
PRINTED_GAINS = {
    ("deit_tiny", "iterations_per_s"): (39.6, 100.3, 126.8),
    ("deit_tiny", "flops"): (-23.3, -37.3, -48.4),
    ("deit_tiny", "memory_bytes"): (-28.3, -51.6, -66.5),
    ("deit_small", "iterations_per_s"): (34.2, 85.4, 129.2),
    ("deit_small", "flops"): (-24.8, -38.7, -49.2),
    ("deit_small", "memory_bytes"): (-21.2, -41.4, -55.3),
    # the first is table 2's; table A1 prints 30.0 beside the same two figures
    ("deit_base", "iterations_per_s"): (30.9, 63.3, 111.6),
    ("deit_base", "flops"): (-25.5, -39.4, -49.8),
    ("deit_base", "memory_bytes"): (-16.5, -31.6, -41.9),
}
"""Percent that PRI gains over SMI at v = 2, 4, 7, as the paper prints them beside its figures."""


def test_the_source_is_named() -> None:
    """Whoever opens the file learns whose figures they are."""
    title = "Patch Rebirth: Toward Fast and Transferable Model Inversion of Vision Transformers"
    assert json.loads(FIGURES.read_text())["source"]["title"] == title


@pytest.mark.parametrize("teacher", TEACHERS)
def test_efficiency_has_every_method(teacher: str) -> None:
    """Each teacher has all seven methods, in iterations a second, FLOPs and bytes; DMI costs most."""
    table = efficiency(teacher)
    assert table is not None
    assert tuple(table) == METHODS
    for one in table.values():
        assert 1 <= one.iterations_per_s < 100
        assert 7e10 < one.flops < 2e13
        assert 5e8 < one.memory_bytes < 3e10
    assert max(table.values(), key=lambda one: one.flops) is table["dmi"]
    assert min(table.values(), key=lambda one: one.iterations_per_s) is table["dmi"]


def test_efficiency_of_one_row() -> None:
    """A figure of table 2 lands at its method with its unit."""
    table = efficiency("deit_base")
    assert table is not None
    assert table["pri_v4"] == Efficiency(iterations_per_s=6.40, flops=2_090_000_000_000, memory_bytes=4_280_000_000)


@pytest.mark.parametrize(("teacher", "row"), PRINTED_GAINS)
def test_figures_give_the_printed_gains(teacher: str, row: str) -> None:
    """The gains over SMI that the paper prints follow from the figures, so none was copied wrongly."""
    table = efficiency(teacher)
    assert table is not None
    pairs = zip(("pri_v2", "pri_v4", "pri_v7"), ("smi_50", "smi_76", "smi_86"), strict=True)
    gains = [100 * (getattr(table[pri], row) / getattr(table[smi], row) - 1) for pri, smi in pairs]
    # one decimal is printed, cut or rounded; figures of three digits are worth 0.15 of a point
    assert gains == pytest.approx(PRINTED_GAINS[teacher, row], abs=0.15)


@pytest.mark.parametrize("name", ["deit_small_patch16_224", "deit_small_patch16_224.fb_in1k"])
def test_timms_names_mean_the_same_model(name: str) -> None:
    """The paper's teachers are timm's DeiT/16 at 224, under either name."""
    assert efficiency(name) == efficiency("deit_small")
    assert quantization(name, "w4a8") == quantization("deit_small", "w4a8")


@pytest.mark.parametrize("name", ["digits_vit", "", "deit_small_distilled_patch16_224", "deit_base_patch16_384", "dmi"])
def test_other_models_have_no_figures(name: str) -> None:
    """What the paper did not measure has no figure, and is no error."""
    assert efficiency(name) is None
    assert quantization(name, "w8a8") is None
    assert quantization_teacher(name) is None
    assert distillation("cifar10", name) is None
    assert quantization("deit_tiny", "w4a4") is None
    assert distillation("mnist", "deit_tiny") is None
    assert distillation_teacher("mnist") is None


@pytest.mark.parametrize("bits", ["w4a8", "w8a8"])
@pytest.mark.parametrize("teacher", TEACHERS)
def test_quantized_accuracy_is_below_the_teachers(teacher: str, bits: str) -> None:
    """Table A2 is whole, in percent, and no quantized model beats its teacher."""
    table, before = quantization(teacher, bits), quantization_teacher(teacher)
    assert table is not None
    assert before is not None
    assert tuple(table) == METHODS
    assert all(before - 7 < accuracy < before for accuracy in table.values())


@pytest.mark.parametrize("dataset", DATASETS)
@pytest.mark.parametrize("student", TEACHERS)
def test_students_are_below_their_teacher(dataset: str, student: str) -> None:
    """Table A3 is whole, in percent, and no student beats DeiT-Base."""
    table, teacher = distillation(dataset, student), distillation_teacher(dataset)
    assert table is not None
    assert teacher is not None
    assert tuple(table) == METHODS
    assert all(1 < accuracy < teacher for accuracy in table.values())


def test_figures_of_the_main_text() -> None:
    """One figure of each accuracy table, as printed."""
    assert (quantization("deit_base", "w4a8") or {})["pri_v2"] == 80.36
    assert (distillation("cifar100", "deit_tiny") or {})["smi_86"] == 3.55
    assert distillation_teacher("tiny_imagenet") == 84.6
    assert selection() == {"high": 92.52, "low": 92.75, "random": 92.74, "top": 92.74}
    assert tuple(selection()) == SELECTIONS


def test_figures_ship_with_the_module() -> None:
    """The file lies beside the code that reads it."""
    assert Path(FIGURES).is_file()
    assert FIGURES.parent.name == "reproduce"
