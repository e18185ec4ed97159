"""Workers that fill one folder of shards, and fail at it: what `inversion.claims` makes of that, event by event.

Nothing is computed; time is a number. Imports nothing heavy.
"""

from __future__ import annotations

import heapq
import math
import random
from collections import deque
from dataclasses import dataclass

from inversion.claims import STALE_S

STALL_SHARE, STALL_S = 0.1, 2 * STALE_S
"""Of failures, those after which the worker wakes up and goes on, and after how long: its claim is taken over by then,
and it publishes what another makes too. Assumed."""
ASKS, PUBLISHES, FREED = range(3)


@dataclass(frozen=True)
class Trouble:
    """What goes wrong, assumed: a GPU works so many hours until it fails (inf: for ever), its worker is there again
    after `restart_s`, and shards take times that `spread` by so much (standard deviation of the logarithm)."""

    hours_to_failure: float = 1000.0
    restart_s: float = 120.0
    spread: float = 0.05


@dataclass(frozen=True)
class Outcome:
    """Of one simulated job: hours until the last shard was there; GPU hours `lost` in shards that were begun and not
    published, and those that were made again; how often a worker failed, and how many shards were made twice."""

    hours: float
    lost_gpu_hours: float
    failures: int
    made_twice: int
    made_most: int


def simulate(shards: int, seconds: float, workers: int, trouble: Trouble, seed: int = 0) -> Outcome:
    """`shards` of `seconds` each by so many `workers`, each of which takes the next that is neither made nor claimed,
    and waits where there is none."""
    return _Simulation(shards, seconds, workers, trouble, random.Random(seed)).run()


class _Simulation:
    def __init__(self, shards: int, seconds: float, workers: int, trouble: Trouble, chance: random.Random) -> None:
        self.seconds, self.trouble, self.chance = seconds, trouble, chance
        self.made = [0] * shards
        self.left, self.free = shards, deque(range(shards))
        self.waiting: list[int] = []
        self.events: list[tuple[float, int, int, int]] = [(0.0, ASKS, worker, 0) for worker in range(workers)]
        self.end = self.lost_s = 0.0
        self.failures = 0

    def run(self) -> Outcome:
        while self.events:
            now, kind, worker, shard = heapq.heappop(self.events)
            if kind == PUBLISHES:
                self._publish(now, shard)
            elif kind == FREED and not self.made[shard]:
                self.free.append(shard)
                worker = self.waiting.pop() if self.waiting else -1
            elif kind == FREED:
                continue
            if worker >= 0:
                self._ask(now, worker)
        most = max(self.made, default=0)
        again = sum(times > 1 for times in self.made)
        return Outcome(self.end / 3600, self.lost_s / 3600, self.failures, again, most)

    def _publish(self, now: float, shard: int) -> None:
        self.made[shard] += 1
        if self.made[shard] == 1:
            self.left -= 1
            self.end = now
        else:
            self.lost_s += self.seconds

    def _ask(self, now: float, worker: int) -> None:
        while self.free and self.made[self.free[0]]:
            self.free.popleft()
        if self.free:
            self._begin(now, worker, self.free.popleft())
        elif self.left:
            self.waiting.append(worker)

    def _begin(self, now: float, worker: int, shard: int) -> None:
        takes = self.seconds * math.exp(self.chance.gauss(0, self.trouble.spread))
        until = self.chance.expovariate(1) * 3600 * self.trouble.hours_to_failure
        if until >= takes:
            self._tell(now + takes, PUBLISHES, worker, shard)
            return
        self.failures += 1
        self._tell(now + until + STALE_S, FREED, -1, shard)
        if self.chance.random() < STALL_SHARE:
            self._tell(now + takes + STALL_S, PUBLISHES, worker, shard)
        else:
            self.lost_s += until
            self._tell(now + until + self.trouble.restart_s, ASKS, worker, 0)

    def _tell(self, when: float, kind: int, worker: int, shard: int) -> None:
        heapq.heappush(self.events, (when, kind, worker, shard))
