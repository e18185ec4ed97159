"""The lock of a folder: one process writes, and nothing in it leads out of it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from inversion.errors import InputError
from inversion.publish import publish

OWNER = ".owner"
"""Process id of who holds the lock, which the system itself takes from a process that dies."""


@contextmanager
def hold(folder: Path) -> Iterator[None]:
    """Make `folder` and keep other processes out of it; `InputError` where one is in it, or it cannot be written."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / ".lock", timeout=0)
        lock.acquire()
    except Timeout:
        raise InputError(
            f"run folder {str(folder)!r} is in use by process {_owner(folder)}: wait for it, or take another --out."
        ) from None
    except OSError as error:
        raise InputError(
            f"run folder {str(folder)!r} is not writable ({error.strerror}): take another with --out."
        ) from error
    try:
        require_no_way_out(folder)
        publish(folder / OWNER, str(os.getpid()).encode())
        for left in folder.rglob(".*.partial"):  # by a process that was killed while it wrote
            left.unlink()
        yield
    finally:
        (folder / OWNER).unlink(missing_ok=True)
        lock.release()


def require_no_way_out(folder: Path) -> None:
    """Raises `InputError` for a link that leads out of `folder`: what is behind it would be read or overwritten."""
    whole = folder.resolve()
    for path in folder.rglob("*"):
        if path.is_symlink() and not _leads_into(path, whole):
            raise InputError(f"{str(path)!r} is a link that leads out of its run folder: remove it.")


def _leads_into(link: Path, folder: Path) -> bool:
    try:
        return link.resolve().is_relative_to(folder)
    except (OSError, RuntimeError):  # it leads in a circle
        return False


def _owner(folder: Path) -> str:
    """Process id of who holds `folder`, as far as it is known."""
    try:
        return str(int((folder / OWNER).read_text()))
    except (OSError, ValueError):
        return "unknown"
