"""What a stage reads is what its digest is made of: each entry changes it."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

from inversion.teacher import Teacher, load_teacher
from pipeline.pictures.valdata import ValData
from pipeline.recipe.resolve import make_recipe
from pipeline.run.build import STAGES
from pipeline.run.folder import stage_digest
from pipeline.run.job import Job, Places
from pipeline.run.reads import machine
from pipeline.show.display import Display
from tests.pipeline.recipe.test_recipe import BASE, as_toml, recipe_keys, values

READERS = {
    "input": set(),  # it makes the teacher, which is read
    "scheme": {"quantize", "validate"}, "inversion": {"invert"}, "basis": {"quantize"}, "training": {"quantize"},
    "calibration": {"quantize", "validate"}, "rounding": {"quantize"}, "export": {"export"},
    "engine": {"engine", "validate"}, "validation": {"validate"},
}  # fmt: skip
"""Of each section of the recipe."""


@pytest.fixture(scope="module")
def teacher() -> Teacher:
    return load_teacher("digits_vit")


def job(teacher: Teacher, *overrides: str, pictures: str | None = None, **known: object) -> Job:
    """One of digits; `known` are properties that are worked out else."""
    made = Job(make_recipe(BASE, None, overrides), teacher, Places.run(Path()), Display(quiet=True))
    if pictures:
        made = dataclasses.replace(made, pictures=ValData(1, list, lambda _: Tensor(), fingerprint=pictures))
    vars(made).update(known)
    return made


def changed(before: Job, after: Job) -> set[str]:
    """Stages whose digest is another."""
    return {
        stage.name
        for stage in STAGES
        if stage_digest(stage.name, stage.reads(before)) != stage_digest(stage.name, stage.reads(after))
    }


@pytest.mark.parametrize("key", recipe_keys())
def test_every_value_of_the_recipe_is_read(teacher: Teacher, key: str) -> None:
    """Another value changes the digest of every stage that reads its section, and of no other."""
    after = job(teacher, f"{key}={as_toml(values(key)[1])}")
    assert changed(job(teacher), after) == READERS[key.partition(".")[0]]


@pytest.mark.parametrize(
    ("field", "value", "stages"),
    [
        ("size", (64, 64), {"invert", "quantize", "export", "validate"}),
        ("mean", (0.25,), {"invert", "quantize", "export", "validate"}),
        ("std", (0.25,), {"invert", "quantize", "export", "validate"}),
        ("num_classes", 11, {"invert", "quantize", "export", "validate"}),
        ("interpolation", "bilinear", {"export", "validate"}),
        ("crop", 0.875, {"export", "validate"}),
    ],
)
def test_preprocessing_is_read(teacher: Teacher, field: str, value: Any, stages: set[str]) -> None:
    """Each field of the input's description, by the stages that use it."""
    spec = dataclasses.replace(teacher.spec, **{field: value})
    assert changed(job(teacher), job(dataclasses.replace(teacher, spec=spec))) == stages


def test_no_field_of_the_input_is_forgotten(teacher: Teacher) -> None:
    """A field that is added to it has to be added to the test above, and to the list."""
    names = {field.name for field in dataclasses.fields(teacher.spec)}
    assert names == {"size", "mean", "std", "num_classes", "interpolation", "crop"}


@pytest.mark.parametrize(
    ("change", "stages"),
    [
        ({"labels": ("a", "b")}, {"export"}),
        ({"pictures": "0" * 64}, {"validate"}),
        ({"backend": "tensorrt"}, {"engine"}),
    ],
)
def test_what_stands_beside_the_recipe_is_read(teacher: Teacher, change: dict[str, Any], stages: set[str]) -> None:
    """Labels, pictures, backend."""
    assert changed(job(teacher), job(teacher, **change)) == stages


def test_the_teacher_is_read(teacher: Teacher) -> None:
    """Its weights and its architecture, which equal weights do not tell; its name where it is written down."""
    weights = dataclasses.replace(teacher, sha256="1" * 64)
    assert changed(job(teacher), job(weights)) == {"invert", "quantize", "export", "validate"}
    assert changed(job(teacher), job(dataclasses.replace(teacher, name="another"))) == {"quantize", "export"}
    cfg = {**teacher.model.pretrained_cfg, "architecture": "another"}
    for part, name, value in (
        ("", "pretrained_cfg", cfg),
        ("", "global_pool", "avg"),
        ("blocks.0.attn", "num_heads", 6),
    ):
        other = load_teacher("digits_vit")
        setattr(other.model.get_submodule(part), name, value)
        assert changed(job(teacher), job(other)) == {"invert", "quantize", "export", "validate"}


def test_threads_are_read_by_what_computes(teacher: Teacher) -> None:
    """Their number decides the last bits of images and weights."""
    assert changed(job(teacher), job(teacher, "threads=2")) == {"invert", "quantize"}


def test_the_machine_is_read(teacher: Teacher, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is fast, and what can be executed, decides a verdict and nothing else."""
    before = {stage.name: stage.reads(job(teacher)) for stage in STAGES}
    monkeypatch.setattr("pipeline.run.reads.machine", lambda: "another")
    assert {stage.name for stage in STAGES if stage.reads(job(teacher)) != before[stage.name]} == {"validate"}


def test_the_machine_is_named() -> None:
    """Its processor, cores and GPU; the same at every call."""
    assert machine() == machine()
    assert "CPUs, GPU " in machine()
