"""How long what is left of a command takes, stage by stage."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

LEAST = 5.0
"""Expected seconds of work that is done, below which nothing is learned from how long it took."""


def duration(seconds: float) -> str:
    """In words: `40 seconds`, `3.4 minutes`, `2.1 hours`."""
    if seconds < 99.5:
        return f"{seconds:.0f} seconds"
    return f"{seconds / 60:.1f} minutes" if seconds < 5400 else f"{seconds / 3600:.1f} hours"


class Itinerary:
    """The stages of a command in order, each with the seconds that are expected of it."""

    def __init__(self, expected: Mapping[str, float], clock: Callable[[], float] = time.monotonic) -> None:
        self.expected, self.clock = dict(expected), clock
        self.begun: dict[str, float] = {}

    def begin(self, name: str) -> None:
        """Stage `name` begins, and whatever ran before it is done."""
        self.begun[name] = self.clock()

    @property
    def place(self) -> str:
        """`stage 2 of 5`."""
        return f"stage {1 + list(self.expected).index(self._now)} of {len(self.expected)}"

    @property
    def left(self) -> float:
        """Seconds to the end, the machine being as much slower or faster than expected as it was in what is done."""
        names = list(self.expected)
        behind = names[1 + names.index(self._now) :]
        this = self.expected[self._now] * self._slower() - (self.clock() - self.begun[self._now])
        return max(this, 0.0) + sum(self.expected[name] for name in behind) * self._slower()

    @property
    def _now(self) -> str:
        return list(self.begun)[-1]

    def _slower(self) -> float:
        done = list(self.begun)[:-1]
        expected = sum(self.expected[name] for name in done)
        spent = self.begun[self._now] - next(iter(self.begun.values()))
        return spent / expected if expected >= LEAST else 1.0
