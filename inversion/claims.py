"""Who makes which shard: claims as files, so that any number of processes on any hosts fill one folder together.

A claim is `shard-00003.claim`, made by exclusive create, which is atomic on network file systems too; no lock of the
system is needed. Its owner keeps it young. One that gave no sign of life for STALE_S, or whose process is gone from
this very machine, is taken over. Should its owner wake up after all, it publishes the same bytes. Imports nothing
heavy.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import secrets
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from inversion.errors import InputError
from inversion.process import Process, this_process
from inversion.shards import JOB

BEAT_S = 15.0
"""How often an owner touches its claims."""
STALE_S = 300.0
"""How long a claim without a sign of life counts; network file systems may show times a minute late."""
CLOCK, TAKING, BEFORE_CLAIMS = ".clock.partial", ".taking.partial", f".{JOB}."
"""Files that are written without a claim: in a moment, so that only an old one is a dead process's."""
LARGEST = 4096
"""Bytes of a claim that are read: more is none of ours."""


@dataclass(frozen=True)
class Claim:
    """What a claim says; `age_s` is how long it gave no sign of life, by the clock of the file system."""

    path: Path
    owner: Process
    job: str
    age_s: float
    content: bytes

    @property
    def live(self) -> bool:
        if self.owner.machine and self.owner.machine == this_process().machine and not self.owner.runs():
            return False
        return self.age_s <= STALE_S

    @property
    def number(self) -> int:
        """Of its shard; -1 where its name tells none."""
        digits = self.path.stem.rpartition("-")[2]
        return int(digits) if digits.isdecimal() else -1

    def __str__(self) -> str:
        return f"process {self.owner.pid} on {self.owner.host}" if self.owner.pid else "an unknown process"


class Claims:
    """The claims that one process holds in `folder` for one `job`, kept young by a thread. May be used by several
    threads. Leaving the context releases what is still held.

        with Claims(folder, job) as claims:
            if claims.take(3):
                ...  # make and publish shard 3
                claims.release(3)
    """

    def __init__(self, folder: Path, job: str, me: Process | None = None) -> None:
        self.folder, self.job, self.me = folder, job, me or this_process()
        self._held: dict[int, int] = {}
        self._lock, self._ended = threading.Lock(), threading.Event()
        self._beats: threading.Thread | None = None

    def __enter__(self) -> Claims:
        self._ended.clear()
        self._beats = threading.Thread(target=self._beat_on, name="claims", daemon=True)
        self._beats.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        for number in [*self._held]:
            self.release(number)

    def take(self, number: int) -> bool:
        """Whether the shard is this process's to make, until it releases it. Raises `InputError` where its live claim
        is for another job."""
        path = claim_path(self.folder, number)
        if number in self._held:
            return False
        if self._create(path, number):
            return True
        found = read_claim(path, folder_time(self.folder))
        if found is not None:
            if found.live:
                self.require_same_job(found)
                return False
            if not _remove(found):
                return False
        return self._create(path, number)

    def release(self, number: int) -> None:
        """Give up a claim that is held; one that was taken over meanwhile stays its new owner's."""
        with self._lock:
            held = self._held.pop(number, None)
        if held is None:
            return
        path = claim_path(self.folder, number)
        with suppress(OSError):
            if os.path.samestat(os.fstat(held), path.stat()):
                path.unlink()
        os.close(held)

    def beat(self) -> None:
        """Keep what is held young, by the file system's clock. A claim that was taken over is not touched, since its
        file is another one."""
        with self._lock:
            for held in self._held.values():
                with suppress(OSError):
                    os.utime(held)

    def require_same_job(self, claim: Claim) -> None:
        """Raises `InputError` where `claim` is for another job."""
        if claim.job not in (self.job, ""):
            raise InputError(
                f"{str(self.folder)!r} is being filled with another inversion by {claim}: wait for it, or take another "
                "folder."
            )

    def _create(self, path: Path, number: int) -> bool:
        told = {**asdict(self.me), "job": self.job, "token": secrets.token_hex(8)}
        try:
            held = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o644)
        except FileExistsError:
            return False
        try:
            os.write(held, json.dumps(told).encode())
        except OSError as error:
            os.close(held)
            path.unlink(missing_ok=True)
            raise OSError(error.errno, error.strerror, str(path)) from error
        with self._lock:
            self._held[number] = held
        return True

    def _beat_on(self) -> None:
        while not self._ended.wait(BEAT_S):
            self.beat()


def claim_path(folder: Path, number: int) -> Path:
    return folder / f"shard-{number:05d}.claim"


def claims_in(folder: Path) -> Iterator[Claim]:
    """All claims in a folder, live or not."""
    paths = sorted(folder.glob("shard-*.claim"))
    try:
        now = folder_time(folder) if paths else 0.0
    except OSError:  # it may only be read
        now = time.time()
    for path in paths:
        if claim := read_claim(path, now):
            yield claim


def read_claim(path: Path, now: float) -> Claim | None:
    """The claim at `path`, or None where there is none. What is none of ours has an unknown owner, and an age."""
    try:
        with path.open("rb") as file:  # opening asks a network file system for the true time
            content, touched = file.read(LARGEST), os.fstat(file.fileno()).st_mtime
    except (FileNotFoundError, IsADirectoryError):
        return None
    owner, job = _owner(content)
    return Claim(path, owner, job, max(0.0, now - touched), content)


def in_use(folder: Path) -> bool:
    """Whether a process makes shards in `folder`."""
    return any(claim.live for claim in claims_in(folder))


def sweep(folder: Path) -> None:
    """Remove what killed processes left of their files in `folder`, where no other can be at work on them."""
    left = [path for path in folder.glob(".*.partial") if path.is_file()]
    if not left or in_use(folder):  # in this order: who writes a shard that was found still holds its claim
        return
    now = folder_time(folder)
    for path in left:
        with suppress(FileNotFoundError):
            unclaimed = path.name.startswith(BEFORE_CLAIMS) or path.name.endswith((CLOCK, TAKING))
            if not unclaimed or now - path.stat().st_mtime > STALE_S:
                path.unlink()


def folder_time(folder: Path) -> float:
    """Now, by the clock of the folder's file system, which may not be this machine's. Raises `OSError` where nothing
    can be written."""
    probe = folder / f".{secrets.token_hex(8)}{CLOCK}"
    try:
        probe.touch()
        os.utime(probe)
        return probe.stat().st_mtime
    finally:
        with suppress(OSError):
            probe.unlink()


def _owner(content: bytes) -> tuple[Process, str]:
    try:
        told: dict[str, Any] = json.loads(content)
        host, machine, pid, started = (told[name] for name in ("host", "machine", "pid", "started"))
        if isinstance(pid, int) and pid > 0:
            shown = re.sub(r"[^\w.-]", "?", str(host))
            return Process(shown, str(machine), pid, str(started)), str(told["job"])
    except (ValueError, TypeError, KeyError, RecursionError):
        pass
    return Process("", "", 0, ""), ""


def _remove(dead: Claim) -> bool:
    """Take a dead claim away, which of all processes that try one does: the one that gets the right to, a file that is
    of this very claim. What was claimed anew since it was read stays."""
    right = dead.path.with_name(f".{dead.path.name}.{hashlib.sha256(dead.content).hexdigest()[:16]}{TAKING}")
    try:
        os.close(os.open(right, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
    except FileExistsError:
        with suppress(FileNotFoundError):
            if folder_time(right.parent) - right.stat().st_mtime > STALE_S:  # its owner died at that very moment
                right.unlink()
        return False
    try:
        same = dead.path.read_bytes()[:LARGEST] == dead.content
        if same:
            dead.path.unlink()
        return same
    except FileNotFoundError:
        return False
    finally:
        right.unlink(missing_ok=True)
