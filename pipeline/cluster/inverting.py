"""Shards made by tasks of a cluster: their bytes come back through its object store, so that no disk is shared."""

from __future__ import annotations

import dataclasses
import math
import time
from collections import deque
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from inversion.folder import ShardFolder
from inversion.images import SparseImages
from inversion.inverter import POLL_S, WAITING, WHAT, Inverter
from inversion.job import Inversion
from inversion.machine import settle_sums
from inversion.progress import Progress, Tally, quiet
from inversion.shards import shard_path
from inversion.teacher import Teacher
from pipeline.cluster.connect import Cluster, cause_of, load_ray
from pipeline.cluster.shipping import packed, unpacked

RETRIES = 5
"""Of a shard whose machine was lost. One that raised an error of its own is not tried again."""

ENVIRONMENT = {"MALLOC_ARENA_MAX": "1"}
"""Of a worker that makes shards. Its process has many threads of Ray's, and one of ours: with an arena for each of them
memory of the small tensors of an iteration costs more, 3% of all on a CPU (docs/decisions/0021-ray.md)."""

Made = tuple[SparseImages, dict[str, Tensor]]


class Tasks:
    """The shards of one inversion as tasks of a cluster, of which a bounded number is under way: twice as many as run
    at once, so that none waits for the driver, and a cluster that grows by demand sees some."""

    def __init__(self, cluster: Cluster, teacher: Teacher, job: Inversion, threads: int, halved: bool = True) -> None:
        self.cluster, self.job, self.threads = cluster, job, threads
        cluster.require_room(threads)
        self.ray = load_ray()
        key = f"{teacher.sha256} {teacher.spec} {job} {cluster.gpu} {threads}"
        self.shared = [self.ray.put((packed(teacher), job, "cuda" if cluster.gpu else "cpu", threads))]
        needs, environment = cluster.needs(threads), {"env_vars": ENVIRONMENT}
        remote = self.ray.remote(max_retries=RETRIES, runtime_env=environment, **needs)(make_shard)
        self.begin = lambda number: remote.remote(key, self.shared, number, halved)
        self.under_way: dict[Any, int] = {}

    @property
    def full(self) -> bool:
        return len(self.under_way) >= max(2, 2 * self.cluster.slots(self.threads))

    def start(self, number: int) -> Any:
        """Begin shard `number`; returns what `wait` takes."""
        begun = self.begin(number)
        self.under_way[begun] = number
        return begun

    def next(self) -> tuple[int, Made]:
        """Wait for any shard that is under way: its number, and what was made."""
        (done,), _ = self.ray.wait(list(self.under_way), num_returns=1)
        return self.under_way[done], self.wait(done)

    def wait(self, begun: Any) -> Made:
        """Wait for one shard. Raises what its worker raised."""
        number = self.under_way.pop(begun)
        try:
            made: Made = self.ray.get(begun)
        except Exception as error:
            raise cause_of(error, f"shard {number}") from None
        return made


def invert_into(
    cluster: Cluster, teacher: Teacher, job: Inversion, threads: int, folder: Path, progress: Progress = quiet
) -> list[Path]:
    """`inversion.inverter.invert_into` with the shards made on `cluster`, each on so many `threads`: the same files of
    the same bytes, and other processes may fill the folder meanwhile, too."""
    inverter = Inverter(teacher, job)  # refuses before the folder is made
    left = numbers = list(range(len(inverter.wanted)))
    told = Tally(progress, WHAT, len(numbers), job.iterations)
    with ShardFolder(folder, inverter.wanted) as shards:
        tasks = Tasks(cluster, teacher, job, threads)
        while left:
            held = []  # by others
            ahead = deque(left)
            while ahead or tasks.under_way:
                while ahead and not tasks.full:
                    number = ahead.popleft()
                    if shards.made(number):
                        told.one_more()
                    elif shards.take(number):
                        tasks.start(number)
                    else:
                        held.append(number)
                if tasks.under_way:
                    number, (images, pictures) = tasks.next()
                    shards.publish(number, images, pictures)
                    told.one_more()
            left = held
            if left:
                progress(WAITING, len(numbers) - len(left), len(numbers), math.nan)
                time.sleep(POLL_S)
    return [shards.shard(number) for number in numbers]


class Ahead:
    """Every batch is a shard of an inversion, as in `calib.distillation.distiller.Streamed`, made on a cluster while
    the learner is still at those before it. Batches come in their order: the student is the same."""

    def __init__(
        self, cluster: Cluster, teacher: Teacher, job: Inversion, threads: int, keep: Path | None = None
    ) -> None:
        self.inverter, self.keep = Inverter(teacher, job), keep
        self.tasks = Tasks(cluster, teacher, job, threads, halved=False)
        self.begun: dict[int, Any] = {}
        self.coming = 0

    def __len__(self) -> int:
        return len(self.inverter.wanted)

    def batch(self, number: int, progress: Progress = quiet) -> SparseImages:  # noqa: ARG002 - made elsewhere
        """The images of one update; the next ones are begun."""
        self._begin(number)
        if number in self.begun:
            images, _ = self.tasks.wait(self.begun.pop(number))
            self._begin(number)
            if self.keep is None:
                return images
            self.keep.mkdir(parents=True, exist_ok=True)
            images.save(shard_path(self.keep, number))
        assert self.keep is not None
        return SparseImages.load(shard_path(self.keep, number))

    def _begin(self, number: int) -> None:
        """As many from `number` on as may be under way, and that one in any case."""
        self.coming = max(self.coming, number)
        while self.coming < len(self) and (self.coming == number or not self.tasks.full):
            kept = self.keep and self.inverter.made(shard_path(self.keep, self.coming), self.coming)
            if not kept:
                self.begun[self.coming] = self.tasks.start(self.coming)
            self.coming += 1


_ready: dict[str, Inverter] = {}
"""In a worker: what its last shard was made with, by what it is."""


def make_shard(key: str, shared: list[Any], number: int, halved: bool) -> Made:
    """In a worker: shard `number` of the inversion that `shared` refers to; `halved` in the number format of files."""
    if key not in _ready:
        _ready.clear()
        teacher, job, device, threads = load_ray().get(shared[0])
        settle_sums(threads)
        _ready[key] = Inverter(unpacked(teacher, torch.device(device)), job)
    images, pictures = _ready[key].shard(number)
    return (dataclasses.replace(images, patches=images.patches.half()) if halved else images), pictures
