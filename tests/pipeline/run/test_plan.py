"""A plan counts the work that will be done, and measuring for it changes nothing."""

from __future__ import annotations

import dataclasses
from functools import cache
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from calib.gptq import STRIP, layer_hessians
from calib.quantization import material
from inversion.images import SparseImages
from inversion.teacher import load_teacher
from pipeline.cluster.connect import Cluster
from pipeline.recipe.resolve import make_recipe
from pipeline.run.build import STAGES
from pipeline.run.job import Job, Places
from pipeline.run.pace import Pace
from pipeline.run.plan import make_plan
from pipeline.run.stages.quantize import shown
from pipeline.show.display import Display
from tests.pipeline.recipe.test_recipe import BASE
from tests.small import small_teacher, sparse_images

SPEEDS = ("forward", "forward_on_cpu", "gradient", "leaf", "call", "tried_range")

teacher = cache(lambda: load_teacher("digits_vit"))


class Steady(Pace):
    """A machine of which every speed is known."""

    def __init__(self) -> None:
        super().__init__(teacher())
        vars(self).update(dict.fromkeys(SPEEDS, 1e-9), hessian_flop=1e-13, rounding=(1e-9, 1e-13))

    def trajectory(self, job: object) -> float:
        return job.iterations  # type: ignore[attr-defined] # an Inversion

    def basis_update(self, _: object) -> float:
        return 1.0


def job(folder: Path, *overrides: str) -> Job:
    return Job(make_recipe(BASE, None, overrides), teacher(), Places.run(folder), Display(quiet=True))


def costs(job: Job) -> dict[str, float]:
    return {stage.name: stage.cost(job, Steady()) for stage in STAGES}


def test_time_follows_the_work(tmp_path: Path) -> None:
    """Twice the trajectories and half the iterations are as many; updates of the basis count, and rounding where there
    is some; without an architecture there is no engine to build."""
    plain = costs(job(tmp_path, "inversion.images=96", "inversion.iterations=300", "bits=w4a8"))
    other = costs(job(tmp_path, "inversion.images=192", "inversion.iterations=150", "engine.arch=[]", "bits=w8a8"))
    assert plain["invert"] == pytest.approx(24 * 300, rel=1e-6)
    assert other["invert"] == pytest.approx(48 * 150, rel=1e-6)
    assert plain["quantize"] > other["quantize"] > 300
    assert plain["engine"] > other["engine"] == 0
    assert costs(job(tmp_path, "basis.method=none"))["quantize"] < 1
    trained = costs(job(tmp_path, "basis.method=none", "training.updates=10"))
    assert trained["quantize"] > costs(job(tmp_path, "basis.method=none"))["quantize"]


def test_a_cluster_shares_the_shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three shards on two places take two thirds of the time, by their sum; on a hundred a third."""
    alone = job(tmp_path)
    assert len(alone.recipe.inversion.shards()) > 2
    for slots, share in ((2, 1 / 2), (100, 1 / len(alone.recipe.inversion.shards()))):
        monkeypatch.setattr(Cluster, "slots", lambda *_, slots=slots: slots)
        shared = dataclasses.replace(alone, cluster=Cluster("local", gpu=False))
        assert costs(shared)["invert"] == pytest.approx(share * costs(alone)["invert"], rel=1e-5)


@pytest.mark.parametrize("kind", ["sparse", "mosaic", "leaves", "mixed"])
@pytest.mark.parametrize("trajectories", [2, 7, 24])
def test_images_are_counted_as_they_are_shown(kind: str, trajectories: int) -> None:
    """As many as `calib` makes of the same recipe."""
    recipe = make_recipe(BASE, None, [f"inversion.images={3 * trajectories}", "inversion.division_factor=3",
                                      "calibration.leaves=5"])  # fmt: skip
    images: SparseImages = sparse_images(trajectories)
    show, _ = material(small_teacher(), images, recipe.calibration)
    assert len(show(kind)) == shown(recipe, kind)


def test_hessians_are_counted_as_they_are_summed() -> None:
    """tokens x width x (width + STRIP) additions and multiplications, by torch's own counter."""
    layer = nn.Linear(2 * STRIP, 3)
    tokens = torch.zeros(2, 5, 2 * STRIP)
    with FlopCounterMode(display=False) as counter:
        layer_hessians(layer, layer, [tokens])
    assert counter.get_total_flops() == 10 * 2 * STRIP * (2 * STRIP + STRIP)


def test_measuring_leaves_no_trace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither a file nor a drawn number; and what was measured is more than nothing."""
    for name in ("BUDGET_S", "BATCH_BUDGET_S"):
        monkeypatch.setattr(f"pipeline.run.pace.{name}", 0.01)
    before = torch.get_rng_state()
    weights = [weight.clone() for weight in teacher().model.parameters()]
    plan = make_plan(job(tmp_path / "run"))
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(a, b) for a, b in zip(weights, teacher().model.parameters(), strict=True))
    assert not list(tmp_path.iterdir())
    assert all(stage.seconds > 0 for stage in plan.stages)
    assert plan.seconds == sum(stage.seconds for stage in plan.stages)
