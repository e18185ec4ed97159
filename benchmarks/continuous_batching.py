"""Would trajectories of different ages in one batch be faster than all in step?

In step, a batch shrinks from stage to stage, so that late stages might leave the machine idle; mixed ages would keep it
full. The most that mixing could gain is the time in step over the time that the same tokens take at the rate of the
fullest batch measured.

python benchmarks/continuous_batching.py --teacher deit_tiny --random-weights --name continuous_batching
"""

from __future__ import annotations

import argparse
import statistics
import time

from recording import write_record

from inversion.inverter import Inverter
from inversion.job import Inversion
from inversion.teacher import Teacher, load_teacher
from pipeline.reproduce.bench import describe_device

V, UPDATES = 4, 3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--teacher", required=True)
    parser.add_argument("--random-weights", action="store_true")
    parser.add_argument("--trajectories", type=int, nargs="+", default=[1, 2, 4, 8, 16, 32])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--name", required=True)
    args = parser.parse_args()
    teacher = load_teacher(args.teacher, random_weights=args.random_weights)
    rounds = [{count: stage_seconds(teacher, count) for count in args.trajectories} for _ in range(args.rounds)]
    seconds = {
        count: [statistics.median(each) for each in zip(*(one[count] for one in rounds), strict=True)]
        for count in args.trajectories
    }
    # by stage, since attention makes a token of a longer sequence dearer
    full = [min(seconds[count][stage] / count for count in args.trajectories) for stage in range(V)]
    rows = [
        {
            "trajectories": count,
            "ms_by_stage": [1e3 * one for one in found],
            "in_step_over_always_full": sum(found) / count / sum(full),
        }
        for count, found in seconds.items()
    ]
    inverter = Inverter(teacher, Inversion(images=V, batch=V))
    machine = describe_device(inverter.model.pos_embed.device)
    write_record(args.name, {"device": machine, "dtype": str(inverter.dtype), "division_factor": V, "rows": rows})


def stage_seconds(teacher: Teacher, trajectories: int) -> list[float]:
    """Seconds an update of `trajectories` PRI trajectories in each stage."""
    inverter = Inverter(teacher, Inversion(images=V * trajectories, batch=V * trajectories, division_factor=V))
    loop, found = inverter.loop(0), []
    for stage in inverter.stages:
        loop.step()
        start = time.perf_counter()
        for _ in range(UPDATES):
            loop.step()
        found.append((time.perf_counter() - start) / UPDATES)
        if stage is not inverter.stages[-1]:
            loop.end_stage(stage.leave)
    return found


if __name__ == "__main__":
    main()
