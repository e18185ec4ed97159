"""Several workers of one training, as processes of this machine."""

from __future__ import annotations

import multiprocessing
import pickle
import traceback
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from torch import distributed

from calib.parallel import Together, Workers

SECONDS = 120
"""After which whatever waits for another gives up."""


def as_team(size: int, folder: Path, work: Callable[[Workers], Any]) -> list[Any]:
    """What `work` gives in each of `size` processes, forked from this one; an error in one of them is raised here."""
    context = multiprocessing.get_context("fork")
    answers = context.SimpleQueue()
    store = folder / f"team-{size}"
    team = [context.Process(target=_member, args=(rank, size, store, work, answers)) for rank in range(size)]
    for process in team:
        process.start()
    try:
        found = dict(pickle.loads(answers.get()) for _ in team)
    finally:
        for process in team:
            process.kill()
            process.join()
        store.unlink(missing_ok=True)
    for answer in found.values():
        if isinstance(answer, _Failed):
            raise answer.error
    return [found[rank] for rank in range(size)]


class _Failed:
    def __init__(self, error: Exception) -> None:
        self.error = error


def _member(rank: int, size: int, store: Path, work: Callable[[Workers], Any], answers: Any) -> None:
    torch.set_num_threads(1)  # a pool of threads does not outlive a fork
    try:
        distributed.init_process_group(
            "gloo", init_method=f"file://{store}", rank=rank, world_size=size, timeout=timedelta(seconds=SECONDS)
        )
        answer = work(Together.of_process_group())
    except Exception as error:
        traceback.print_exc()
        answer = _Failed(error)
    answers.put(pickle.dumps((rank, answer)))  # as bytes: tensors themselves would be lent by a process that ends
