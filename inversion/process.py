"""Which process this is among all that may see a folder, and whether another one runs. Imports nothing heavy."""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass
from functools import cache
from pathlib import Path


@dataclass(frozen=True)
class Process:
    """A process among all that may see a folder: `machine` is one running system and its view of processes (empty
    where it cannot be told), `started` tells a process from an earlier one of the same number."""

    host: str
    machine: str
    pid: int
    started: str

    def runs(self) -> bool:
        """Whether it is there; asked on its own machine only."""
        try:
            os.kill(self.pid, 0)  # sends nothing
        except (ProcessLookupError, OverflowError):
            return False
        except PermissionError:  # another user's
            return True
        return _started(self.pid) in (self.started, "")


def this_process() -> Process:
    pid = os.getpid()
    return Process(platform.node(), _machine(), pid, _started(pid) or "")


@cache
def _machine() -> str:
    """Of this very run of the system; containers number their processes by themselves."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return ""


def _started(pid: int) -> str | None:
    """When a process began, in ticks since the machine did; None for one that is gone, or dead and not yet waited for;
    empty where the system does not tell."""
    try:
        state, *others = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return None if state in "ZX" else others[18]
    except (OSError, ValueError, IndexError):
        return ""
