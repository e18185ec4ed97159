"""manifest.json as it is read: whole and of our schema, or as good as none."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from inversion.errors import InputError

if TYPE_CHECKING:
    from inversion.teacher import Teacher

MANIFEST = "manifest.json"
SCHEMA = 1


def load_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of an existing run folder; `InputError` where there is none that can be read."""
    manifest = read_manifest(folder / MANIFEST)
    if not manifest:
        raise InputError(f"{str(folder)!r} holds no {MANIFEST} of schema {SCHEMA}: make one with `pipeline build`.")
    return manifest


def read_manifest(path: Path) -> dict[str, Any]:
    """Empty where the file is missing or not a manifest: everything then runs again."""
    try:
        manifest = json.loads(path.read_text())
    except (OSError, ValueError, RecursionError):
        return {}
    return manifest if _is_manifest(manifest) else {}


def _is_manifest(found: Any) -> bool:
    return (
        _has(found, schema=int, recipe=dict, teacher=dict, versions=dict, stages=list, validation=dict | None)
        and found["schema"] == SCHEMA
        and _has(found["teacher"], name=str, sha256=str)
        and all(_is_record(stage) for stage in found["stages"])
    )


def _is_record(stage: Any) -> bool:
    kinds = {"name": str, "digest": str, "seconds": int | float, "cached": bool, "outputs": list, "metrics": dict}
    return _has(stage, **kinds) and all(_is_output(output) for output in stage["outputs"])


def _is_output(output: Any) -> bool:
    """Whether it is one, and lies in the run folder: a damaged output is removed."""
    if not _has(output, path=str, sha256=str, bytes=int) or "\0" in output["path"]:
        return False
    path = Path(output["path"])
    return bool(path.name) and not path.is_absolute() and ".." not in path.parts


def _has(found: Any, **kinds: Any) -> bool:
    """Whether `found` is a table that has each key with a value of its kind."""
    return isinstance(found, dict) and all(key in found and isinstance(found[key], kind) for key, kind in kinds.items())


def describe_teacher(teacher: Teacher) -> dict[str, Any]:
    """The `teacher` part of the manifest; `input_size` is [C, H, W]."""
    spec = teacher.spec
    size = [spec.channels, *spec.size]
    return {"name": teacher.name, "sha256": teacher.sha256, "num_classes": spec.num_classes, "input_size": size}
