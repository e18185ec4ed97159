"""Do the steps of examples/ci/Dockerfile work? They run in a fresh environment, without Docker.

    python benchmarks/dockerfile.py [--json F]

A virtual environment stands for the image's Python, a folder for its root; COPY copies the files that git knows. After
the last step the entry point plans a build and makes a tiny one. About 6 GB and some minutes.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import shutil
import subprocess
import tempfile
import time
import venv
from collections.abc import Iterator
from pathlib import Path

from image_quality import add_json_argument, save

ROOT = Path(__file__).parents[1]
DOCKERFILE = ROOT / "examples" / "ci" / "Dockerfile"
TINY = (
    "build --teacher digits_vit --bits w4a8 --effort quick --arch none --set inversion.images=16 --quiet "
    "--set inversion.iterations=24 --set basis.updates=10 --set calibration.leaves=8 --set validation.pictures=100"
)
COMMANDS = (f"{TINY} --dry-run", TINY)


def steps(text: str) -> Iterator[tuple[str, str]]:
    """(instruction, what follows) of a Dockerfile, comments and blank lines left out."""
    for line in text.replace("\\\n", " ").splitlines():
        if line.strip() and not line.startswith("#"):
            word, _, rest = line.partition(" ")
            yield word, rest.strip()


def run_steps(text: str, root: Path) -> list[dict[str, object]]:
    """Run them with `root` as the image's root; each RUN, and each of `COMMANDS`, with its seconds."""
    venv.create(root / "venv", with_pip=True)
    environment = {**os.environ, "PATH": f"{root / 'venv' / 'bin'}:{os.environ['PATH']}"}
    environment.pop("PYTHONPATH", None)
    place, done, entry = root, [], []

    def run(words: str) -> None:
        started = time.perf_counter()
        subprocess.run(["bash", "-euc", words], cwd=place, env=environment, check=True)
        done.append({"run": words, "seconds": round(time.perf_counter() - started, 1)})

    for word, rest in steps(text):
        if word == "WORKDIR":
            place = root / rest.lstrip("/")
            place.mkdir(parents=True, exist_ok=True)
        elif word == "COPY":
            _copy_known(place)
        elif word == "RUN":
            run(rest)
        elif word == "ENTRYPOINT":
            entry = json.loads(rest)
    for line in COMMANDS:
        run(f"{shlex.join(entry)} {line}")
    return done


def _copy_known(place: Path) -> None:
    """What `COPY . .` brings of a clean checkout."""
    known = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in filter(None, known.split("\0")):
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / name, place / name)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_json_argument(parser)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        done = run_steps(DOCKERFILE.read_text(), Path(folder))
    save("dockerfile", {"steps": done}, args.json)


if __name__ == "__main__":
    main()
