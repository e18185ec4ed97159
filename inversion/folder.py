"""A folder of shards that any number of processes fill."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from torch import Tensor

from inversion.claims import Claims, claims_in, in_use, sweep
from inversion.errors import InputError
from inversion.images import SparseImages
from inversion.publish import publish
from inversion.shards import JOB, PROGRESS, Wanted, shard_path
from inversion.tensorfile import read_tensors, write_tensors

PROGRESS_FORMAT = "patch-rebirth.progress/1"


class ShardFolder:
    """The shards of one job at `path`, whoever makes them:

        with ShardFolder(path, wanted) as shards:
            if not shards.made(3) and shards.take(3):
                shards.publish(3, *make(3))

    Entered, the folder is there and says in `job.json` what it is to hold. Raises `InputError` where another process
    fills it with another job.
    """

    def __init__(self, path: Path, wanted: Wanted) -> None:
        self.path, self.wanted = path, wanted
        self.claims = Claims(path, wanted.digest)

    def __enter__(self) -> ShardFolder:
        self.path.mkdir(parents=True, exist_ok=True)
        for claim in claims_in(self.path):
            if claim.live:
                self.claims.require_same_job(claim)
        job, told = self.path / JOB, self.wanted.to_bytes()
        if not job.is_file() or job.read_bytes() != told:
            publish(job, told)
        self.claims.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self.claims.__exit__()
        sweep(self.path)

    def shard(self, number: int) -> Path:
        """Where shard `number` lies, or will lie."""
        return shard_path(self.path, number)

    def made(self, number: int) -> bool:
        """Whether the shard is there, whole, and made with exactly these settings; so must be what goes beside it."""
        return is_made(self.shard(number), number, self.wanted) and (
            number > 0 or self.wanted.metadata["method"] != "pri" or _whole_progress(self.path / PROGRESS)
        )

    def take(self, number: int) -> bool:
        """Whether the shard is still to be made, and now this process's to make."""
        if not self.claims.take(number):
            return False
        if self.made(number):  # published between the look and the claim
            self.claims.release(number)
            return False
        return True

    def publish(self, number: int, images: SparseImages, pictures: dict[str, Tensor] | None = None) -> None:
        """Write a shard that was taken, and before the first one what goes beside it; then release it."""
        if number == 0 and pictures and self.wanted.metadata["method"] == "pri":
            write_tensors(self.path / PROGRESS, pictures, {**images.metadata, "format": PROGRESS_FORMAT})
        elif number == 0:
            (self.path / PROGRESS).unlink(missing_ok=True)
        images.save(self.shard(number))
        self.claims.release(number)


def is_made(path: Path, number: int, wanted: Wanted) -> bool:
    """Whether `path` is a whole shard, made as shard `number` of `wanted`."""
    if not path.is_file():
        return False
    try:
        return wanted.is_made(number, SparseImages.load(path).metadata)
    except InputError:
        return False


def remove_others(folder: Path, paths: Iterable[Path]) -> None:
    """Remove shards of an earlier, longer job, all but `paths`; none while another process makes shards there."""
    others = set(folder.glob("shard-*.safetensors")) - set(paths)
    if others and not in_use(folder):
        for path in others:
            path.unlink(missing_ok=True)


def _whole_progress(path: Path) -> bool:
    try:
        return bool(read_tensors(path, PROGRESS_FORMAT, "it is made again.")[0])
    except InputError:
        return False
