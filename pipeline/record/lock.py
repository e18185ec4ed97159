"""The lock of a folder: one process writes, and nothing in it leads out of it."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from inversion.claims import folder_time, sweep
from inversion.errors import InputError
from inversion.publish import publish

OWNER = ".owner"
"""Process id of who holds the lock, which the system itself takes from a process that dies."""


@contextmanager
def hold(folder: Path) -> Iterator[None]:
    """Make `folder` and keep other processes out of it; `InputError` where one is in it, or it cannot be written.

    Its shards are claimed one by one (`inversion.claims`): who makes some of them needs no lock."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / ".lock", timeout=0)
        lock.acquire()
    except Timeout:
        raise InputError(
            f"run folder {str(folder)!r} is in use by process {_owner(folder)}: wait for it, or take another --out."
        ) from None
    except OSError as error:
        raise _not_writable(folder, error) from error
    try:
        require_no_way_out(folder)
        publish(folder / OWNER, str(os.getpid()).encode())
        for place in {path.parent for path in folder.rglob(".*.partial")}:  # of killed processes
            sweep(place)
        yield
    finally:
        (folder / OWNER).unlink(missing_ok=True)
        lock.release()


def enter(folder: Path) -> None:
    """Make `folder`, in which other processes may be at work; `InputError` where it cannot be written."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        folder_time(folder)
    except OSError as error:
        raise _not_writable(folder, error) from error
    require_no_way_out(folder)


def require_writable(folder: Path) -> None:
    """Raises `InputError` where `folder` could not be made or written; makes nothing."""
    nearest = next(path for path in (folder, *folder.absolute().parents) if path.exists() or path.is_symlink())
    if not nearest.is_dir():
        raise _not_writable(folder, NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR)))
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise _not_writable(folder, PermissionError(errno.EACCES, os.strerror(errno.EACCES)))


def require_no_way_out(folder: Path) -> None:
    """Raises `InputError` for a link that leads out of `folder`: what is behind it would be read or overwritten."""
    whole = folder.resolve()
    for path in folder.rglob("*"):
        if path.is_symlink() and not _leads_into(path, whole):
            raise InputError(f"{str(path)!r} is a link that leads out of its run folder: remove it.")


def _not_writable(folder: Path, error: OSError) -> InputError:
    return InputError(f"run folder {str(folder)!r} is not writable ({error.strerror}): take another with --out.")


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
