"""`pipeline invert --shard` and `pipeline shards`: many processes on one folder, some of them stopped and killed."""

import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from inversion.census import take_census
from inversion.claims import claim_path, claims_in
from inversion.inverter import Inverter
from pipeline.verbs.options import part_of
from tests.shell import run

INVERT = "invert --teacher digits_vit --quiet --threads 1 --images 40 --batch 4 --iterations 8"
"""Ten shards."""


STUCK = """
import time
from inversion.inverter import Inverter
from pipeline.cli import main
shard = Inverter.shard
Inverter.shard = lambda self, number, *rest: time.sleep(600) if number == 4 else shard(self, number, *rest)
main()
"""
"""A worker that comes to no end of shard 4."""


def test_workers_may_die(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the workers on one folder one is killed and one asked to stop, each in the middle of a shard. A task of a
    Slurm array and a last worker make what is missing, and the bytes are those of a single run."""
    folder, one = tmp_path / "many", tmp_path / "one"
    arguments = [sys.executable, "-c", STUCK, *shlex.split(f"{INVERT} --shard 0/2 --out {folder}")]
    with subprocess.Popen(arguments, stderr=subprocess.DEVNULL, env={**os.environ, "OMP_NUM_THREADS": "1"}) as worker:
        assert run(f"{INVERT} --out {one}") == 0
        wait_for(claim_path(folder, 4))
        with monkeypatch.context() as patch:
            patch.setattr(Inverter, "shard", asked_to_stop(Inverter.shard))
            assert run(f"{INVERT} --out {folder}") == 143
        assert [claim.owner.pid for claim in claims_in(folder)] == [worker.pid]
        assert take_census(folder).missing == [4, 5, 6, 7, 8, 9]
        with monkeypatch.context() as task:
            task.setenv("SLURM_ARRAY_TASK_ID", "8")
            task.setenv("SLURM_ARRAY_TASK_COUNT", "2")
            assert run(f"{INVERT} --out {folder}") == 0
        assert take_census(folder).missing == [4, 5, 7, 9]
        worker.kill()
    assert run(f"{INVERT} --out {folder}") == 0
    found, want = ({path.name: path.read_bytes() for path in place.iterdir()} for place in (folder, one))
    assert found == want


def asked_to_stop(shard: Callable[..., object]) -> Callable[..., object]:
    """Somebody sends SIGTERM while shard 5 is made."""

    def stops(inverter: Inverter, number: int, *rest: object) -> object:
        if number == 5:
            signal.raise_signal(signal.SIGTERM)
        return shard(inverter, number, *rest)

    return stops


def wait_for(path: Path) -> None:
    for _ in range(6000):
        if path.exists():
            return
        time.sleep(0.01)
    raise AssertionError(f"{path} never came")


def test_missing_is_a_list_for_an_array(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """`3,7-9` as Slurm takes it, or the parts of so many; nothing where nothing is missing; words without --missing."""
    small = "invert --teacher digits_vit --quiet --images 40 --batch 4 --iterations 4 --out images"
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path)
        assert run(f"{small} --shard 1/5") == 0
        capfd.readouterr()
        for words, said in (("", "0,2-5,7-9\n"), ("--of 5", "0,2-4\n")):
            assert run(f"shards images --missing {words}") == 0
            assert capfd.readouterr().out == said
        assert run("shards images") == 0
        told = capfd.readouterr().out.splitlines()
        assert told[0] == "images: 10 shards, 10 trajectories (pri, 4 iterations, seed 0)"
        assert [line.split() for line in told[1:]] == [["made", "2", "1,6"], ["missing", "8", "0,2-5,7-9"]]
        assert run(small) == 0
        capfd.readouterr()
        assert run("shards . --missing") == 0
        assert run("shards images --missing --of 5") == 0
        assert capfd.readouterr().out == ""


def test_the_part_is_that_of_the_task() -> None:
    """In a Slurm array its own, unless --shard says another; outside, the whole job; what is no number is refused."""
    task = {"SLURM_ARRAY_TASK_ID": "7", "SLURM_ARRAY_TASK_COUNT": "4"}
    assert str(part_of(None, task)) == "3/4"
    assert str(part_of("1/2", task)) == "1/2"
    assert part_of(None, {"SLURM_ARRAY_TASK_ID": "7"}) is None
    with pytest.raises(ValueError, match="are 'x' and '4', no numbers: give --shard"):
        part_of(None, {**task, "SLURM_ARRAY_TASK_ID": "x"})
