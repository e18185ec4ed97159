"""A run folder: its lock, its manifest, and which stages need not run again."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any

from inversion.errors import InputError
from inversion.publish import publish
from pipeline.record.lock import hold
from pipeline.record.manifest import (
    MANIFEST,
    Facts,
    Manifest,
    Output,
    StageRecord,
    TeacherRecord,
    read_manifest,
    to_json,
    write_manifest,
)
from pipeline.record.proof import Verdict
from pipeline.record.versions import versions
from pipeline.run.stage import StageResult

LOG = "run.log"
SHARDS = "images/shard-*.safetensors"


class RunFolder:
    """`with RunFolder(path) as run:` holds the folder's lock; the manifest is rewritten after each stage."""

    def __init__(self, path: Path, on_log: Callable[[str], None] | None = None) -> None:
        self.path, self.on_log = path, on_log
        self._manifest: Manifest | None = None

    @property
    def manifest(self) -> Manifest:
        """As it lies on disk; there is one from `begin` on."""
        assert self._manifest is not None
        return self._manifest

    def __enter__(self) -> RunFolder:
        self._held = hold(self.path)
        self._held.__enter__()
        self._manifest = read_manifest(self.path / MANIFEST)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:
            self.log("stopped", error=kind.__name__, message=str(error))
        self._held.__exit__(kind, error, trace)

    def log(self, event: str, **facts: Any) -> None:
        """One line of JSON at the end of `run.log`; a log that cannot be written stops nothing."""
        line = json.dumps({"time": datetime.now(UTC).isoformat(timespec="milliseconds"), "event": event, **facts})
        with suppress(OSError), (self.path / LOG).open("a") as file:
            file.write(line + "\n")
        if self.on_log:
            self.on_log(line)

    def begin(self, recipe: Facts, teacher: TeacherRecord) -> None:
        """State what this run is; a verdict of an earlier recipe is taken back before anything runs."""
        stages = self._manifest.stages if self._manifest else ()
        manifest = Manifest(recipe=recipe, teacher=teacher, versions=versions(), stages=stages)
        told = to_json(manifest)
        self.log("start", process=os.getpid(), **{key: told[key] for key in ("recipe", "teacher", "versions")})
        self._write(manifest)

    def stage(self, name: str, inputs: Facts, run: Callable[[], StageResult]) -> StageRecord:
        """The record of stage `name`: the one on file if digest and outputs still match, else of `run()` now."""
        digest = stage_digest(name, inputs)
        record = self.manifest.find(name)
        damaged = [output for output in record.outputs if not self._intact(output)] if record else []
        if record and record.digest == digest and not damaged:
            record = dataclasses.replace(record, cached=True)
        else:
            for output in damaged:  # a stage that resumes from its own files would take it for a finished one
                if (path := self.path / output.path).is_file():
                    path.unlink()
            self.forget(name)
            self.log("stage begins", stage=name, digest=digest, damaged=[output.path for output in damaged])
            start = time.perf_counter()
            result = run()
            seconds = round(time.perf_counter() - start, 3)
            outputs = tuple(self._describe(path) for path in result.outputs)
            record = StageRecord(name, digest, seconds, False, outputs, result.metrics)
        self._write(dataclasses.replace(self.manifest, stages=(*self.manifest.without(name), record)))
        told = to_json(record)
        self.log("stage is done", stage=name, **{key: told[key] for key in ("seconds", "cached", "digest", "outputs")})
        return record

    def conclude(self, verdict: Verdict) -> None:
        """Write the verdict."""
        self._write(dataclasses.replace(self.manifest, validation=verdict))
        told = to_json(verdict)
        self.log("verdict", passed=told["passed"], gates=told["gates"])

    def forget(self, name: str) -> None:
        """Let stage `name` run again."""
        self._write(dataclasses.replace(self.manifest, stages=self.manifest.without(name)))

    def require_intact(self) -> None:
        """Raises `InputError` for a file that is no longer what its stage made, or that no stage made."""
        wrong = [self.path / output.path for output in self.manifest.outputs if not self._intact(output)]
        for path in [*wrong, *self.strays(SHARDS)]:
            raise InputError(f"{str(path)!r} is not the file that the run made: run its `pipeline build` again.")

    def strays(self, pattern: str) -> list[Path]:
        """Files that fit `pattern` and are no stage's, such as shards of an earlier, longer inversion."""
        made = {self.path / output.path for output in self.manifest.outputs}
        return sorted(set(self.path.glob(pattern)) - made)

    def _intact(self, output: Output) -> bool:
        return is_intact(self.path, output)

    def _describe(self, path: Path) -> Output:
        return Output(path.relative_to(self.path).as_posix(), file_sha256(path), path.stat().st_size)

    def _write(self, manifest: Manifest) -> None:
        publish(self.path / MANIFEST, write_manifest(manifest))
        self._manifest = manifest


def is_intact(folder: Path, output: Output) -> bool:
    """Whether `output` still lies in `folder` as its stage made it."""
    path = folder / output.path
    return path.is_file() and path.stat().st_size == output.bytes and file_sha256(path) == output.sha256


def stage_digest(name: str, inputs: Facts) -> str:
    """Hash of what a stage depends on: its slice of the recipe, the digests it consumes, its version."""
    return hashlib.sha256(json.dumps([name, inputs], sort_keys=True).encode()).hexdigest()


def product_digest(record: StageRecord) -> str:
    """Hash of what a stage made, for the digest of those who consume it."""
    return stage_digest(record.digest, {output.path: output.sha256 for output in record.outputs})


def file_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
