"""The names that `pipeline reproduce` knows."""

from __future__ import annotations

from collections.abc import Callable

from inversion.errors import InputError
from pipeline.reproduce.efficiency import table_a1, theorem1
from pipeline.reproduce.laboratory import Laboratory
from pipeline.reproduce.quantized import table_a2, table_a5
from pipeline.reproduce.result import Result
from pipeline.reproduce.sheets import figure5, figure6, figure_a1, figure_a2
from pipeline.reproduce.students import figure_a3, table1, table_a3, table_a4

EXPERIMENTS: dict[str, Callable[[Laboratory], Result]] = {
    "table1": table1,
    "table2": table_a1,
    "tableA1": table_a1,
    "tableA2": table_a2,
    "tableA3": table_a3,
    "tableA4": table_a4,
    "tableA5": table_a5,
    "figure4": table_a4,
    "figure5": figure5,
    "figure6": figure6,
    "figureA1": figure_a1,
    "figureA2": figure_a2,
    "figureA3": figure_a3,
    "theorem1": theorem1,
}


def find_experiment(name: str) -> Callable[[Laboratory], Result]:
    """Raises `InputError`, with all names, for one that the paper has not."""
    if name not in EXPERIMENTS:
        raise InputError(f"unknown table or figure {name!r}: take one of {', '.join(EXPERIMENTS)}.")
    return EXPERIMENTS[name]
