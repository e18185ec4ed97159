"""`pipeline plan`: an inversion of any size on paper, and the plan checked by simulation."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from inversion.cost import Geometry, mean_iteration_flops
from inversion.errors import InputError
from inversion.job import Inversion
from inversion.schedule import Stage
from pipeline.reproduce import paper
from pipeline.reproduce.simulation import Outcome, Trouble, simulate

SEEDS = 5
"""Simulated jobs, each with other failures."""
MOST_ARRAY = 1001
"""Slurm's MaxArraySize where nobody set another: numbers of tasks must be less."""
MOST_SIMULATED = 200_000


@dataclass(frozen=True)
class Rate:
    """FLOP/s that a GPU reaches in inversion, and how that is known."""

    flops_per_s: float
    source: str


@dataclass(frozen=True)
class Fleet:
    """An inversion on `gpus` equal GPUs, by formula; bytes are those of shards on disk."""

    job: Inversion
    gpus: int
    rate: Rate
    patches: int
    images_per_shard: int
    shards: int
    flops_per_iteration: float
    flops: float
    seconds_per_shard: float
    bytes_per_shard: int
    bytes: int
    bytes_in_memory: int

    @property
    def gpu_hours(self) -> float:
        return self.shards * self.seconds_per_shard / 3600

    @property
    def hours(self) -> float:
        """The last round of shards included, which does not keep all GPUs busy."""
        return -(-self.shards // self.gpus) * self.seconds_per_shard / 3600


def plan_fleet(geometry: Geometry, stages: Sequence[Stage], job: Inversion, gpus: int, rate: Rate) -> Fleet:
    """Raises `InputError` for a batch that follows from the GPU, which is not there."""
    if job.batch == 0:
        raise InputError("a plan needs inversion.batch as a number, not auto: give --batch 128 or the like.")
    shards = job.shards()
    trajectories = len(shards[0])
    images = trajectories * job.images_per_trajectory
    per_iteration = mean_iteration_flops(geometry, stages, trajectories, lean=True)
    # each shard's rows are as long as its longest image's: float16 pixels, int16 places; labels, stage, trajectory
    longest = max(stage.leave for stage in stages) if job.method == "pri" else stages[-1].active
    image = longest * (2 * geometry.pixels_per_patch + 2) + 4 + 1 + 4
    total = job.trajectories * job.images_per_trajectory
    return Fleet(
        job, gpus, rate, geometry.patches, images, len(shards), per_iteration,
        flops=per_iteration / trajectories * job.trajectories * job.iterations,
        seconds_per_shard=per_iteration * job.iterations / rate.flops_per_s,
        bytes_per_shard=images * image, bytes=total * image,
        bytes_in_memory=total * longest * 4 * geometry.pixels_per_patch,
    )  # fmt: skip


def rate_of(teacher: str, job: Inversion, tflops: float | None, bench: Path | None) -> Rate:
    """What is given, what `pipeline bench inversion --json` measured, or what the paper's GPU reached."""
    if tflops is not None:
        if not 0 < tflops < math.inf:
            raise InputError(f"--tflops {tflops} is no speed: give what one GPU reaches, as in 13.4.")
        return Rate(tflops * 1e12, "given")
    name = {"pri": f"pri_v{job.division_factor}", "smi": f"smi_{job.sparsity}"}.get(job.method, job.method)
    if bench is not None:
        return Rate(_measured(bench, name), f"{name} as measured in {bench.name}")
    published = paper.efficiency(teacher) or paper.efficiency("deit_base") or {}
    row = name if name in published else "pri_v4"
    found = published[row]
    of = teacher if paper.efficiency(teacher) else "deit_base"
    return Rate(
        found.iterations_per_s * found.flops,
        f"the paper's RTX A6000 ({of}, {row}: {found.iterations_per_s} iterations/s of {found.flops / 1e9:.0f} GFLOP); "
        "give --tflops or --bench for another GPU",
    )


def _measured(bench: Path, name: str) -> float:
    mend = "give what `pipeline bench inversion --json` wrote."
    try:
        rows = json.loads(bench.read_bytes())["rows"]
        rate = next(float(row["flops_per_s"]) for row in rows if row["name"] == name)
    except OSError as error:
        raise InputError(f"--bench {str(bench)!r} cannot be read ({error.strerror}): {mend}") from None
    except (ValueError, KeyError, TypeError, RecursionError):
        raise InputError(f"--bench {str(bench)!r} is no record of a bench: {mend}") from None
    except StopIteration:
        raise InputError(f"--bench {str(bench)!r} has no row {name!r}: {mend}") from None
    if not 0 < rate < math.inf:
        raise InputError(f"--bench {str(bench)!r} tells of {rate} FLOP/s: {mend}")
    return rate


def check_fleet(plan: Fleet, trouble: Trouble, seed: int = 0) -> list[Outcome]:
    """The same job simulated SEEDS times; raises `InputError` for more shards than that is good for, and for GPUs that
    fail before they have made one: stalled workers alone would make them."""
    if plan.shards > MOST_SIMULATED:
        raise InputError(f"{plan.shards} shards are too many to simulate: take a larger inversion.batch.")
    if trouble.hours_to_failure * 3600 < plan.seconds_per_shard:
        raise InputError(
            f"GPUs that fail every {trouble.hours_to_failure:g} hours end hardly a shard of "
            f"{_time(plan.seconds_per_shard)}: take a smaller inversion.batch, or a larger --hours-to-failure."
        )
    return [
        simulate(plan.shards, plan.seconds_per_shard, plan.gpus, trouble, seed * SEEDS + number)
        for number in range(SEEDS)
    ]


def limits_of(plan: Fleet, outcomes: Sequence[Outcome], trouble: Trouble) -> list[str]:
    """What fails first, the first at the top: what surely meets a limit before what may."""
    failures = statistics.mean(outcome.failures for outcome in outcomes)
    found = []
    if plan.shards > MOST_ARRAY:
        found.append(
            f"Slurm takes no array of {plan.shards} tasks (MaxArraySize is {MOST_ARRAY} where nobody raised it): give "
            f"each of {plan.gpus} tasks a part, --shard $SLURM_ARRAY_TASK_ID/{plan.gpus}, and for those that lack "
            f"something `pipeline shards DIR --missing --of {plan.gpus}`."
        )
    found.append(
        f"memory: who reads all images at once, as quantize and an invert without --shard, needs "
        f"{_size(plan.bytes_in_memory)}: quantize does well with some hundred, so give it a folder of few shards."
    )
    found.append(
        f"GPUs: {failures:.1f} failures at one in {trouble.hours_to_failure:g} hours of each; one costs at most a "
        f"shard, {_time(plan.seconds_per_shard)}."
    )
    if plan.shards < plan.gpus:
        found.append(f"work: {plan.gpus - plan.shards} GPUs have no shard: take a smaller inversion.batch.")
    return found


def in_words(plan: Fleet, outcomes: Sequence[Outcome], trouble: Trouble) -> list[str]:
    """For people: the plan, what was assumed, what the simulation says, what fails first."""
    job = plan.job
    hours = [outcome.hours for outcome in outcomes]
    twice = [outcome.made_twice for outcome in outcomes]
    lost = statistics.mean(outcome.lost_gpu_hours for outcome in outcomes)
    return [
        f"{plan.shards} shards of {plan.images_per_shard} images: {job.trajectories} trajectories of {job.iterations} "
        f"iterations ({job.method}), {job.trajectories * job.images_per_trajectory} images",
        f"compute: {plan.flops_per_iteration / 1e9:.0f} GFLOP an iteration, {plan.flops:.3g} FLOP in all",
        f"assumed: {plan.rate.flops_per_s / 1e12:.1f} TFLOP/s a GPU, {plan.rate.source}",
        f"disk: {_size(plan.bytes)} in all, {_size(plan.bytes_per_shard)} a shard",
        f"time: {_time(plan.seconds_per_shard)} a shard, {plan.gpu_hours:.1f} GPU hours, {plan.hours:.2f} hours on "
        f"{plan.gpus} GPUs",
        f"simulated {len(outcomes)} times with failures: {min(hours):.2f} to {max(hours):.2f} hours, "
        f"{lost:.2f} GPU hours lost, {min(twice)} to {max(twice)} shards made twice, none more than "
        f"{max(outcome.made_most for outcome in outcomes)} times",
        "what fails first:",
        *(f"  {number}. {sentence}" for number, sentence in enumerate(limits_of(plan, outcomes, trouble), start=1)),
    ]


def to_json(plan: Fleet, outcomes: Sequence[Outcome], trouble: Trouble) -> dict[str, Any]:
    """All of it, as --json writes it."""
    return {
        **asdict(plan), "gpu_hours": plan.gpu_hours, "hours": plan.hours, "trouble": asdict(trouble),
        "simulated": [asdict(outcome) for outcome in outcomes], "limits": limits_of(plan, outcomes, trouble),
    }  # fmt: skip


def _size(amount: float) -> str:
    return f"{amount / 1e9:.1f} GB" if amount >= 1e9 else f"{amount / 1e6:.1f} MB"


def _time(seconds: float) -> str:
    return f"{seconds / 60:.1f} minutes" if seconds >= 60 else f"{seconds:.1f} seconds"
