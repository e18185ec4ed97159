"""How long work says how far it is: one shape, whatever is being done. Imports nothing heavy."""

from __future__ import annotations

import math
from collections.abc import Callable

Progress = Callable[[str, int, int, float], None]
"""Called with (what is being done; steps done; steps in all; a value that says how well it goes, or NaN)."""


def quiet(what: str, done: int, total: int, value: float) -> None:
    """Says nothing."""


class Tally:
    """Tells how much is done of work in so many `parts` of so many `steps`, which come in any order."""

    def __init__(self, progress: Progress, what: str, parts: int, steps: int) -> None:
        self.progress, self.what, self.steps, self.total, self.parts_done = progress, what, steps, parts * steps, 0

    def one_more(self) -> None:
        """A part is done."""
        self.parts_done += 1
        self.progress(self.what, self.parts_done * self.steps, self.total, math.nan)

    def within(self, number: int) -> Progress:
        """For part `number`, which counts as if those before it, and no other, were done."""

        def told(what: str, done: int, _total: int, value: float) -> None:
            self.progress(what, (self.parts_done - number) * self.steps + done, self.total, value)

        return told
