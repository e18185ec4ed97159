"""What a stage reads is what its digest is made of: each entry changes it."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from inversion.teacher import Teacher, load_teacher
from pipeline.recipe.recipe import STAGES, make_recipe
from pipeline.run.folder import stage_digest
from pipeline.run.reads import Facts, machine, reads
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


def facts(teacher: Teacher, *overrides: str, **changes: Any) -> Facts:
    return dataclasses.replace(Facts(make_recipe(BASE, None, overrides), teacher), **changes)


def changed(before: Facts, after: Facts) -> set[str]:
    """Stages whose digest is another."""
    return {
        name for name in STAGES if stage_digest(name, reads(name, before)) != stage_digest(name, reads(name, after))
    }


@pytest.mark.parametrize("key", recipe_keys())
def test_every_value_of_the_recipe_is_read(teacher: Teacher, key: str) -> None:
    """Another value changes the digest of every stage that reads its section, and of no other."""
    after = facts(teacher, f"{key}={as_toml(values(key)[1])}")
    assert changed(facts(teacher), after) == READERS[key.partition(".")[0]]


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
    assert changed(facts(teacher), facts(dataclasses.replace(teacher, spec=spec))) == stages


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
        ({"machine": "another"}, {"validate"}),
    ],
)
def test_what_stands_beside_the_recipe_is_read(teacher: Teacher, change: dict[str, Any], stages: set[str]) -> None:
    """Labels, pictures, backend, machine."""
    assert changed(facts(teacher), facts(teacher, **change)) == stages


def test_the_teacher_is_read(teacher: Teacher) -> None:
    """Its weights and its architecture, which equal weights do not tell; its name where it is written down."""
    weights = dataclasses.replace(teacher, sha256="1" * 64)
    assert changed(facts(teacher), facts(weights)) == {"invert", "quantize", "export", "validate"}
    assert changed(facts(teacher), facts(dataclasses.replace(teacher, name="another"))) == {"quantize", "export"}
    cfg = {**teacher.model.pretrained_cfg, "architecture": "another"}
    for part, name, value in (
        ("", "pretrained_cfg", cfg),
        ("", "global_pool", "avg"),
        ("blocks.0.attn", "num_heads", 6),
    ):
        other = load_teacher("digits_vit")
        setattr(other.model.get_submodule(part), name, value)
        assert changed(facts(teacher), facts(other)) == {"invert", "quantize", "export", "validate"}


def test_threads_are_read_by_what_computes(teacher: Teacher) -> None:
    """Their number decides the last bits of images and weights."""
    assert changed(facts(teacher), facts(teacher, "threads=2")) == {"invert", "quantize"}


def test_the_machine_is_named() -> None:
    """Its processor, cores and GPU; the same at every call."""
    assert machine() == machine()
    assert "CPUs, GPU " in machine()
