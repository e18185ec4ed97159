"""docs/recipe.md, made from the settings themselves: `python -m pipeline.recipe.reference > docs/recipe.md`."""

from __future__ import annotations

import dataclasses
import inspect
import json
import textwrap
import typing
from importlib.resources import files
from typing import Any

from inversion.checked import values_of
from pipeline.recipe.recipe import Recipe
from pipeline.recipe.resolve import EFFORTS, READS, SECTIONS

HEAD = """# The recipe

Every value that decides a run, its default, and what may stand there. This page is made from the settings:
`python -m pipeline.recipe.reference > docs/recipe.md`.

A recipe is put together in this order, and what comes later wins: the preset of `--effort`, a TOML file
(`--recipe FILE`), flags, and `--set section.key=value`. A run folder holds its whole recipe as `recipe.toml`, which
`--recipe` takes. A flag or `--set` that a verb does not read is refused; a file may hold the sections of all verbs.
"""


def reference() -> str:
    """The page."""
    plain = Recipe("", "")
    top = [field.name for field in dataclasses.fields(Recipe) if field.name not in SECTIONS]
    parts = [HEAD, _presets(), "## What stands above all sections\n", _about(Recipe), _table(Recipe, plain, top)]
    hints = typing.get_type_hints(Recipe)
    for section in SECTIONS:
        kind = hints[section]
        names = [field.name for field in dataclasses.fields(kind)]
        readers = ", ".join(f"`{verb}`" for verb, read in READS.items() if section in read)
        parts += [f"## [{section}]\n", f"Read by {readers}.\n", _about(kind)]
        parts.append(_table(kind, getattr(plain, section), names))
    return "\n".join(parts)


def _presets() -> str:
    """Each preset's header, as it stands in its file."""
    found = ["## Presets\n"]
    for name in (*EFFORTS, "distill"):
        text = files("pipeline.recipe").joinpath("presets", f"{name}.toml").read_text().strip()
        found.append(f"`{name}`:\n\n{textwrap.indent(text, '    ')}\n")
    return "\n".join(found)


def _about(kind: type) -> str:
    """What its docstring says, without the examples."""
    return f"{(inspect.getdoc(kind) or '').partition('>>>')[0].strip()}\n"


def _table(kind: type, default: Any, names: list[str]) -> str:
    rows = ["| key | may be | default |", "| --- | --- | --- |"]
    for name in names:
        said = json.dumps(getattr(default, name)) if getattr(default, name) not in (None, "") else ""
        rows.append(f"| `{name}` | {values_of(kind, name)} | {f'`{said}`' if said else ''} |")
    return "\n".join(rows) + "\n"


if __name__ == "__main__":
    print(reference(), end="")
