"""The file that interrupted training goes on from."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from torch import Tensor

from inversion.errors import InputError
from inversion.tensorfile import read_tensors, write_tensors

FORMAT = "patch-rebirth.training/2"
"""Raised when training goes on in another way from the same state."""
SAVE_EVERY_S = 60.0
LARGEST_SHARE = 0.05
"""Of the time that saving may take: large models are saved less often."""


class Checkpoint:
    """`identity` says of which training the file at `path` is; one of another, or a damaged one, counts as none.

    `saved` is what an earlier process left there, read once; who takes it up sets it to None. `carry` adds what came
    before the training to whatever is saved. The file stays until its owner, who has the training's result, removes it.
    """

    def __init__(self, path: Path, identity: str) -> None:
        self.path, self.identity = path, identity
        self.saved = self._load()
        self._tensors: dict[str, Tensor] = {}
        self._notes: dict[str, Any] = {}
        self._next = time.monotonic() + SAVE_EVERY_S

    @property
    def due(self) -> bool:
        return time.monotonic() >= self._next

    def carry(self, tensors: dict[str, Tensor], notes: dict[str, Any]) -> None:
        """From now on every save holds `tensors`, under names of their own, and `notes` as about["notes"]."""
        self._tensors, self._notes = tensors, notes

    def save(self, tensors: dict[str, Tensor], about: dict[str, Any]) -> None:
        """`about` is what JSON holds; floats come back bit for bit."""
        start = time.monotonic()
        plain = {key: value.detach().cpu() for key, value in (tensors | self._tensors).items()}
        told = json.dumps({**about, "notes": self._notes})
        write_tensors(self.path, plain, {"format": FORMAT, "identity": self.identity, "about": told})
        now = time.monotonic()
        self._next = now + max(SAVE_EVERY_S, (now - start) / LARGEST_SHARE)

    def _load(self) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        if not self.path.is_file():
            return None
        try:
            tensors, metadata = read_tensors(self.path, FORMAT, "it is made again.")
            return (tensors, json.loads(metadata["about"])) if metadata["identity"] == self.identity else None
        except (InputError, ValueError, KeyError):
            return None
