"""Recipes: presets, TOML, flags and overrides in their order; what is wrong is refused by its name."""

import dataclasses
import itertools
import json
import re
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest

from calib.scheme import QuantScheme
from inversion.errors import InputError
from inversion.job import Inversion
from pipeline.recipe.recipe import Recipe, Scheme
from pipeline.recipe.resolve import EFFORTS, KEYS, READS, SECTIONS, make_recipe, preset, read_back, write_toml

BASE = {"teacher": "deit_tiny", "bits": "w4a8"}


def toml(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def refusal(flags: dict[str, Any], file: Path | None = None, *overrides: str) -> str:
    with pytest.raises(InputError) as caught:
        make_recipe(flags, file, overrides)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("effort", EFFORTS)
def test_a_preset_gives_its_numbers(effort: str) -> None:
    """Every number of a preset stands in the recipe; `standard` is the default."""
    recipe = make_recipe({**BASE, "effort": effort})
    assert recipe.effort == effort
    for section, values in preset(effort).items():
        assert dataclasses.asdict(getattr(recipe, section)).items() >= values.items()
    assert make_recipe(BASE) == make_recipe({**BASE, "effort": "standard"})


def test_later_layers_win(tmp_path: Path) -> None:
    """Preset < TOML < flag < --set, key by key: what a layer leaves out stays as it was."""
    file = toml(
        tmp_path / "r.toml",
        'bits = "w8a8"\neffort = "quick"\nseed = 3\n[inversion]\nimages = 40\niterations = 50\nbatch = 8\n'
        '[engine]\narch = ["sm75"]\n',
    )
    flags = {"teacher": "deit_tiny", "bits": "w4a8", "seed": None, "engine": {"arch": ("sm86",)}}
    recipe = make_recipe(flags, file, ["inversion.images=44", "inversion.images=48"])
    assert (recipe.bits, recipe.effort, recipe.seed) == ("w4a8", "quick", 3)
    assert (recipe.inversion.images, recipe.inversion.iterations, recipe.inversion.batch) == (48, 50, 8)
    assert recipe.inversion.tv_weight == Inversion().tv_weight
    assert recipe.engine.arch == ("sm86",)


def test_an_effort_counts_wherever_it_stands(tmp_path: Path) -> None:
    """An effort from --set beats the flag's, the flag's beats the file's, and its preset comes along."""
    file = toml(tmp_path / "r.toml", 'effort = "paper"\n')
    paper, quick = make_recipe(BASE, file), make_recipe({**BASE, "effort": "quick"}, file)
    standard = make_recipe({**BASE, "effort": "quick"}, file, ["effort=standard"])
    assert [r.effort for r in (paper, quick, standard)] == ["paper", "quick", "standard"]
    for recipe in (paper, quick, standard):
        assert recipe.inversion.images == preset(recipe.effort).get("inversion", {}).get("images", Inversion().images)


def test_the_built_in_teacher_brings_its_own_numbers() -> None:
    """A teacher's defaults follow its name, from a flag as from --set, and give way to an override."""
    by_flag = make_recipe({"teacher": "digits_vit", "bits": "w4a8"})
    by_set = make_recipe({"bits": "w4a8"}, None, ["teacher=digits_vit"])
    assert by_flag == by_set
    assert by_flag.inversion.learning_rate != make_recipe(BASE).inversion.learning_rate
    changed = make_recipe({"teacher": "digits_vit", "bits": "w4a8"}, None, ["inversion.learning_rate=0.125"])
    assert changed.inversion.learning_rate == 0.125


def test_a_seed_reaches_every_section_unless_it_has_its_own() -> None:
    """One --seed seeds inversion, calibration and training; a section's own seed stays."""
    recipe = make_recipe({**BASE, "seed": 7}, None, ["training.seed=9"])
    assert (recipe.seed, recipe.inversion.seed, recipe.calibration.seed, recipe.training.seed) == (7, 7, 7, 9)


OTHER = {
    "input.mean": (0.25,), "input.std": (0.25,), "input.crop": 0.875, "input.interpolation": "bilinear",
    "scheme.edges": "w8a16", "scheme.attention": "int8", "scheme.layers": {"blocks.*.mlp.fc1": "w8a8", "head": "w4a8"},
    "inversion.tv_norm": "batch", "inversion.selection": "random",
    "inversion.precision": "float32",
    "inversion.prior": "resnet18", "inversion.prior_checkpoint": "cnn.pth", "inversion.classes": (1, 7),
    "inversion.method": "smi", "inversion.prune_at": (10, 20, 40, 60),
    "inversion.betas": (0.25, 0.5), "basis.method": "random", "calibration.method": "mse",
    "calibration.views": "sparse", "calibration.held_out": 0.125, "rounding.method": "nearest",
    "rounding.views": "mosaic", "rounding.saliency": False,
    "training.views": "leaves", "training.crops": False, "training.ema": 0.5,
    "training.precision": "float32",
    "training.optimizer": "sgd", "training.schedule": "constant", "engine.arch": ("sm75", "sm86"),
    "engine.backend": "tensorrt_rtx", "engine.precision": "bfloat16", "engine.batch": (1, 2, 4),
    "validation.min_integer_coverage": 0.5, "validation.provider": "cuda", "validation.max_kl": 0.375,
    "validation.max_latency_ratio": 0.5, "validation.min_agreement": 37.5,
    "validation.max_drop": 0.375,
}  # fmt: skip


def recipe_keys() -> list[str]:
    """Of the sections that a build reads."""
    recipe, sections = make_recipe(BASE), [section for section in SECTIONS if section in READS["build"]]
    return [f"{section}.{field.name}" for section in sections for field in dataclasses.fields(getattr(recipe, section))]


def values(key: str) -> tuple[object, object]:
    """What the recipe `BASE` has at `key`, and another value that it takes there."""
    section, name = key.split(".")
    before = getattr(getattr(make_recipe(BASE), section), name)
    return before, OTHER[key] if key in OTHER else (before * 2 if before else type(before)(3))


def as_toml(value: object) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(key)} = {as_toml(item)}" for key, item in value.items()) + "}"
    return json.dumps(value)


@pytest.mark.parametrize("key", recipe_keys())
def test_every_value_can_be_overridden(key: str, tmp_path: Path) -> None:
    """Any key of any section, from --set and from a TOML file alike."""
    section, name = key.split(".")
    before, wanted = values(key)
    text = as_toml(wanted)
    by_set = make_recipe(BASE, None, [f"{key}={text}"])
    by_file = make_recipe(BASE, toml(tmp_path / "r.toml", f"[{section}]\n{name} = {text}\n"))
    assert getattr(getattr(by_set, section), name) == wanted != before
    assert by_set == by_file


def test_parts_of_the_scheme_come_from_their_section(tmp_path: Path) -> None:
    """[scheme] and [scheme.layers], patterns in their order, make the scheme together with the bits."""
    file = toml(
        tmp_path / "r.toml",
        '[scheme]\nedges = "w8a16"\nattention = "int8"\n[scheme.layers]\n"blocks.0.*" = "w8a8"\n"*.fc1" = "w6a6"\n',
    )
    patterns = {"blocks.0.*": "w8a8", "*.fc1": "w6a6"}
    assert make_recipe(BASE, file).quant_scheme() == QuantScheme.parse("w4a8", "w8a16", "int8", patterns)
    assert make_recipe(BASE).quant_scheme() == QuantScheme.parse("w4a8")


def test_a_recipe_survives_the_manifest() -> None:
    """What `to_dict` gives, through JSON, makes the same recipe again."""
    overrides = ["engine.arch=['sm75']", "validation.max_kl=1", 'scheme.layers={"head"="w8a8", "*"="w6a8"}']
    recipe = make_recipe({**BASE, "effort": "paper", "seed": 5}, None, overrides)
    told = json.loads(json.dumps(recipe.to_dict()))
    assert read_back(told) == recipe
    told["gone"] = told["inversion"]["low_pass"] = 0.0
    assert read_back(told) == recipe, "of an earlier version"


@pytest.mark.parametrize(
    ("override", "named"),
    [
        ("scheme.attention=int4", ["'int4'", "float or int8"]),
        ("scheme.edges=w8", ["'w8'", "w4a8"]),
        ('scheme.layers={"head"="w4a32"}', ["32 bits", "16 for float"]),
        ('scheme.layers={"head"=8}', ["'scheme.layers.head'", "str", "8"]),
        ("scheme.layers=w8a8", ["'scheme.layers'", "a table of str", "'w8a8'"]),
        ("scheme.layer=3", ["'scheme.layer'", "scheme.layers"]),
        ("inversion.imags=3", ["'inversion.imags'", "inversion.images"]),
        ("inverted.images=3", ["'inverted'", "inversion"]),
        ("images=3", ["'images'"]),
        ("inversion=3", ["'inversion'", "table", "3"]),
        ("inversion.images=many", ["'inversion.images'", "int", "'many'"]),
        ("inversion.images=3.5", ["'inversion.images'", "int", "3.5"]),
        ("inversion.images=true", ["'inversion.images'", "int", "True"]),
        ("inversion.images=0", ["images", "0"]),
        ("inversion.betas=[0.5]", ["betas", "0.5"]),
        ("inversion.betas=[0.5,'x']", ["'inversion.betas'", "float", "'x'"]),
        ("inversion.tv_weight=nan", ["tv_weight"]),
        ("calibration.method=best", ["'best'", "percentile"]),
        ("training.optimizer=lion", ["'lion'", "adam"]),
        ("engine.arch=sm86", ["'engine.arch'", "a list of str", "'sm86'"]),
        ("validation.max_kl=low", ["'validation.max_kl'", "float", "'low'"]),
        ("seed=x", ["'seed'", "int", "'x'"]),
        ("effort=huge", ["'huge'", *EFFORTS]),
        ("effort=[]", ["[]", *EFFORTS]),
        ("bits=w3q", ["'w3q'", "w4a8"]),
        ("training.updates", ["'training.updates'", "section.key=value"]),
        ("=3", ["'=3'", "section.key=value"]),
    ],
)
def test_a_wrong_override_is_refused(override: str, named: list[str]) -> None:
    """The sentence names the key or value, and what may stand there."""
    message = refusal(BASE, None, override)
    assert all(part in message for part in named), message


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("teacher = ", "r.toml' is not TOML"),
        ("effort = []", "unknown effort []"),
        ('effort = "huge"', "unknown effort 'huge'"),
        ("inversion = 3", "'inversion' must be a table"),
        ("[inversions]\nimages = 3", "'inversions'"),
        ("[inversion]\nimages = '3'", "'inversion.images' must be int, not '3'"),
    ],
)
def test_a_wrong_file_is_refused(text: str, named: str, tmp_path: Path) -> None:
    """Bad TOML, unknown keys and wrong types: each with its name."""
    assert named in refusal(BASE, toml(tmp_path / "r.toml", text))


def test_an_unreadable_file_is_refused(tmp_path: Path) -> None:
    """A missing file, a folder, and bytes that are no text."""
    assert "'" + str(tmp_path / "no.toml") + "' cannot be read" in refusal(BASE, tmp_path / "no.toml")
    assert "cannot be read" in refusal(BASE, tmp_path)
    (tmp_path / "b.toml").write_bytes(b"\xff\xfe\x00")
    assert "is not TOML" in refusal(BASE, tmp_path / "b.toml")


def test_teacher_and_bits_are_needed() -> None:
    """Without one of them there is no run; the sentence names the flag."""
    assert "--teacher" in refusal({"bits": "w4a8"})
    assert "--bits" in refusal({"teacher": "deit_tiny"})


def test_a_recipe_of_impossible_bits_cannot_be_made() -> None:
    """Bits are checked when the recipe is, before anything heavy is imported."""
    with pytest.raises(InputError, match="weights of 1 bits"):
        Recipe("digits_vit", "w1a8")
    with pytest.raises(InputError, match="activations of 32 bits"):
        Recipe("digits_vit", "w4a8", scheme=Scheme(layers={"head": "w8a32"}))


def test_limits_follow_the_bits_and_give_way() -> None:
    """Fewer bits of weights, then of activations, have looser gates; a given limit, 0 too, replaces the default."""
    given = make_recipe(BASE, None, ["validation.max_kl=0"]).validation.limits(QuantScheme.parse("w4a8"))
    assert given["max_kl"] == 0.0
    limits = [make_recipe(BASE).validation.limits(QuantScheme.parse(bits)) for bits in ("w8a8", "w4a8", "w4a4")]
    for tight, loose in itertools.pairwise(limits):
        assert tight["max_kl"] < loose["max_kl"]
        assert tight["min_agreement"] > loose["min_agreement"]
        assert tight["max_drop"] < loose["max_drop"]


def test_a_share_of_agreement_is_not_taken_for_points() -> None:
    """Who wrote 0.97 before agreement was in percent points meant 97, and is told so; 0 is no limit in both."""
    with pytest.raises(InputError, match=r"min_agreement 0\.97 is a share: it is in percent points now, write 97\."):
        make_recipe(BASE, None, ["validation.min_agreement=0.97"])
    with pytest.raises(InputError, match=r"min_agreement 1 is a share: .* write 100\."):
        make_recipe(BASE, None, ["validation.min_agreement=1"])
    assert make_recipe(BASE, None, ["validation.min_agreement=0"]).validation.min_agreement == 0


@pytest.mark.parametrize("verb", ["build", "invert", "distill"])
def test_a_teacher_that_needs_another_rate_gets_it_everywhere(verb: str) -> None:
    """By every verb that inverts, unless an override says otherwise."""

    def rate(teacher: str, *overrides: str) -> float:
        bits = {"bits": "w4a8"} if verb == "build" else {}
        return make_recipe({"teacher": teacher, **bits}, None, overrides, verb).inversion.learning_rate

    assert rate("digits_vit") != rate("deit_tiny")
    assert rate("digits_vit", "inversion.learning_rate=0.5") == 0.5


ANY_VALUE = {
    "teacher": "'digits_vit'", "bits": "'w8a8'", "checkpoint": "'a.pth'", "checkpoint_key": "'model'", "seed": "3",
    "effort": "'quick'", "threads": "2", "val_data": "'a'", "class_map": "'a'", "image_column": "'a'",
    "label_column": "'a'", "input": "crop=0.5", "scheme": "attention='int8'", "inversion": "iterations=5",
    "basis": "updates=7", "calibration": "leaves=5", "rounding": "damping=0.5", "training": "updates=5",
    "distillation": "momentum=0.5", "export": "uint8_input=true", "engine": "arch=['sm75']",
    "validation": "pictures=100",
}  # fmt: skip


@pytest.mark.parametrize("key", KEYS)
@pytest.mark.parametrize("verb", READS)
def test_a_verb_reads_a_key_or_refuses_it(verb: str, key: str) -> None:
    """No flag and no override passes in silence: it changes the recipe of the verb, or is refused by its name."""
    needed = {name: value for name, value in BASE.items() if name in READS[verb] and name != key}
    override = f"{key}.{ANY_VALUE[key]}" if key in SECTIONS else f"{key}={ANY_VALUE[key]}"
    if key in READS[verb]:
        others = dict(BASE) if key in BASE else needed
        before = make_recipe({name: value for name, value in others.items() if name in READS[verb]}, None, (), verb)
        assert getattr(make_recipe(needed, None, [override], verb), key) != getattr(before, key)
    else:
        with pytest.raises(InputError, match=f"^`pipeline {verb}` does not read '{key}': leave it out; it is read by "):
            make_recipe(needed, None, [override], verb)


def test_one_file_serves_every_verb(tmp_path: Path) -> None:
    """What a run writes down, any verb takes: keys that it does not read stand there for the others."""
    whole = make_recipe({**BASE, "effort": "quick", "seed": 5}, None, ["calibration.leaves=7", "inversion.images=8"])
    file = toml(tmp_path / "recipe.toml", write_toml(whole))
    assert make_recipe({}, file) == whole
    for verb in READS:
        found = make_recipe({}, file, (), verb)
        assert (found.teacher, found.calibration.leaves, found.inversion.images) == ("deit_tiny", 7, 8)


@pytest.mark.parametrize("name", [*EFFORTS, "distill"])
def test_a_preset_says_what_it_costs_and_only_what_differs(name: str) -> None:
    """Its header has cost, result and command, and no value of it is the default."""
    text = files("pipeline.recipe").joinpath("presets", f"{name}.toml").read_text()
    for word in ("Cost", "Result", "Command"):
        assert re.search(rf"^# {word} +\S", text, re.M)
    plain = Recipe("deit_tiny", "w4a8")
    for section, chosen in preset(name).items():
        for key, value in chosen.items():
            assert value != getattr(getattr(plain, section), key), f"{section}.{key}"
