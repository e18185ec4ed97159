"""Several workers on one folder of shards: are two twice as fast as one, and what do random kills do?

    python benchmarks/workers.py --rounds 3 --kills 20 --json F
    python benchmarks/workers.py --teacher deit_tiny --checkpoint tiny.safetensors --iterations 100 --batch 4
    python benchmarks/workers.py --kind ray --kills 20

With `--kind ray` the workers are those of a Ray cluster of this machine, of as many CPUs as there are workers. A
process without Ray takes its turn beside one of them, and kills fall on workers that are at a task.

Every worker has one thread. One and two workers run in turn, each on a new folder; a rate is the shards a second
between a worker's first and last one while all are at it, so that the start of Python does not count. Then workers
are killed (SIGKILL) at random moments in the middle of a shard and others are started, until all shards are there; this
begins anew until so many kills have fallen. A shard counts as made when its computation ended.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from image_quality import add_json_argument, save
from kills import products

from inversion.census import take_census
from inversion.claims import claims_in

WORKER = """
import json, os, sys, time
from inversion.inverter import Inverter
from pipeline.cli import main
log = os.open(sys.argv.pop(1), os.O_CREAT | os.O_APPEND | os.O_WRONLY)
shard = Inverter.shard
def told(self, number, *rest):
    found = shard(self, number, *rest)
    line = json.dumps({"shard": number, "process": os.getpid(), "time": time.monotonic()})
    os.write(log, line.encode() + b"\\n")
    return found
Inverter.shard = told
main()
"""
"""`pipeline ...`, with a line in a file for each shard that it made."""
RAY_DRIVER = """
import json, os, sys, time
from pipeline.cli import main
from pipeline.cluster import inverting
path, make = sys.argv.pop(1), inverting.make_shard
def told(key, shared, number, halved):
    found = make(key, shared, number, halved)
    line = json.dumps({"shard": number, "process": os.getpid(), "time": time.monotonic()})
    with open(path, "a") as log:
        log.write(line + "\\n")
    return found
inverting.make_shard = told
main()
"""
"""The same for the workers of a cluster, which get the function by value."""
TASK = "ray::told"
"""What Ray calls a worker that is at it."""
Start = Callable[[list[str], Path, Path, int], list[subprocess.Popen[bytes]]]
"""Starts so many workers for a command's words, a folder and a log."""


def array_workers(words: list[str], folder: Path, log: Path, workers: int) -> list[subprocess.Popen[bytes]]:
    """Processes that know of each other by their claims alone. Each may make any shard, since a part of its own would
    leave one worker idle at the end."""
    arguments = [sys.executable, "-c", WORKER, str(log), *words, "--quiet", "--threads", "1", "--out", str(folder)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return [subprocess.Popen(arguments, stderr=subprocess.DEVNULL, env=environment) for _ in range(workers)]


def ray_workers(words: list[str], folder: Path, log: Path, workers: int) -> list[subprocess.Popen[bytes]]:
    """A command with a Ray cluster of so many CPUs."""
    arguments = [sys.executable, "-c", RAY_DRIVER, str(log), *words, "--quiet", "--threads", "1", "--ray", "local"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "RAY_OVERRIDE_RESOURCES": json.dumps({"CPU": workers})}
    return [subprocess.Popen([*arguments, "--out", str(folder)], stderr=subprocess.DEVNULL, env=environment)]


KINDS: dict[str, Start] = {"array": array_workers, "ray": ray_workers}
"""Ways to have several workers: another one is an entry here."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--teacher", default="digits_vit")
    parser.add_argument("--checkpoint")
    parser.add_argument("--iterations", type=int, default=200)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--shards", type=int, default=24)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--kind", choices=KINDS, default="array")
    parser.add_argument("--seed", type=int, default=0)
    add_json_argument(parser)
    args = parser.parse_args()
    if args.rounds and args.shards < 4 * args.workers:
        parser.error(f"{args.shards} shards tell no rate of {args.workers} workers: give {4 * args.workers} or more")
    words = ["invert", "--teacher", args.teacher, "--iterations", str(args.iterations), "--batch", str(args.batch)]
    words += ["--images", str(args.shards * args.batch)]
    words += ["--checkpoint", args.checkpoint] if args.checkpoint else []
    start = KINDS[args.kind]
    chance = random.Random(args.seed)
    with tempfile.TemporaryDirectory() as place:
        found = {
            "kind": args.kind, "teacher": args.teacher, "iterations": args.iterations, "batch": args.batch,
            "shards": args.shards, "workers": args.workers,
            **(compare(words, Path(place), args.kind, args.workers, args.rounds) if args.rounds else {}),
            **(kill(words, Path(place), start, args.workers, args.kills, chance) if args.kills else {}),
        }  # fmt: skip
    save(f"workers_{args.kind}", found, args.json)
    sys.exit(bool(found.get("differences")) or int(str(found.get("made_most", 0))) > 2)


def compare(words: list[str], place: Path, kind: str, workers: int, rounds: int) -> dict[str, object]:
    """Shards a second of one worker and of several, in turn; for a cluster, of a process without one as well, and by
    how much one worker of the cluster is slower than that."""
    teams = [*([("array", 1)] if kind == "ray" else []), (kind, 1), (kind, workers)]
    rates: dict[tuple[str, int], list[float]] = {team: [] for team in teams}
    for round_ in range(rounds):
        for (how, count), found in rates.items():
            folder, log = place / f"{how}-{count}-{round_}", place / f"{how}-{count}-{round_}.log"
            require_done(KINDS[how](words, folder, log, count))
            found.append(rate(lines(log)))
            print(f"round {round_ + 1}: {count} of {how}, {found[-1]:.4f} shards/s", file=sys.stderr, flush=True)
    ratios = [many / one for one, many in zip(rates[kind, 1], rates[kind, workers], strict=True)]
    result: dict[str, object] = {
        "shards_per_s": {f"{how} {count}": [round(one, 4) for one in found] for (how, count), found in rates.items()},
        "ratios": [round(ratio, 3) for ratio in ratios],
        "ratio": round(statistics.median(ratios), 3),
    }
    if kind == "ray":
        slower = [alone / ray - 1 for alone, ray in zip(rates["array", 1], rates["ray", 1], strict=True)]
        result |= {"overheads": [round(one, 4) for one in slower], "overhead": round(statistics.median(slower), 4)}
    return result


def kill(
    words: list[str], place: Path, start: Start, workers: int, kills: int, chance: random.Random
) -> dict[str, object]:
    """How often each shard was made, and what differs from a run that nobody stopped."""
    whole, whole_log = place / "whole", place / "whole.log"
    require_done(start(words, whole, whole_log, 1))
    wanted, shard_s = products(whole), 1 / rate(lines(whole_log))
    differences: list[str] = []
    times: Counter[int] = Counter()
    done = jobs = 0
    while done < kills:
        jobs += 1
        folder, log = place / f"killed-{jobs}", place / f"killed-{jobs}.log"
        folder.mkdir()
        running = start(words, folder, log, workers)
        while done < kills and any(process.poll() is None for process in running):
            if start is ray_workers:
                done += kill_task(running[0], chance, shard_s)
                continue
            victim = at_work(folder, running, chance)
            if victim is None:
                continue
            time.sleep(chance.uniform(0, shard_s))
            if victim.poll() is None:
                victim.kill()
                victim.wait()
                running.remove(victim)
                done += 1
                print(f"kill {done} of {kills}", file=sys.stderr, flush=True)
                running += start(words, folder, log, 1)
        require_done(running)
        found = products(folder)
        differences += [f"job {jobs}: {name}" for name in wanted.keys() | found if wanted.get(name) != found.get(name)]
        differences += [f"job {jobs}: {number} is missing" for number in take_census(folder).missing]
        times += Counter(Counter(line["shard"] for line in lines(log)).values())
    return {
        "kills": done, "jobs": jobs, "differences": differences, "files_compared": len(wanted),
        "shards_made_so_often": {str(often): count for often, count in sorted(times.items())},
        "made_most": max(times),
    }  # fmt: skip


def at_work(
    folder: Path, running: list[subprocess.Popen[bytes]], chance: random.Random
) -> subprocess.Popen[bytes] | None:
    """One of the workers that are at a shard just now."""
    time.sleep(0.02)
    owners = {claim.owner.pid for claim in claims_in(folder)}
    busy = [process for process in running if process.pid in owners and process.poll() is None]
    return chance.choice(busy) if busy else None


def kill_task(driver: subprocess.Popen[bytes], chance: random.Random, shard_s: float) -> int:
    """Kill a worker of the driver's cluster in the middle of a shard; returns how many were killed."""
    time.sleep(chance.uniform(0, 2 * shard_s))
    parents, tasks = {}, []
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdecimal():
                parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
                tasks += [int(entry.name)] if (entry / "cmdline").read_text().startswith(TASK) else []
        except OSError:
            continue
    own = [task for task in sorted(tasks) if driver.pid in ancestors(task, parents)]
    if not own:
        return 0
    os.kill(chance.choice(own), signal.SIGKILL)
    print("a task was killed", file=sys.stderr, flush=True)
    return 1


def ancestors(process: int, parents: dict[int, int]) -> list[int]:
    found = [process]
    while (parent := parents.get(found[-1], 0)) > 1:
        found.append(parent)
    return found


def lines(log: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []


def rate(made: list[dict[str, float]]) -> float:
    """Shards a second of all workers together, while all of them are at it."""
    moments: dict[float, list[float]] = {}
    for line in made:
        moments.setdefault(line["process"], []).append(line["time"])
    begin, end = max(map(min, moments.values())), min(map(max, moments.values()))
    total = 0.0
    for times in moments.values():
        within = [moment for moment in times if begin <= moment <= end]
        if len(within) < 2:
            raise SystemExit("a worker made hardly a shard while the others worked: take more --shards")
        total += (len(within) - 1) / (within[-1] - within[0])
    return total


def require_done(processes: list[subprocess.Popen[bytes]]) -> None:
    for process in processes:
        if code := process.wait():
            raise SystemExit(f"a worker ended with {code}")


if __name__ == "__main__":
    main()
