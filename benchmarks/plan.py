"""How well does a plan say how long a build takes?

    python benchmarks/plan.py --teacher digits_vit --bits w4a8 --effort quick [--checkpoint F] [--cpu] [--json F]

Plans a build and makes it: expected and real seconds of each stage, and how far off all of them together are. On a
machine that other work shares, `--cpu` lets both count the process's own CPU seconds, on one thread.
"""

from __future__ import annotations

import argparse
import resource
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from image_quality import add_json_argument, save

from pipeline.recipe.recipe import Recipe
from pipeline.recipe.resolve import make_recipe
from pipeline.run.build import build, prepare
from pipeline.run.plan import make_plan
from pipeline.show.display import Display


def compare(recipe: Recipe, folder: Path) -> dict[str, Any]:
    """Seconds of each stage as planned and as they came, and the ratio of the sums."""
    display = Display()
    job = prepare(recipe, folder, torch.device("cpu"), display)
    started = time.perf_counter()
    plan = make_plan(job)
    planning = time.perf_counter() - started
    expected = {stage.name: stage.seconds for stage in plan.stages}
    display.follow(expected)
    real = {stage.name: round(stage.seconds, 1) for stage in build(job).stages}
    ratio = sum(expected.values()) / sum(real.values())
    return {
        "expected_s": expected, "real_s": real, "expected_over_real": round(ratio, 3),
        "planning_s": round(planning, 1), "expected_memory_bytes": plan.memory_bytes,
        "peak_bytes": 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss,
        "expected_disk_bytes": plan.disk_bytes, "disk_bytes": _size(folder), "threads": plan.threads,
    }  # fmt: skip


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--teacher", required=True)
    parser.add_argument("--checkpoint")
    parser.add_argument("--bits", required=True)
    parser.add_argument("--effort", default="standard")
    parser.add_argument("--set", action="append", default=[], help="as of `pipeline build`")
    parser.add_argument("--cpu", action="store_true", help="count the process's CPU seconds")
    add_json_argument(parser)
    args = parser.parse_args()
    flags = {name: getattr(args, name) for name in ("teacher", "checkpoint", "bits", "effort")}
    if args.cpu:
        time.perf_counter = time.process_time
        flags["threads"] = 1
    recipe = make_recipe(flags, None, args.set)
    with tempfile.TemporaryDirectory() as folder:
        found = compare(recipe, Path(folder) / "run")
    clock = "CPU seconds of the process" if args.cpu else "wall"
    about = {"teacher": args.teacher, "bits": args.bits, "effort": args.effort, "clock": clock}
    save(f"plan_{args.teacher}_{args.bits}_{args.effort}", about | found, args.json)


if __name__ == "__main__":
    main()
