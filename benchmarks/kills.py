"""Kill real runs at random moments, let them go on, and compare every byte with a run that nothing stopped.

python benchmarks/kills.py --kills 100 --name kills_demo -- build --teacher digits_vit --bits w4a8 --effort quick
python benchmarks/kills.py --kills 20 --name kills_deit_tiny -- invert --teacher deit_tiny --checkpoint tiny.safetensors

A run is killed (SIGKILL) again and again until it comes through between two kills; then the next begins. `--out` is
given to the command.
"""

from __future__ import annotations

import argparse
import hashlib
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from recording import write_record

from pipeline.run.build import NAMES

TELLS_OF_TIMES = {"manifest.json", "report.html", "junit.xml", "run.log", ".lock", ".owner"}
"""Files that differ from run to run."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--within", type=float, default=1.0, help="share of a whole run's time in which a kill falls")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--name")
    parser.add_argument("command", nargs="+", help="What `pipeline` is given, without --out.")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        found = kill(Path(place), args.command, args.kills, args.within, random.Random(args.seed))
    print(found)
    if args.name:
        write_record(args.name, {**found, "within": args.within, "seed": args.seed})
    sys.exit(bool(found["differences"]))


def kill(place: Path, command: list[str], kills: int, within: float, chance: random.Random) -> dict[str, object]:
    """How many kills were survived, in which stage each fell, and what differed in the end."""
    whole, folder, start = place / "whole", place / "run", time.monotonic()
    require_done(begin(command, whole).wait())
    seconds, wanted = time.monotonic() - start, products(whole)
    stages: Counter[str] = Counter()
    differences: list[str] = []
    done = runs = 0
    while done < kills:
        process = begin(command, folder)
        try:
            require_done(process.wait(chance.uniform(0, within * seconds)))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            done += 1
            stages[stage_of(folder)] += 1
            print(f"kill {done} of {kills}: in {stage_of(folder)}", file=sys.stderr, flush=True)
            if done < kills:
                continue
            require_done(begin(command, folder).wait())
        runs += 1
        found = products(folder)
        differences += [f"run {runs}: {name}" for name in wanted.keys() | found if wanted.get(name) != found.get(name)]
        shutil.rmtree(folder)
    return {"kills": done, "runs": runs, "seconds_of_a_run": round(seconds, 1), "fell_in": dict(stages),
            "files_compared": len(wanted), "differences": differences}  # fmt: skip


def begin(command: list[str], folder: Path) -> subprocess.Popen[bytes]:
    code = "from pipeline.cli import main; main()"
    arguments = [sys.executable, "-c", code, *command, "--quiet", "--out", str(folder)]
    return subprocess.Popen(arguments, stdout=subprocess.DEVNULL)


def require_done(code: int) -> None:
    if code:
        raise SystemExit(f"the command ended with {code}")


def products(folder: Path) -> dict[str, str]:
    """Hash by name of all that a run makes and that does not tell of times."""
    files = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
    return {
        name: hashlib.sha256(path.read_bytes()).hexdigest()
        for name, path in files.items()
        if path.name not in TELLS_OF_TIMES and not path.name.endswith(".plan.json")  # it holds the build's seconds
    }


def stage_of(folder: Path) -> str:
    """What the run was at: the last line of its log, or what its files say where it keeps none."""
    log = folder / "run.log"
    if not log.exists():
        return f"shard {len(list(folder.rglob('shard-*')))}" if folder.exists() else "start"
    last = ["", *log.read_text().splitlines()][-1]
    return next((name for name in NAMES if f'"{name}"' in last), "start")


if __name__ == "__main__":
    main()
