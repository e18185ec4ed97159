"""What a folder of shards is to hold, and what it holds. Imports nothing heavy."""

from __future__ import annotations

import hashlib
import json
import re
import struct
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from inversion.errors import InputError

JOB = "job.json"
JOB_FORMAT = "patch-rebirth.job/1"
PROGRESS = "progress.safetensors"
"""Beside the first shard of PRI: whole pictures of a few trajectories at each detachment point."""
MOST_HEADER, MOST_SHARDS = 1 << 20, 1_000_000
"""Bytes of a header, and shards of a job, that a file may speak of."""


def shard_path(folder: Path, number: int) -> Path:
    return folder / f"shard-{number:05d}.safetensors"


@dataclass(frozen=True)
class Part:
    """Those shards whose number is `index` modulo `count`: what one of `count` jobs of an array makes."""

    index: int
    count: int

    def __post_init__(self) -> None:
        if self.index < 0 or self.count < 1:
            raise InputError(f"shards {self.index}/{self.count} are no part of a job: take 0/4 to 3/4 or the like.")

    @classmethod
    def parse(cls, text: str) -> Part:
        """`3/4`; the first number may be larger than the second, as that of a missing shard."""
        if not (found := re.fullmatch(r"(\d{1,9})/(\d{1,9})", text)):
            raise InputError(f"--shard {text!r} is no part of a job: write 0/4 for the first of four.")
        return cls(int(found[1]), int(found[2]))

    def numbers(self, shards: int) -> range:
        """Of a job of so many `shards`."""
        return range(self.index % self.count, shards, self.count)

    def __str__(self) -> str:
        return f"{self.index % self.count}/{self.count}"


@dataclass(frozen=True)
class Wanted:
    """The shards of one job: so many `trajectories`, so many `per_shard`, and the `metadata` that all have.

    Where the job leaves the number format to the machine, `metadata` has no `dtype` and a shard of any counts.
    """

    trajectories: int
    per_shard: int
    metadata: dict[str, str]

    def __len__(self) -> int:
        return -(-self.trajectories // self.per_shard)

    def is_made(self, number: int, metadata: Mapping[str, str]) -> bool:
        """Whether a shard with this `metadata` is shard `number` of the job."""
        last = min((number + 1) * self.per_shard, self.trajectories) - 1
        own = {"shard": str(number), "trajectories": f"{number * self.per_shard}-{last}"}
        return all(metadata.get(key) == value for key, value in {**self.metadata, **own}.items())

    def to_bytes(self) -> bytes:
        """As `job.json` holds it."""
        return (json.dumps({"format": JOB_FORMAT, **asdict(self)}, indent=1, sort_keys=True) + "\n").encode()

    @property
    def digest(self) -> str:
        """Tells the job from others."""
        return hashlib.sha256(self.to_bytes()).hexdigest()[:16]


def read_job(folder: Path) -> Wanted:
    """What the shards of `folder` are to be; `InputError` where nothing says so."""
    path, mend = folder / JOB, "give a folder that `pipeline invert` or `build` filled."
    try:
        told = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise InputError(f"{str(folder)!r} holds no {JOB}: {mend}") from None
    except (ValueError, RecursionError):
        told = None
    keys = {"format", "trajectories", "per_shard", "metadata"}
    if not isinstance(told, dict) or told.keys() != keys or told.pop("format") != JOB_FORMAT:
        raise InputError(f"{str(path)!r} is no job of the format {JOB_FORMAT}: {mend}")
    texts = told["metadata"].items() if isinstance(told["metadata"], dict) else [(None, None)]
    counts = (told["trajectories"], told["per_shard"])
    wanted = Wanted(**told)
    if (
        not all(isinstance(text, str) and text.isprintable() for pair in texts for text in pair)
        or not all(type(count) is int and count > 0 for count in counts)
        or len(wanted) > MOST_SHARDS
    ):
        raise InputError(f"{str(path)!r} holds no numbers of trajectories, or no metadata: {mend}")
    return wanted


def read_header(path: Path) -> dict[str, str] | None:
    """Metadata of a safetensors file, by its header and its size alone; None for one that is not whole."""
    try:
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            header = json.loads(file.read(length)) if length <= MOST_HEADER else {}
            metadata = header.pop("__metadata__", {})
            ends = [entry["data_offsets"][1] for entry in header.values()]
            whole = bool(ends) and path.stat().st_size == 8 + length + max(ends)
    except (OSError, ValueError, struct.error, RecursionError, KeyError, TypeError, IndexError, AttributeError):
        return None
    return metadata if whole and isinstance(metadata, dict) else None


def compact(numbers: Iterable[int]) -> str:
    """As `sbatch --array` takes them: [3, 7, 8, 9] -> "3,7-9"."""
    runs: list[list[int]] = []
    for number in sorted(set(numbers)):
        if runs and number == runs[-1][-1] + 1:
            runs[-1] = [runs[-1][0], number]
        else:
            runs.append([number])
    return ",".join("-".join(map(str, run)) for run in runs)
