"""Real runs in processes of their own, stopped and killed at random moments: nothing is lost."""

import hashlib
import json
import os
import random
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.small import thin_teacher

BUILD = (
    "build --bits w4a8 --quiet --arch none --set inversion.images=32 "
    "--set inversion.iterations=40 --set inversion.batch=8 --set training.updates=6 --set training.batch=4 "
    "--set calibration.method=max --set calibration.leaves=8 --set basis.updates=10"
)
# checkpoints at every update, and one thread, as a busy core makes a second one wait
CODE = """
import math, resource, sys, torch
import calib.training_checkpoint
from pipeline.cli import main
calib.training_checkpoint.SAVE_EVERY_S, calib.training_checkpoint.LARGEST_SHARE = 0.0, math.inf
torch.set_num_threads(1)
if limit := int(sys.argv.pop(1)):
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
main()
"""
KILLS = 1


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A thin one: what is promised does not depend on its depth."""
    return thin_teacher(tmp_path_factory.mktemp("teacher") / "thin")


def begin(teacher: str, folder: Path, largest_file: int = 0, before: tuple[str, ...] = ()) -> subprocess.Popen[str]:
    """A build in a process of its own; `before` are words in front of it, as of `nice`."""
    line = [*shlex.split(BUILD), "--teacher", teacher, "--out", str(folder)]
    arguments = [*before, sys.executable, "-c", CODE, str(largest_file), *line]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(arguments, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, env=environment)


def finish(teacher: str, folder: Path, largest_file: int = 0, before: tuple[str, ...] = ()) -> tuple[int, str]:
    """Exit code and stderr of a run that nobody stops."""
    with begin(teacher, folder, largest_file=largest_file, before=before) as process:
        return process.wait(), said_by(process)


def said_by(process: subprocess.Popen[str]) -> str:
    """Its stderr, but for the warning that so few iterations make poor images."""
    assert process.stderr is not None
    return "".join(line for line in process.stderr if not line.startswith("warning: the teacher's confidence"))


def products(folder: Path) -> dict[str, str]:
    """Hashes of all that a run makes and that does not tell of times."""
    told = {"manifest.json", "report.html", "junit.xml", "run.log", ".lock"}
    files = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
    return {name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in files.items() if name not in told}


def events(folder: Path) -> list[dict[str, object]]:
    log = folder / "run.log"
    return [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []


def wait_for(folder: Path, stage: str) -> None:
    """Until the run in `folder` has begun `stage`."""
    for _ in range(1200):
        if any(event.get("stage") == stage for event in events(folder)):
            return
        time.sleep(0.05)
    raise AssertionError(f"{stage} never began")


def stop(teacher: str, folder: Path, number: signal.Signals, stage: str) -> tuple[int, str]:
    """Exit code and stderr of a run that gets a signal when it has begun `stage`."""
    with begin(teacher, folder) as process:
        wait_for(folder, stage)
        process.send_signal(number)
        return process.wait(), said_by(process)


def test_whatever_stops_a_run_the_bytes_are_the_same(teacher: str, tmp_path: Path) -> None:
    """One run is stopped by signals, meets a full disk, is killed at random moments; then it is left alone, and ends
    with the files of a run that nothing stopped."""
    whole, folder, start = tmp_path / "whole", tmp_path / "run", time.monotonic()
    assert finish(teacher, whole) == (0, "")
    seconds = time.monotonic() - start
    for number, stage in ((signal.SIGINT, "invert"), (signal.SIGTERM, "quantize")):
        code, said = stop(teacher, folder, number, stage)
        assert said == f"stopped by {number.name}: the same command goes on from here.\n"
        assert code == 128 + number
        assert not list(folder.rglob("*.partial"))
        assert events(folder)[-1]["message"] == number.name
    shards = {path: path.stat().st_mtime_ns for path in (folder / "images").glob("shard-*")}
    code, said = finish(teacher, folder, largest_file=1_000_000)
    assert (code, said.count("\n")) == (3, 1)
    assert said.startswith("error: ")
    assert said.endswith("make room on the disk.\n")
    found = products(folder)
    assert found.items() <= products(whole).items()
    assert "images/shard-00003.safetensors" in found
    moments = random.Random(time.time_ns())
    for _ in range(KILLS):
        with begin(teacher, folder) as process:
            time.sleep(moments.uniform(0.3, 0.8) * seconds)
            process.kill()
    assert finish(teacher, folder) == (0, "")
    assert products(folder) == products(whole)
    assert len(shards) == 4
    assert all(path.stat().st_mtime_ns == time for path, time in shards.items())


WITHOUT_ROOTS_RIGHTS = ("setpriv", "--bounding-set=-dac_override", "--inh-caps=-dac_override")
"""Root as a user who obeys the rights of a folder."""


@pytest.mark.skipif(os.geteuid() == 0 and not shutil.which("setpriv"), reason="root may write everywhere")
def test_a_folder_that_cannot_be_written_is_refused(teacher: str, tmp_path: Path) -> None:
    """One sentence, exit code 2, nothing there."""
    tmp_path.chmod(0o500)
    code, said = finish(teacher, tmp_path / "run", before=WITHOUT_ROOTS_RIGHTS if os.geteuid() == 0 else ())
    assert (code, said.count("\n")) == (2, 1)
    assert "is not writable (Permission denied): take another with --out." in said
    assert list(tmp_path.iterdir()) == []
