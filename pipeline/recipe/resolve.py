"""One recipe out of its layers: preset, TOML file, flags, `section.key=value` overrides; every verb comes here."""

from __future__ import annotations

import tomllib
from collections.abc import Collection, Iterable, Mapping
from dataclasses import fields
from functools import cache
from importlib.resources import files
from itertools import takewhile
from pathlib import Path
from typing import Any, get_args, get_type_hints

import tomli_w

from calib.scheme import QuantScheme
from inversion.errors import InputError
from pipeline.recipe.recipe import Effort, Recipe

Layer = dict[str, Any]
"""Keys of a recipe, sections as tables within."""

EFFORTS: tuple[str, ...] = get_args(Effort)
FINE_RATE = 3e-6
"""Adam's rate at 8-bit weights, whose steps are 16 times finer than at 4 bits: `Training`'s own does harm there."""
TEACHERS: dict[str, Layer] = {
    # grey pictures in -1..1 of 32 pixels: at 0.25 two pixels in ten saturate, and confidence stays at 45% (78% at 0.05)
    "digits_vit": {"inversion": {"learning_rate": 0.05}},
}
"""What a teacher needs otherwise than the presets say."""

VERBS: dict[str, Layer] = {"validate": {"bits": "w8a8"}}
"""What a verb takes where nothing is said."""

SECTIONS = tuple(field.name for field in fields(Recipe) if isinstance(field.default_factory, type))
TEACHER = ("teacher", "checkpoint", "checkpoint_key", "input")
PICTURES = ("val_data", "class_map", "image_column", "label_column")
LEARNING = ("bits", "effort", "seed", "scheme", "basis", "calibration")
JUDGING = (*PICTURES, "validation")
"""What may be other for a new verdict of a finished run."""
KEYS = tuple(field.name for field in fields(Recipe))
READS: dict[str, tuple[str, ...]] = {
    "build": tuple(key for key in KEYS if key != "distillation"),
    "invert": (*TEACHER, "effort", "seed", "threads", "inversion"),
    "quantize": (*TEACHER, *LEARNING, "threads", "rounding", "training"),
    "sensitivity": (*TEACHER, *PICTURES, *LEARNING, "threads"),
    "distill": (*TEACHER, *PICTURES, "seed", "threads", "inversion", "distillation"),
    "export": (*TEACHER, "class_map", "export"),
    "reproduce": (*TEACHER, *PICTURES),
    "bench": TEACHER,
    "gallery": TEACHER,
    "plan": ("teacher", "effort", "seed", "inversion"),
    "validate": (*TEACHER, *PICTURES, "bits", "scheme", "validation"),
}
"""Which keys of a recipe a verb reads. A flag or an override of another key is refused; a file may hold them all."""


def make_recipe(
    flags: Mapping[str, Any], file: Path | None = None, overrides: Iterable[str] = (), verb: str = "build"
) -> Recipe:
    """The recipe of `verb`: its preset, the TOML `file`, `flags` (None: not given), then `section.key=value`.

    Raises `InputError` for a key that there is not or that `verb` does not read, and for a value that cannot stand
    there, naming both.
    """
    given = [{key: value for key, value in flags.items() if value is not None}, *map(_parse_override, overrides)]
    for layer in given:
        _require_read(layer, verb, READS[verb])
    layers = [VERBS.get(verb, {}), _read_toml(file) if file else {}, *given]
    flat = {key: value for layer in layers for key, value in layer.items()}
    for needed, was in (("teacher", "was"), ("bits", "were")):
        if needed not in flat and needed in READS[verb]:
            raise InputError(f"the {needed} {was} not given: add --{needed} or write it into the recipe.")
    effort = flat.get("effort", "standard")
    if effort not in EFFORTS:
        raise InputError(f"unknown effort {effort!r}: take one of {', '.join(EFFORTS)}.")
    values: Layer = {}
    for layer in (preset(verb if verb == "distill" else effort), TEACHERS.get(str(flat.get("teacher")), {}), *layers):
        _merge(values, layer)
    _follow(values)
    return Recipe(**values)


def read_back(values: Mapping[str, Any]) -> Recipe:
    """The recipe that `Recipe.to_dict` gave, as a manifest keeps it. Keys that an earlier version had and this one has
    no more decide nothing: they are left out."""
    hints = get_type_hints(Recipe)
    told = {key: value for key, value in values.items() if value is not None and key in KEYS}
    for section in SECTIONS:
        if isinstance(told.get(section), dict):
            known = {field.name for field in fields(hints[section])}
            told[section] = {key: value for key, value in told[section].items() if key in known}
    return Recipe(**told)


def overridden(recipe: Recipe, overrides: Iterable[str]) -> Recipe:
    """A run's recipe with `section.key=value` of what its verdict alone reads."""
    values = _without_none(recipe.to_dict())
    for layer in map(_parse_override, overrides):
        _require_read(layer, "validate", JUDGING)
        _merge(values, layer)
    return Recipe(**values)


def write_toml(recipe: Recipe) -> str:
    """The whole recipe as a TOML file that --recipe takes."""
    return tomli_w.dumps(_without_none(recipe.to_dict()))


def inversion_of(teacher: str) -> Layer:
    """What the inversion of this teacher needs otherwise than the defaults."""
    return dict(TEACHERS.get(teacher, {}).get("inversion", {}))


@cache
def preset(name: str) -> Layer:
    """What a preset says otherwise than the defaults; its header says what it costs and gives."""
    return tomllib.loads(files("pipeline.recipe").joinpath("presets", f"{name}.toml").read_text())


def header(name: str) -> list[str]:
    """The lines above a preset's values: images and iterations, cost, result, command."""
    lines = files("pipeline.recipe").joinpath("presets", f"{name}.toml").read_text().splitlines()
    return [
        line.removeprefix("#").removeprefix(" ").rstrip()
        for line in takewhile(lambda line: line.startswith("#"), lines)
    ]


def _require_read(layer: Collection[str], verb: str, read: Collection[str]) -> None:
    """Raises `InputError` for a key of the recipe that `verb` would pass over in silence."""
    for key in layer:
        if key in KEYS and key not in read:
            readers = ", ".join(f"`pipeline {name}`" for name, keys in READS.items() if key in keys)
            raise InputError(f"`pipeline {verb}` does not read {key!r}: leave it out; it is read by {readers}.")


def _follow(values: Layer) -> None:
    """Values that follow from others where nothing is said: seeds from the seed, a rate from the bits."""
    for section in ("inversion", "basis", "calibration", "training", "distillation"):
        values.setdefault(section, {})
        values[section].setdefault("seed", values.get("seed", 0))
    bits = values.get("bits")
    if isinstance(bits, str) and bits and QuantScheme.parse(bits).weight_bits >= 8:
        values["training"].setdefault("learning_rate", FINE_RATE)


def _read_toml(path: Path) -> Layer:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise InputError(
            f"recipe {str(path)!r} cannot be read ({error.strerror}): give the path of a TOML file."
        ) from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InputError(f"recipe {str(path)!r} is not TOML: {error}.") from None


def _parse_override(text: str) -> Layer:
    key, equals, value = text.partition("=")
    section, _, name = key.strip().rpartition(".")
    if not equals or not name:
        raise InputError(
            f"override {text!r} is not understood: write section.key=value, as in inversion.iterations=500."
        )
    try:
        parsed = tomllib.loads(f"value = {value.strip()}")["value"]
    except (tomllib.TOMLDecodeError, RecursionError):
        parsed = value.strip()
    return {section: {name: parsed}} if section else {name: parsed}


def _merge(values: Layer, layer: Layer) -> None:
    for key, value in layer.items():
        if key in SECTIONS:
            if not isinstance(value, dict):
                raise InputError(f"recipe section {key!r} must be a table, not {value!r}.")
            values[key] = {**values.get(key, {}), **value}
        else:
            values[key] = value


def _without_none(values: Layer) -> Layer:
    return {
        key: _without_none(value) if isinstance(value, dict) else value
        for key, value in values.items()
        if value is not None
    }
