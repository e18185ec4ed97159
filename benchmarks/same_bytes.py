"""Does one command give the same bytes every time, beside a busy neighbour, with each number of threads?

    python benchmarks/same_bytes.py --runs 30 --threads 1,2 --json F

A run inverts the built-in teacher and quantizes to w4a8 with some training; each process makes a few. The
neighbour multiplies matrices for random stretches of time. Files are compared by their sha256.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections import Counter

from image_quality import add_json_argument, save

OVERRIDES = (
    "inversion.iterations=12", "inversion.images=32", "inversion.batch=32", "training.updates=12", "basis.updates=12",
    "calibration.leaves=8",
)  # fmt: skip
RUNS_A_PROCESS = 10
FILES = ("images/shard-*.safetensors", "quantized.safetensors")
NEIGHBOUR = """
import random, time, numpy as np
a = np.random.default_rng(0).standard_normal((700, 700))
while True:
    until = time.time() + random.uniform(0.05, 1.0)
    while time.time() < until:
        a @ a
    time.sleep(random.uniform(0.0, 0.5))
"""
RUN = """
import hashlib, json, sys
from pathlib import Path
import torch
from inversion.machine import settle_sums
from pipeline.show.display import Display
from pipeline.recipe.resolve import make_recipe
from pipeline.record.manifest import TeacherRecord
from pipeline.run.folder import RunFolder
from pipeline.run.build import run_stage
from pipeline.run.job import Places
from pipeline.run.preflight import preflight
from pipeline.run.stages.invert import Invert
from pipeline.run.stages.quantize import Quantize
threads, folder, overrides, files = int(sys.argv[1]), Path(sys.argv[2]), sys.argv[3].split(","), sys.argv[4].split(",")
flags = {"teacher": "digits_vit", "bits": "w4a8", "effort": "quick", "threads": settle_sums(threads)}
for number in range(int(sys.argv[5])):
    with RunFolder(folder / str(number)) as run:
        recipe = make_recipe(flags, None, overrides)
        stages = Invert(), Quantize()
        job = preflight(recipe, torch.device("cpu"), Places.run(run.path), Display(quiet=True), stages)
        run.begin(recipe.to_dict(), TeacherRecord.of(job.teacher))
        for stage in stages:
            run_stage(stage, job, run)
    found = sorted(path for pattern in files for path in run.path.glob(pattern))
    print(json.dumps({path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in found}))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=30)
    parser.add_argument("--threads", default="1,2")
    add_json_argument(parser)
    args = parser.parse_args()
    neighbour = subprocess.Popen([sys.executable, "-c", NEIGHBOUR])
    try:
        rows = [measure(int(threads), args.runs) for threads in args.threads.split(",")]
    finally:
        neighbour.kill()
    save("same_bytes", {"overrides": list(OVERRIDES), "rows": rows}, args.json)


def measure(threads: int, runs: int) -> dict[str, object]:
    """How many different contents each file had."""
    contents: dict[str, Counter[str]] = {}
    started = time.perf_counter()
    for start in range(0, runs, RUNS_A_PROCESS):
        for found in process(threads, min(RUNS_A_PROCESS, runs - start)):
            for name, sha256 in found.items():
                contents.setdefault(name, Counter())[sha256] += 1
        differing = [name for name, counts in contents.items() if len(counts) > 1]
        print(f"{threads} threads, from run {start + 1} on: {differing or 'all files equal'}", flush=True)
    return {
        "threads": threads,
        "runs": runs,
        "seconds_a_run": round((time.perf_counter() - started) / runs, 1),
        "different_contents": {name: len(counts) for name, counts in sorted(contents.items())},
        "sha256": {name: counts.most_common(1)[0][0][:16] for name, counts in sorted(contents.items())},
    }


def process(threads: int, runs: int) -> list[dict[str, str]]:
    """sha256 by name of what each of `runs` made."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-c", RUN, str(threads), folder, ",".join(OVERRIDES), ",".join(FILES), str(runs)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


if __name__ == "__main__":
    main()
