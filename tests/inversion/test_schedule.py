"""How many patches stay active for how long, and which jobs are refused."""

import re
from math import inf, nan
from typing import Any

import pytest

from inversion.errors import InputError
from inversion.job import Inversion
from inversion.schedule import Stage, schedule


@pytest.mark.parametrize("v", [1, 2, 3, 4, 5, 6, 7, 196])
def test_pri_tiles_the_grid(v: int) -> None:
    """K = floor(196 / v) patches leave as each image, the last holds the rest, and together they are all 196."""
    stages = schedule(Inversion("pri", iterations=4000, division_factor=v, sparsity=76, batch=0), 196)
    leaving = [stage.leave for stage in stages]
    assert leaving[:-1] == [196 // v] * (v - 1)
    assert leaving[-1] == 196 - (v - 1) * (196 // v)
    assert [stage.active for stage in stages] == [196 - k * (196 // v) for k in range(v)]


@pytest.mark.parametrize(("iterations", "v"), [(4000, 4), (4000, 3), (100, 7), (7, 7), (10, 4)])
def test_pri_spends_all_iterations(iterations: int, v: int) -> None:
    """Detachment points are k * floor(T / v); the last stage takes what v does not divide."""
    lengths = [
        stage.iterations
        for stage in schedule(Inversion("pri", iterations=iterations, division_factor=v, sparsity=76, batch=0), 196)
    ]
    assert lengths[:-1] == [iterations // v] * (v - 1)
    assert sum(lengths) == iterations


def test_dmi_is_one_dense_stage() -> None:
    """DMI keeps every patch to the end."""
    assert schedule(Inversion("dmi", iterations=4000, division_factor=4, sparsity=76, batch=0), 196) == [
        Stage(4000, 196, 196)
    ]


@pytest.mark.parametrize(
    ("sparsity", "active"),
    [(50, [196, 164, 137, 115, 96]), (76, [196, 137, 95, 66, 46]), (86, [196, 119, 72, 43, 26])],
)
def test_smi_prunes_as_published(sparsity: int, active: list[int]) -> None:
    """SMI prunes a share of what is active at 50, 100, 200 and 300: 196, 137, 95, 66, 46 at 76% (appendix D)."""
    stages = schedule(Inversion("smi", iterations=4000, division_factor=4, sparsity=sparsity, batch=0), 196)
    assert [stage.active for stage in stages] == active
    assert [stage.iterations for stage in stages] == [50, 50, 100, 100, 3700]
    assert [stage.active - stage.leave for stage in stages] == [*active[1:], 0]
    assert stages[-1].leave == active[-1]
    assert abs(1 - active[-1] / 196 - sparsity / 100) < 0.02


@pytest.mark.parametrize(
    ("patches", "values", "message"),
    [
        (16, {"division_factor": 17}, "division factor 17 does not divide 16 patches: take 1 to 16."),
        (16, {"iterations": 3}, "3 iterations are too few for division factor 4: take at least 4."),
        (
            196,
            {"method": "smi", "iterations": 300},
            "300 iterations end before SMI's last pruning at 300: take more, or set prune_at.",
        ),
        (196, {"method": "smi", "sparsity": 60}, "sparsity 60 is not one of SMI's: take 50, 76, 86."),
    ],
)
def test_impossible_schedules_are_refused(patches: int, values: dict[str, Any], message: str) -> None:
    """A schedule that cannot be kept is refused with the value and the limit."""
    with pytest.raises(InputError, match=f"^{re.escape(message)}$"):
        schedule(Inversion(**values), patches)


def test_smi_prunes_where_it_is_told() -> None:
    """A short inversion prunes earlier, by the same shares."""
    stages = schedule(Inversion("smi", iterations=80, prune_at=(1, 2, 4, 6)), 196)
    assert [stage.iterations for stage in stages] == [1, 1, 2, 2, 74]
    assert [stage.active for stage in stages] == [196, 137, 95, 66, 46]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"method": "gan"}, "unknown inversion.method 'gan': take one of dmi, smi, pri."),
        ({"images": 0}, "inversion.images must be at least 1, not 0."),
        ({"iterations": -1}, "inversion.iterations must be at least 1, not -1."),
        ({"batch": -1}, "inversion.batch must be at least 0, not -1."),
        ({"division_factor": 0}, "inversion.division_factor must be at least 1, not 0."),
        (
            {"prune_at": (50, 50, 60, 70)},
            "inversion.prune_at must rise from 1 on, not [50, 50, 60, 70].",
        ),
        ({"prune_at": (0, 1, 2, 3)}, "inversion.prune_at must rise from 1 on, not [0, 1, 2, 3]."),
        ({"prune_at": (50,)}, "recipe key 'inversion.prune_at' must be a list of 4, not (50,)."),
        ({"selection": "high"}, "unknown inversion.selection 'high': take one of attention, low, random, top."),
        ({"precision": "float16"}, "unknown inversion.precision 'float16': take one of auto, float32, bfloat16."),
        ({"tv_norm": "l1"}, "unknown inversion.tv_norm 'l1': take one of image, batch."),
        ({"prior_weight": inf, "prior": "resnet18"}, "inversion.prior_weight must be at least 0 and finite, not inf."),
        ({"learning_rate": 0.0}, "inversion.learning_rate must be above 0 and finite, not 0.0."),
        ({"learning_rate": nan}, "inversion.learning_rate must be above 0 and finite, not nan."),
        ({"learning_rate": inf}, "inversion.learning_rate must be above 0 and finite, not inf."),
        ({"tv_weight": -1.0}, "inversion.tv_weight must be at least 0 and finite, not -1.0."),
        ({"tv_weight": nan}, "inversion.tv_weight must be at least 0 and finite, not nan."),
        ({"tv_weight": inf}, "inversion.tv_weight must be at least 0 and finite, not inf."),
        ({"betas": (0.5, 1.0)}, "inversion.betas must be at least 0 and below 1, not 1.0."),
        ({"betas": (-0.1, 0.9)}, "inversion.betas must be at least 0 and below 1, not -0.1."),
        ({"betas": (0.9,)}, "recipe key 'inversion.betas' must be a list of 2, not (0.9,)."),
        (
            {"batch": 3, "division_factor": 4},
            "batch 3 is less than one trajectory's 4 images: take more, or 0 for as many as fit.",
        ),
    ],
)
def test_impossible_jobs_are_refused(values: dict[str, Any], message: str) -> None:
    """A job refuses a bad value when it is made."""
    with pytest.raises(InputError, match=f"^{re.escape(message)}$"):
        Inversion(**values)


@pytest.mark.parametrize(
    ("job", "trajectories", "shards"),
    [
        (Inversion(images=8, batch=8), 2, [range(2)]),
        (Inversion(images=9, batch=8), 3, [range(2), range(2, 3)]),
        (Inversion(images=20, batch=9), 5, [range(2), range(2, 4), range(4, 5)]),
        (Inversion(method="dmi", images=5, batch=2), 5, [range(2), range(2, 4), range(4, 5)]),
        (Inversion(method="smi", images=1, batch=1), 1, [range(1)]),
    ],
)
def test_images_and_batch_count_sparse_images(job: Inversion, trajectories: int, shards: list[range]) -> None:
    """A PRI trajectory yields v images, so a batch holds floor(batch / v) of them, and no fewer images than asked."""
    assert job.trajectories == trajectories
    assert job.shards() == shards
    assert job.trajectories * job.images_per_trajectory >= job.images
