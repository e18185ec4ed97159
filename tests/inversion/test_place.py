"""Inversion runs where the teacher is: on a pretended CUDA device, with the numbers of the CPU."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from inversion.confidence import target_confidence
from inversion.inverter import Inverter
from inversion.job import Inversion
from inversion.teacher import Teacher
from tests.elsewhere import There, elsewhere
from tests.small import small_teacher

JOBS = {
    "pri": Inversion(images=4, batch=4, iterations=8, division_factor=2),
    "smi": Inversion(method="smi", sparsity=50, images=2, batch=2, iterations=8, prune_at=(1, 2, 4, 6)),
    "dmi": Inversion(method="dmi", images=2, batch=2, iterations=5, tv_norm="batch"),
    "random": Inversion(images=4, batch=4, iterations=8, division_factor=2, selection="random"),
}


@pytest.mark.parametrize("name", JOBS)
def test_a_shard_is_the_cpus(name: str) -> None:
    """Patches of both devices differ by rounding alone: a CPU takes other sums of attention. They come back."""
    teacher, job = small_teacher(), replace(JOBS[name], precision="float32")
    want, _ = Inverter(teacher, job).shard(0)
    with elsewhere():
        there = on_gpu(teacher)
        inverter = Inverter(there, job)
        assert all(isinstance(weight, There) for weight in inverter.model.parameters())
        found, _ = inverter.shard(0)
        sure = target_confidence(there, found)
    assert not isinstance(found.patches, There)
    assert torch.equal(found.kept, want.kept)
    assert float((found.patches - want.patches).abs().max()) < 1e-2
    assert float((sure - target_confidence(teacher, found)).abs().max()) < 1e-5


def test_what_a_loop_holds_is_there() -> None:
    """Canvas, pixels, Adam's state, offsets, targets: nothing that an update would have to fetch. Random numbers come
    from the CPU, so that a seed begins from the same noise everywhere."""
    with elsewhere():
        loop = Inverter(on_gpu(small_teacher()), JOBS["pri"]).loop(0)
        loop.step()
        state = loop.optimizer.state[loop.pixels]
        held = [value for value in (*vars(loop).values(), *state.values()) if isinstance(value, Tensor)]
    assert {"exp_avg", "exp_avg_sq", "step"} <= state.keys()
    assert [value for value in held if not isinstance(value, There)] == [loop.labels]


@pytest.mark.parametrize("left_behind", ["targets", "offsets", "low", "kept", "own", "canvas"])
def test_a_tensor_left_behind_fails(left_behind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """So these tests would tell."""
    with elsewhere():
        loop = Inverter(on_gpu(small_teacher()), JOBS["pri"]).loop(0)
        monkeypatch.setattr(loop, left_behind, getattr(loop, left_behind).cpu())
        with pytest.raises(RuntimeError, match="same device"):
            loop.step()


def on_gpu(teacher: Teacher) -> Teacher:
    model = copy.deepcopy(teacher.model).to("cuda:0")
    return replace(teacher, model=model)
