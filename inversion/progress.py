"""How long work says how far it is: one shape, whatever is being done. Imports nothing heavy."""

from __future__ import annotations

from collections.abc import Callable

Progress = Callable[[str, int, int, float], None]
"""Called with (what is being done; steps done; steps in all; a value that says how well it goes, or NaN)."""


def quiet(what: str, done: int, total: int, value: float) -> None:
    """Says nothing."""
