"""Damage the files of a finished run at random, call the verbs that read it, build it again, and compare every byte.

python benchmarks/damage.py --trials 200 --name damage

Before the build, `validate`, `report` and `gallery` meet the damaged folder: each must do its work or refuse it by one
sentence. The build must then end with the files of the run that nothing damaged. A trial takes some ten seconds.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import random
import shlex
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from unittest import mock

from fuzz import cut, flip, forge_json
from kills import products
from recording import write_record

from pipeline import cli
from pipeline.record.manifest import MANIFEST

LINE = (
    "build --teacher digits_vit --bits w4a8 --quiet --set inversion.images=32 --set inversion.iterations=24 "
    "--set inversion.batch=8 --set training.updates=4 --set training.batch=4 --set calibration.method=max "
    "--set calibration.leaves=8 --set basis.updates=10"
)
BUILD = shlex.split(LINE)
VERBS = (["validate", "--quiet"], ["report"], ["gallery", "--quiet"])
ALLOWED = {0, 1, 2, 3}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--name")
    args = parser.parse_args()
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as place:
        found = damage(Path(place), args.trials, random.Random(args.seed))
    print(found)
    if args.name:
        write_record(args.name, {**found, "seed": args.seed, "seconds": round(time.monotonic() - start)})
    sys.exit(bool(found["failures"]))


def damage(place: Path, trials: int, chance: random.Random) -> dict[str, object]:
    """What was damaged how often, what the verbs said to it, and what failed."""
    whole, folder = place / "whole", place / "run"
    if (told := run([*BUILD, "--out", str(whole)])) != (0, ""):
        raise SystemExit(f"the whole build ended with {told}")
    wanted = products(whole)
    harms: Counter[str] = Counter()
    codes: dict[str, Counter[int]] = {}
    failures: list[str] = []
    for trial in range(trials):
        shutil.copytree(whole, folder)
        harm = hurt(folder, chance)
        harms[harm.split(":")[0]] += 1
        for words in (*VERBS, [*BUILD, "--out"]):
            code, said = run([*words, str(folder)])
            codes.setdefault(words[0], Counter())[code] += 1
            if code not in ALLOWED or (code > 1 and said.count("\n") != 1) or "program itself" in said:
                failures.append(f"trial {trial}, {harm}: {words[0]} ended with {code}: {said[-300:]}")
        found = products(folder)
        found = {name: sha for name, sha in found.items() if not name.startswith("gallery/")}
        differ = sorted(name for name in wanted.keys() | found if wanted.get(name) != found.get(name))
        failures += [f"trial {trial}, {harm}: after the build {name} differs" for name in differ]
        print(f"{trial + 1} of {trials}: {harm}", file=sys.stderr, flush=True)
        shutil.rmtree(folder)
    told_codes = {verb: dict(sorted(counts.items())) for verb, counts in codes.items()}
    return {"trials": trials, "harms": dict(harms), "exit_codes": told_codes, "failures": failures}


def hurt(folder: Path, chance: random.Random) -> str:
    """Harm one file in `folder`, or put one there; returns what was done to which."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name not in (".lock", "run.log"))
    path, other = chance.sample(files, 2)
    harms: dict[str, Callable[[], object]] = {
        "bytes changed": lambda: path.write_bytes(flip(path.read_bytes(), chance)),
        "cut": lambda: path.write_bytes(cut(path.read_bytes(), chance)),
        "emptied": lambda: path.write_bytes(b""),
        "removed": path.unlink,
        "another file's content": lambda: shutil.copyfile(other, path),
        "a manifest with another value": lambda: (folder / MANIFEST).write_bytes(
            forge_json((folder / MANIFEST).read_bytes(), chance)
        ),
        "half a file beside it": lambda: path.with_name(f".{path.name}.{os.getpid()}.partial").write_bytes(b"half"),
        "another shard": lambda: shutil.copyfile(
            folder / "images" / "shard-00000.safetensors", folder / "images" / "shard-00099.safetensors"
        ),
        "a training's state": lambda: shutil.copyfile(other, folder / "training.safetensors"),
    }
    name = chance.choice(list(harms))
    harms[name]()
    return f"{name}: {path.relative_to(folder).as_posix()}"


def run(words: list[str]) -> tuple[int, str]:
    """Exit code and stderr of `pipeline WORDS`, without the warning that so few iterations make poor images."""
    said = io.StringIO()
    with (
        contextlib.redirect_stderr(said),
        contextlib.redirect_stdout(io.StringIO()),
        mock.patch.object(sys, "argv", ["pipeline", *words]),
    ):
        try:
            cli.main()
            code = 0
        except SystemExit as ended:
            code = int(ended.code or 0)
        except BaseException as error:
            return -1, f"{type(error).__name__}: {error}"
    lines = said.getvalue().splitlines(keepends=True)
    return code, "".join(line for line in lines if not line.startswith("warning: the teacher's confidence"))


if __name__ == "__main__":
    main()
