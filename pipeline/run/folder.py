"""A run folder: its lock, its manifest, and which stages need not run again."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from inversion.errors import InputError
from inversion.publish import publish
from pipeline.record.lock import hold
from pipeline.record.manifest import MANIFEST, SCHEMA, read_manifest
from pipeline.record.versions import versions
from pipeline.run.stage import StageResult

if TYPE_CHECKING:
    pass

LOG = "run.log"
SHARDS = "images/shard-*.safetensors"


class RunFolder:
    """`with RunFolder(path) as run:` holds the folder's lock; the manifest is rewritten after each stage."""

    def __init__(self, path: Path, on_log: Callable[[str], None] | None = None) -> None:
        self.path, self.on_log = path, on_log
        self.manifest: dict[str, Any] = {}

    def __enter__(self) -> RunFolder:
        self._held = hold(self.path)
        self._held.__enter__()
        self.manifest = read_manifest(self.path / MANIFEST)
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

    def begin(self, recipe: dict[str, Any], teacher: dict[str, Any]) -> None:
        """State what this run is; a verdict of an earlier recipe is taken back before anything runs."""
        stages = self.manifest.get("stages", [])
        self.manifest = {
            "schema": SCHEMA,
            "recipe": recipe,
            "teacher": teacher,
            "versions": versions(),
            "stages": stages,
            "validation": None,
        }
        self.log("start", process=os.getpid(), recipe=recipe, teacher=teacher, versions=self.manifest["versions"])
        self._write()

    def stage(self, name: str, inputs: dict[str, Any], run: Callable[[], StageResult]) -> dict[str, Any]:
        """The record of stage `name`: the one on file if digest and outputs still match, else of `run()` now."""
        digest = stage_digest(name, inputs)
        record = next((old for old in self.manifest["stages"] if old["name"] == name), None)
        damaged = [output for output in record["outputs"] if not self._intact(output)] if record else []
        if record and record["digest"] == digest and not damaged:
            record["cached"] = True
            self.manifest["stages"].remove(record)
        else:
            for output in damaged:  # a stage that resumes from its own files would take it for a finished one
                if (path := self.path / output["path"]).is_file():
                    path.unlink()
            self.forget(name)
            self.log("stage begins", stage=name, digest=digest, damaged=[output["path"] for output in damaged])
            start = time.perf_counter()
            result = run()
            record = {
                "name": name,
                "digest": digest,
                "seconds": round(time.perf_counter() - start, 3),
                "cached": False,
                "outputs": [self._describe(path) for path in result.outputs],
                "metrics": result.metrics,
            }
        self.manifest["stages"].append(record)
        self._write()
        facts = {key: record[key] for key in ("seconds", "cached", "digest", "outputs")}
        self.log("stage is done", stage=name, **facts)
        return record

    def conclude(self, validation: dict[str, Any]) -> None:
        """Write the verdict."""
        self.manifest["validation"] = validation
        self._write()
        self.log("verdict", **{key: validation.get(key) for key in ("passed", "gates")})

    def forget(self, name: str) -> None:
        """Let stage `name` run again."""
        self.manifest["stages"] = [old for old in self.manifest["stages"] if old["name"] != name]
        self._write()

    def require_intact(self) -> None:
        """Raises `InputError` for a file that is no longer what its stage made, or that no stage made."""
        outputs = [output for stage in self.manifest["stages"] for output in stage["outputs"]]
        wrong = [self.path / output["path"] for output in outputs if not self._intact(output)]
        for path in [*wrong, *self.strays(SHARDS)]:
            raise InputError(f"{str(path)!r} is not the file that the run made: run its `pipeline build` again.")

    def strays(self, pattern: str) -> list[Path]:
        """Files that fit `pattern` and are no stage's, such as shards of an earlier, longer inversion."""
        made = {self.path / output["path"] for stage in self.manifest["stages"] for output in stage["outputs"]}
        return sorted(set(self.path.glob(pattern)) - made)

    def _intact(self, output: dict[str, Any]) -> bool:
        path = self.path / output["path"]
        return path.is_file() and path.stat().st_size == output["bytes"] and file_sha256(path) == output["sha256"]

    def _describe(self, path: Path) -> dict[str, Any]:
        relative = path.relative_to(self.path).as_posix()
        return {"path": relative, "sha256": file_sha256(path), "bytes": path.stat().st_size}

    def _write(self) -> None:
        publish(self.path / MANIFEST, json.dumps(self.manifest, indent=1).encode())


def stage_digest(name: str, inputs: dict[str, Any]) -> str:
    """Hash of what a stage depends on: its slice of the recipe, the digests it consumes, its version."""
    return hashlib.sha256(json.dumps([name, inputs], sort_keys=True).encode()).hexdigest()


def product_digest(record: dict[str, Any]) -> str:
    """Hash of what a stage made, for the digest of those who consume it."""
    return stage_digest(record["digest"], {output["path"]: output["sha256"] for output in record["outputs"]})


def file_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
