"""A run folder: its lock, its manifest, and which stages need not run again."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import platform
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from filelock import FileLock, Timeout

from inversion.errors import InputError
from inversion.publish import publish
from pipeline.manifest import MANIFEST, SCHEMA, read_manifest

if TYPE_CHECKING:
    from inversion.teacher import Teacher

LOG = "run.log"
OWNER = ".owner"
"""Process id of who holds the lock, which the system itself takes from a process that dies."""
SHARDS = "images/shard-*.safetensors"
PACKAGES = {
    "patch_rebirth": "patch-rebirth",
    "torch": "torch",
    "timm": "timm",
    "modelopt": "nvidia-modelopt",
    "onnx": "onnx",
    "onnxscript": "onnxscript",
    "onnx_ir": "onnx-ir",
    "onnxruntime": "onnxruntime-gpu",
    "tensorrt": "tensorrt",
    "tensorrt_rtx": "tensorrt-rtx-cu13",
}


@dataclass(frozen=True)
class StageResult:
    """Files that a stage published, and what it measured."""

    outputs: list[Path]
    metrics: dict[str, Any] = field(default_factory=dict)


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


def library_versions(names: Iterable[str]) -> dict[str, str | None]:
    """Of `PACKAGES`, without what tells one build of a version from another."""
    return {name: found and found.split("+")[0] for name, found in versions().items() if name in set(names)}


def stage_digest(name: str, inputs: dict[str, Any]) -> str:
    """Hash of what a stage depends on: its slice of the recipe, the digests it consumes, its version."""
    return hashlib.sha256(json.dumps([name, inputs], sort_keys=True).encode()).hexdigest()


def product_digest(record: dict[str, Any]) -> str:
    """Hash of what a stage made, for the digest of those who consume it."""
    return stage_digest(record["digest"], {output["path"]: output["sha256"] for output in record["outputs"]})


def file_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def versions() -> dict[str, str | None]:
    """Of Python and the packages that a run's results depend on; None where one is not installed."""
    found: dict[str, str | None] = {"python": platform.python_version(), "machine": f"{os.cpu_count()} CPUs"}
    for key, package in PACKAGES.items():
        found[key] = _version(package) or (_version("onnxruntime") if key == "onnxruntime" else None)
    return found


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def describe_teacher(teacher: Teacher) -> dict[str, Any]:
    """The `teacher` part of the manifest; `input_size` is [C, H, W]."""
    spec = teacher.spec
    size = [spec.channels, *spec.size]
    return {"name": teacher.name, "sha256": teacher.sha256, "num_classes": spec.num_classes, "input_size": size}
