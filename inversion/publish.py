"""Files that appear whole or not at all. Imports nothing heavy, so that an edge device can use it."""

from __future__ import annotations

import os
import secrets
from pathlib import Path


def publish(path: Path, data: bytes) -> None:
    """Put `data` at `path` in one step that an interruption cannot split; an `OSError` names `path`."""
    # two hosts may give two processes one number
    partial = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.partial")
    try:
        with partial.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except OSError as error:  # a write to a full disk names no file
        raise OSError(error.errno, error.strerror, str(path)) from error
    finally:
        partial.unlink(missing_ok=True)
