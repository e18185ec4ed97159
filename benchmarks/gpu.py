"""What does a GPU make of all this? Its tests, then speed, memory and fidelity of every stage there, as records.

    make gpu
    python benchmarks/gpu.py [--only engines] [--checkpoint DIR] [--minutes 10]
    python benchmarks/gpu.py --smoke    # anywhere: a rehearsal on the built-in teacher, records in a temporary folder

Parts run one after another, each in a process of its own: one that fails says so, and the rest go on. A part that
needs a GPU is skipped in a rehearsal without one. --checkpoint is a folder that may hold deit_tiny.safetensors and
deit_base.safetensors; without, weights are random: that changes no time, but agreement then means little.

Exit code 0: every part is done or skipped; 1: one failed; 3: there is no GPU.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from gpu_parts import PARTS, Place, Skipped, describe_gpu
from recording import RECORDS, write_record

LEAST_SECONDS = 20.0
"""Left over, that a part is begun with."""
DONE, SKIPPED, FAILED = "done", "skipped", "FAILED"
SKIPS = 77
"""Exit code of a part that was skipped."""


@dataclass(frozen=True)
class Outcome:
    """Of a part: `state` is done, skipped or FAILED, `said` its last line where it is not done."""

    part: str
    state: str
    seconds: float
    said: str = ""


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", action="append", choices=PARTS, help="Once or more; all parts by default.")
    parser.add_argument("--smoke", action="store_true")
    parser.add_argument("--checkpoint", type=Path)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--out", type=Path, help="Folder of the records; benchmarks/records by default.")
    parser.add_argument("--part", choices=PARTS, help=argparse.SUPPRESS)
    args = parser.parse_args(arguments)
    if not (args.smoke or torch.cuda.is_available()):
        print("error: torch sees no CUDA device: run this where there is an NVIDIA GPU, or rehearse it with --smoke.")
        return 3
    with tempfile.TemporaryDirectory() as scratch:
        records = args.out or (Path(scratch) if args.smoke else RECORDS)
        if args.part:
            return run_part(args.part, Place(args.smoke, args.checkpoint, records))
        outcomes = run_all(args, records)
        write_record("gpu", {"gpu": describe_gpu(), "parts": [asdict(each) for each in outcomes]}, records)
    for each in outcomes:
        print(f"{each.part:<12} {each.state:<8} {each.seconds:6.1f} s  {each.said}")
    return int(any(each.state == FAILED for each in outcomes))


def run_all(args: argparse.Namespace, records: Path) -> list[Outcome]:
    """Every part that was asked for, until the time is over."""
    end, outcomes = time.monotonic() + 60 * args.minutes, []
    flags = ["--out", str(records), *(["--smoke"] if args.smoke else [])]
    flags += ["--checkpoint", str(args.checkpoint)] if args.checkpoint else []
    for part in args.only or PARTS:
        left = end - time.monotonic()
        if left < LEAST_SECONDS:
            outcomes.append(Outcome(part, SKIPPED, 0.0, f"no time is left: --only {part} runs it alone"))
            continue
        print(f"--- {part}", flush=True)
        outcomes.append(in_own_process(part, flags, left))
    return outcomes


def in_own_process(part: str, flags: list[str], limit_s: float) -> Outcome:
    """A fault of the GPU ends the process that meets it, so no part shares one."""
    command, started = [sys.executable, __file__, "--part", part, *flags], time.monotonic()
    root = Path(__file__).parents[1]
    paths = os.pathsep.join(filter(None, [str(root), os.environ.get("PYTHONPATH")]))
    try:
        done = subprocess.run(
            command, cwd=root, env={**os.environ, "PYTHONPATH": paths}, timeout=limit_s, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, text=True, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return Outcome(part, FAILED, time.monotonic() - started, f"did not end within {limit_s:.0f} s")
    print(done.stdout, flush=True)
    last = (done.stdout.strip().splitlines() or [""])[-1]
    state = {0: DONE, SKIPS: SKIPPED}.get(done.returncode, FAILED)
    return Outcome(part, state, round(time.monotonic() - started, 1), "" if state == DONE else last)


def run_part(part: str, place: Place) -> int:
    """One part, here and now: its exit code."""
    try:
        PARTS[part](place)
    except Skipped as reason:
        print(f"skipped: {reason}")
        return SKIPS
    return 0


if __name__ == "__main__":
    sys.exit(main())
