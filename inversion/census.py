"""What a folder of shards holds of what it is to hold, by headers and sizes alone. Imports nothing heavy."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from inversion.claims import Claim, claims_in
from inversion.shards import JOB, PROGRESS, Wanted, compact, read_header, read_job, shard_path


@dataclass(frozen=True)
class Census:
    """Numbers of shards: those that are `made`, that are not there (`absent`), that are not whole (`damaged`), that
    another job made in their place (`foreign`), and those that the job does not have (`strays`)."""

    folder: Path
    wanted: Wanted
    made: list[int]
    absent: list[int]
    damaged: list[int]
    foreign: list[int]
    strays: list[int]
    claims: list[Claim]

    @property
    def missing(self) -> list[int]:
        """What is still to be made, whether or not a process is at it."""
        return sorted({*self.absent, *self.damaged, *self.foreign})

    def parts(self, count: int) -> list[int]:
        """Of `count` parts of the job, those in which something is missing."""
        return sorted({number % count for number in self.missing})

    def lines(self) -> list[str]:
        """For people."""
        metadata = self.wanted.metadata
        about = f"{metadata.get('method')}, {metadata.get('iterations')} iterations, seed {metadata.get('seed')}"
        rows = [
            ("made", self.made, ""),
            ("missing", self.absent, ""),
            ("damaged", self.damaged, "made again when their turn comes"),
            ("of another job", self.foreign, "made again when their turn comes"),
            ("beyond the job", self.strays, "removed by `pipeline invert` without --shard"),
        ]
        lines = [f"{self.folder}: {len(self.wanted)} shards, {self.wanted.trajectories} trajectories ({about})"]
        lines += [
            f"  {what:<14} {len(numbers):>6}  {compact(numbers)}{f' ({remark})' if remark else ''}".rstrip()
            for what, numbers, remark in rows
            if numbers or what in ("made", "missing")
        ]
        lines += [
            f"  shard {claim.number} is {'claimed' if claim.live else 'left'} by {claim}, seen {claim.age_s:.0f} s ago"
            for claim in self.claims
        ]
        return lines


def take_census(folder: Path) -> Census:
    """Of a folder of shards, or of a run folder's images. Raises `InputError` where nothing says what it is to hold."""
    images = folder / "images"
    folder = images if not (folder / JOB).is_file() and (images / JOB).is_file() else folder
    wanted = read_job(folder)
    found: dict[str, list[int]] = {"made": [], "absent": [], "damaged": [], "foreign": []}
    for number in range(len(wanted)):
        found[_state(folder, number, wanted)].append(number)
    names = (re.fullmatch(r"shard-(\d+)\.safetensors", path.name) for path in folder.glob("shard-*.safetensors"))
    strays = sorted(int(name[1]) for name in names if name and int(name[1]) >= len(wanted))
    return Census(folder, wanted, strays=strays, claims=list(claims_in(folder)), **found)


def _state(folder: Path, number: int, wanted: Wanted) -> str:
    path = shard_path(folder, number)
    if not path.is_file():
        return "absent"
    metadata = read_header(path)
    if metadata is None:
        return "damaged"
    if not wanted.is_made(number, metadata):
        return "foreign"
    beside = number > 0 or wanted.metadata.get("method") != "pri" or read_header(folder / PROGRESS)
    return "made" if beside else "damaged"
