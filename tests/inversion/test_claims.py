"""Claims: of all that want a shard one makes it, and nobody waits long for the dead."""

import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from inversion import claims as room
from inversion.claims import STALE_S, Claims, claim_path, claims_in, in_use, sweep
from inversion.errors import InputError
from inversion.process import Process, this_process

JOB = "a job"
STEP = 70.0
"""Seconds that pass in one step of a story: no multiple of it is near STALE_S."""
SHARDS = (0, 1)


def process_on(host: str) -> Process:
    """A process of another machine, of which only the age of its claims is known."""
    return Process(host, f"machine {host}", 7, "0")


def pass_time(folder: Path, seconds: float) -> None:
    """Make all claims older, as if so much time went by."""
    for path in folder.glob("*.claim"):
        told = path.stat()
        os.utime(path, (told.st_atime - seconds, told.st_mtime - seconds))


steps = st.lists(
    st.tuples(st.sampled_from(["take", "release", "beat", "wait"]), st.integers(0, 2), st.sampled_from(SHARDS)),
    max_size=30,
)


LONG = [("wait", 0, 0)] * 5
"""After which a claim counts no more."""


@settings(max_examples=60, deadline=None)
@given(steps)
@example([("take", 0, 1), *LONG, ("take", 1, 1), ("release", 0, 1), ("take", 2, 1)])
@example([("take", 0, 1), *LONG, ("take", 1, 1), *LONG, ("beat", 0, 0), ("take", 2, 1)])
def test_a_shard_has_one_owner(story: list[tuple[str, int, int]]) -> None:
    """Whatever three processes do in whatever order: a shard is given to who asks just when nobody has it, or its owner
    gave no sign of life for STALE_S; and who was taken over harms the new owner's claim no more."""
    with TemporaryDirectory() as name:
        folder = Path(name)
        everyone = [Claims(folder, JOB, process_on(f"host{number}")) for number in range(3)]
        owner: dict[int, int] = {}
        believed: set[tuple[int, int]] = set()
        age: dict[int, float] = {}
        for action, who, shard in story:
            if action == "take":
                free = shard not in owner or age[shard] > STALE_S
                due = free and (who, shard) not in believed
                assert everyone[who].take(shard) == due
                if due:
                    owner[shard], age[shard] = who, 0.0
                    believed.add((who, shard))
            elif action == "release":
                everyone[who].release(shard)
                believed.discard((who, shard))
                if owner.get(shard) == who:
                    del owner[shard]
            elif action == "beat":
                everyone[who].beat()
                age.update({shard: 0.0 for shard in owner if owner[shard] == who})
            else:
                pass_time(folder, STEP)
                age = {shard: seconds + STEP for shard, seconds in age.items()}
            found = {claim.number: claim for claim in claims_in(folder)}
            assert {number: claim.owner.host for number, claim in found.items()} == {
                number: f"host{who}" for number, who in owner.items()
            }
            assert {number: claim.live for number, claim in found.items()} == {
                number: age[number] <= STALE_S for number in owner
            }
        for one in everyone:
            one.__exit__()


def test_of_many_that_find_a_dead_claim_one_gets_it(tmp_path: Path) -> None:
    """Twelve processes at one moment, again and again."""
    for number in range(20):
        assert Claims(tmp_path, JOB, process_on("dead")).take(number)
        pass_time(tmp_path, STALE_S + 1)
        everyone = [Claims(tmp_path, JOB, process_on(f"host{one}")) for one in range(12)]
        start, got = threading.Barrier(len(everyone)), []

        def ask(one: Claims, number: int = number, start: threading.Barrier = start, got: list[str] = got) -> None:
            start.wait()
            if one.take(number):
                got.append(one.me.host)

        threads = [threading.Thread(target=ask, args=(one,)) for one in everyone]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(got) == 1
        assert json.loads(claim_path(tmp_path, number).read_bytes())["host"] == got[0]
    assert not list(tmp_path.glob(".*"))


def test_what_was_claimed_anew_stays(tmp_path: Path) -> None:
    """One process sees a dead claim; before it takes it away, another has taken over: the new claim stays."""
    Claims(tmp_path, JOB, process_on("dead")).take(3)
    pass_time(tmp_path, STALE_S + 1)
    (seen,) = claims_in(tmp_path)
    quick = Claims(tmp_path, JOB, process_on("quick"))
    assert quick.take(3)
    assert not room._remove(seen)
    assert [claim.owner.host for claim in claims_in(tmp_path)] == ["quick"]
    quick.release(3)
    assert list(tmp_path.iterdir()) == []


def test_who_dies_while_taking_over_is_no_end(tmp_path: Path) -> None:
    """A process that got the right to remove a dead claim, and was killed right then, holds others up for a while."""
    Claims(tmp_path, JOB, process_on("dead")).take(3)
    pass_time(tmp_path, STALE_S + 1)
    (seen,) = claims_in(tmp_path)
    right = tmp_path / f".shard-00003.claim.{hashlib.sha256(seen.content).hexdigest()[:16]}.taking.partial"
    right.touch()
    claims = Claims(tmp_path, JOB, process_on("host"))
    assert not claims.take(3)
    os.utime(right, (0, 0))
    assert not claims.take(3)
    assert claims.take(3)
    assert [path.name for path in tmp_path.iterdir()] == ["shard-00003.claim"]


@pytest.fixture
def gone() -> Iterator[Process]:
    """A process of this machine that died and that nobody waited for yet."""
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        found = Process("here", this_process().machine, process.pid, _began(process.pid))
        process.kill()
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        yield found


def _began(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]


def test_the_dead_of_this_machine_are_known_at_once(tmp_path: Path, gone: Process) -> None:
    """No wait for a process that was killed here, nor for one whose number another process has now; but for one that
    runs, and for the same number on another machine."""
    alive = this_process()
    assert alive.runs()
    assert not gone.runs()
    owners = {
        0: gone,
        1: Process("here", alive.machine, alive.pid, "1"),
        2: alive,
        3: Process("there", "another", gone.pid, gone.started),
    }
    for number, owner in owners.items():
        assert Claims(tmp_path, JOB, owner).take(number)
    asking = Claims(tmp_path, JOB)
    assert [asking.take(number) for number in owners] == [True, True, False, False]


def test_a_thread_keeps_claims_young(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While work goes on, whatever it is; and it ends with the claims."""
    monkeypatch.setattr(room, "BEAT_S", 0.01)
    before = threading.active_count()
    with Claims(tmp_path, JOB, process_on("host")) as claims:
        assert claims.take(0)
        pass_time(tmp_path, STALE_S + 1)
        for _ in range(500):
            if in_use(tmp_path):
                break
            threading.Event().wait(0.01)
        assert in_use(tmp_path)
    assert list(tmp_path.iterdir()) == []
    for _ in range(500):
        if threading.active_count() == before:
            break
        threading.Event().wait(0.01)
    assert threading.active_count() == before


def test_another_job_is_refused(tmp_path: Path, gone: Process) -> None:
    """One sentence that says who is there; claims of the dead are no hindrance."""
    with Claims(tmp_path, "another job") as other, Claims(tmp_path, JOB) as claims:
        assert other.take(1)
        said = rf"is being filled with another inversion by process {os.getpid()} on .*: wait for it, or take another f"
        with pytest.raises(InputError, match=said):
            claims.take(1)
        assert Claims(tmp_path, "another job", gone).take(2)
        assert claims.take(2)


@pytest.mark.parametrize("content", [b"", b"{}", b"[1]", b"\xff", b'{"pid": -1}', b"[" * 9000, b'{"pid": 1e99}'])
def test_what_is_no_claim_counts_by_its_age(tmp_path: Path, content: bytes) -> None:
    """A file that is half written, or somebody's joke, is respected for a while and then removed."""
    claim_path(tmp_path, 0).write_bytes(content)
    claims = Claims(tmp_path, JOB)
    assert not claims.take(0)
    assert str(next(claims_in(tmp_path))) == "an unknown process"
    pass_time(tmp_path, STALE_S + 1)
    assert claims.take(0)


def test_the_clock_is_that_of_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine whose clock is an hour wrong takes nobody's claim away."""
    assert Claims(tmp_path, JOB, process_on("host")).take(0)
    monkeypatch.setattr("time.time", lambda: 0.0)
    assert [claim.live for claim in claims_in(tmp_path)] == [True]
    assert [0 <= claim.age_s < 60 for claim in claims_in(tmp_path)] == [True]


def test_half_files_go_when_nobody_is_at_work(tmp_path: Path) -> None:
    """What a killed process left is removed, but not while a process could still be writing it."""
    left = [tmp_path / f".{name}.7-ab.partial" for name in ("shard-00003.safetensors", "progress.safetensors")]
    told = tmp_path / ".job.json.7-ab.partial"
    for path in (*left, told):
        path.write_bytes(b"half")
    with Claims(tmp_path, JOB, process_on("host")) as claims:
        claims.take(3)
        sweep(tmp_path)
        assert all(path.exists() for path in left)
    sweep(tmp_path)
    assert [*tmp_path.iterdir()] == [told]
    os.utime(told, (0, 0))
    sweep(tmp_path)
    assert [*tmp_path.iterdir()] == []
