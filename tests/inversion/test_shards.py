"""What a folder of shards is to hold, and what it holds; and many processes that fill one."""

import json
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inversion import inverter as inverter_room
from inversion.census import take_census
from inversion.claims import STALE_S, Claims, claim_path
from inversion.errors import InputError
from inversion.folder import ShardFolder, remove_others
from inversion.inverter import Inverter, invert_into, invert_shard
from inversion.job import Inversion
from inversion.process import Process
from inversion.shards import JOB, PROGRESS, Part, Wanted, compact, read_header, read_job, shard_path
from tests.inversion.test_claims import pass_time
from tests.small import small_teacher

TEACHER = small_teacher()
QUICK = Inversion(images=14, batch=2, iterations=4, division_factor=2)
"""Seven shards."""


@given(st.sets(st.integers(0, 300)))
def test_a_compact_list_says_the_same(numbers: set[int]) -> None:
    """What Slurm would make of it are those numbers, in order, and no shorter list of runs is there."""
    text = compact(numbers)
    runs = [[int(end) for end in run.split("-")] for run in text.split(",") if run]
    assert [number for run in runs for number in range(run[0], run[-1] + 1)] == sorted(numbers)
    assert all(one[-1] + 1 < other[0] for one, other in pairwise(runs))
    assert compact([3, 9, 7, 8]) == "3,7-9"


@given(st.integers(0, 50), st.integers(1, 9))
def test_parts_are_the_whole(shards: int, count: int) -> None:
    """Each shard lies in one part; and in that of its own number, so that numbers of missing ones are parts too."""
    parts = [[*Part(index, count).numbers(shards)] for index in range(count)]
    assert sorted(number for part in parts for number in part) == [*range(shards)]
    assert all(number in Part(number, count).numbers(shards) for number in range(shards))
    assert [*Part(7, 4).numbers(10)] == [3, 7]


@pytest.mark.parametrize("text", ["", "1", "1/0", "-1/2", "a/2", "1/2/3", "1 / 2", "9" * 40 + "/2"])
def test_what_is_no_part_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="no part of a job: "):
        Part.parse(text)


def test_a_job_is_read_back(tmp_path: Path) -> None:
    """As `invert_into` leaves it beside the shards; and what it wants is what lies there."""
    invert_into(TEACHER, QUICK, tmp_path)
    wanted = read_job(tmp_path)
    assert wanted == Inverter(TEACHER, QUICK).wanted
    assert len(wanted) == 7
    headers = [read_header(shard_path(tmp_path, number)) for number in range(7)]
    assert all(wanted.is_made(number, header or {}) for number, header in enumerate(headers))
    assert not wanted.is_made(1, headers[0] or {})
    assert wanted.digest != Inverter(TEACHER, replace(QUICK, seed=1)).wanted.digest
    assert "dtype" not in wanted.metadata
    assert Inverter(TEACHER, replace(QUICK, precision="float32")).wanted.metadata["dtype"] == "float32"


JOBS = {
    "cut off": lambda told: told[:-9],
    "another format": lambda told: told.replace(b"job/1", b"job/2"),
    "nothing": lambda _: b"",
    "a list": lambda _: b"[1]",
    "deep": lambda _: b"[" * 99999,
    "no number": lambda told: told.replace(b'"per_shard": 1', b'"per_shard": "1"'),
    "no shard": lambda told: told.replace(b'"per_shard": 1', b'"per_shard": 0'),
    "too many shards": lambda told: told.replace(b'"trajectories": 7', b'"trajectories": 700000000'),
    "signs for a terminal": lambda told: told.replace(b'"pri"', b'"\\u001b[2J"'),
    "metadata of numbers": lambda told: told.replace(b'"pri"', b"1"),
}


@pytest.mark.parametrize("damage", JOBS.values(), ids=JOBS.keys())
def test_a_damaged_job_is_refused(tmp_path: Path, damage: Callable[[bytes], bytes]) -> None:
    """One sentence; nothing of it is believed."""
    told = Wanted(7, 1, {"method": "pri", "iterations": "4", "seed": "0"}).to_bytes()
    assert damage(told) != told
    (tmp_path / JOB).write_bytes(damage(told))
    with pytest.raises(InputError, match=r"job\.json' (is no job of the format|holds no numbers of trajectories, or)"):
        read_job(tmp_path)


def test_a_census_tells_all_apart(tmp_path: Path) -> None:
    """Made, absent, cut off, another job's, beyond the job; nothing but the made is not missing."""
    invert_into(TEACHER, QUICK, tmp_path)
    whole = take_census(tmp_path)
    assert (whole.made, whole.missing, whole.parts(3)) == ([*range(7)], [], [])
    shard_path(tmp_path, 1).unlink()
    shard_path(tmp_path, 3).write_bytes(shard_path(tmp_path, 3).read_bytes()[:-1])
    invert_shard(TEACHER, replace(QUICK, seed=1), 4).save(shard_path(tmp_path, 4))
    invert_shard(TEACHER, replace(QUICK, images=20), 9).save(shard_path(tmp_path, 9))
    (tmp_path / PROGRESS).unlink()
    found = take_census(tmp_path)
    assert (found.made, found.absent, found.damaged, found.foreign, found.strays) == ([2, 5, 6], [1], [0, 3], [4], [9])
    assert found.missing == [0, 1, 3, 4]
    assert found.parts(4) == [0, 1, 3]
    invert_into(TEACHER, QUICK, tmp_path)
    assert take_census(tmp_path).missing == []


def test_parts_make_the_bytes_of_the_whole(tmp_path: Path) -> None:
    """Four processes, each with a part, two of them the same: every shard is made once, and is that of one process."""
    want = {path.name: path.read_bytes() for path in invert_into(TEACHER, QUICK, tmp_path / "want")}
    made: list[int] = []
    shard = Inverter.shard

    def counted(self: Inverter, number: int, *rest: object) -> object:
        made.append(number)
        return shard(self, number, *rest)  # type: ignore[arg-type]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Inverter, "shard", counted)
        parts = (Part(0, 3), Part(1, 3), Part(2, 3), Part(4, 3))
        threads = [
            threading.Thread(target=invert_into, args=(TEACHER, QUICK, tmp_path / "many"), kwargs={"part": part})
            for part in parts
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert sorted(made) == [*range(7)]
    assert {path.name: path.read_bytes() for path in (tmp_path / "many").glob("shard-*")} == want


def test_what_came_meanwhile_is_not_made(tmp_path: Path) -> None:
    """A shard that another process publishes between the look for it and the claim."""
    inverter = Inverter(TEACHER, QUICK)
    images = inverter.shard(2)[0]
    with ShardFolder(tmp_path, inverter.wanted) as shards:
        assert not shards.made(2)
        images.save(shards.shard(2))
        assert not shards.take(2)
        assert shards.take(3)
        assert [path.name for path in tmp_path.glob("*.claim")] == ["shard-00003.claim"]


def test_progress_of_a_part_is_its_own(tmp_path: Path) -> None:
    """It rises from nothing to the end of the part, step by step, with every shard of it."""
    told: list[tuple[int, int]] = []
    invert_into(TEACHER, QUICK, tmp_path, lambda _, done, total, __: told.append((done, total)), Part(2, 3))
    assert told == [(4, 8), (4, 8), (8, 8), (8, 8)]


def test_a_part_waits_for_nobody(tmp_path: Path) -> None:
    """What another process is at is left to it; the paths that come back are there."""
    with Claims(tmp_path, Inverter(TEACHER, QUICK).wanted.digest, Process("there", "another", 7, "0")) as other:
        assert other.take(2)
        paths = invert_into(TEACHER, QUICK, tmp_path, part=Part(0, 2))
        assert paths == [shard_path(tmp_path, number) for number in (0, 4, 6)]
        assert claim_path(tmp_path, 2).exists()


@pytest.mark.parametrize("dies", [False, True])
def test_the_whole_waits_for_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dies: bool) -> None:
    """It returns when all shards are there: when the other process published its own; or gave no sign of life for so
    long that its shard was made here."""
    monkeypatch.setattr(inverter_room, "POLL_S", 0.01)
    told: list[str] = []
    inverter = Inverter(TEACHER, QUICK)
    other = Claims(tmp_path, inverter.wanted.digest, Process("there", "another", 7, "0"))
    assert other.take(2)

    def ends() -> None:
        for _ in range(3000):
            if inverter_room.WAITING in told:
                break
            time.sleep(0.01)
        if dies:
            pass_time(tmp_path, STALE_S + 1)
        else:
            inverter.shard(2)[0].save(shard_path(tmp_path, 2))
            other.release(2)

    thread = threading.Thread(target=ends)
    thread.start()
    paths = invert_into(TEACHER, QUICK, tmp_path, lambda what, *_: told.append(what))
    thread.join()
    assert [path.is_file() for path in paths] == [True] * 7
    assert not list(tmp_path.glob("*.claim"))


def test_another_job_finds_the_folder_taken(tmp_path: Path) -> None:
    """While a process makes shards of one job, another job is refused and changes nothing; later it may have it."""
    invert_into(TEACHER, QUICK, tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with Claims(tmp_path, read_job(tmp_path).digest) as other:
        other.take(9)
        with pytest.raises(InputError, match="is being filled with another inversion by process"):
            invert_into(TEACHER, replace(QUICK, seed=1), tmp_path)
        assert {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.suffix != ".claim"} == before
    invert_into(TEACHER, replace(QUICK, seed=1), tmp_path)
    assert json.loads((tmp_path / JOB).read_bytes())["metadata"]["seed"] == "1"
    assert take_census(tmp_path).missing == []


def test_shards_beyond_the_job_go_when_nobody_is_there(tmp_path: Path) -> None:
    """Those of an earlier, longer job; but not under the hands of a process that makes more."""
    paths = invert_into(TEACHER, QUICK, tmp_path)
    with Claims(tmp_path, "longer") as other:
        other.take(30)
        remove_others(tmp_path, paths[:3])
        assert all(path.exists() for path in paths)
    remove_others(tmp_path, paths[:3])
    assert sorted(tmp_path.glob("shard-*")) == paths[:3]


def test_an_error_leaves_no_claim(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever stops a process, the next one need not wait."""

    def stops(*_: object) -> None:
        assert claim_path(tmp_path, 0).exists()
        raise KeyboardInterrupt

    monkeypatch.setattr(Inverter, "shard", stops)
    with pytest.raises(KeyboardInterrupt):
        invert_into(TEACHER, QUICK, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [JOB]
