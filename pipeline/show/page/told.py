"""What stages tell in the manifest, and `pipeline sensitivity` beside it, as far as a page shows it."""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from pipeline.record.manifest import Manifest, of_json
from pipeline.show.page.album import Shown

SENSITIVITY = "sensitivity.json"


@dataclass(frozen=True)
class Inverted:
    """What the invert stage tells of its images: how sure the teacher is by detachment point, by mean, and `between`
    which bounds 80% of them lie."""

    images: int
    confidence: tuple[float, ...] = ()
    between: tuple[tuple[float, float], ...] = ()
    shown: tuple[Shown, ...] = ()


@dataclass(frozen=True)
class Held:
    """On held-out synthetic pictures: KL in nats, and the share of the same answers."""

    kl: float
    agreement: float
    update: int = 0


@dataclass(frozen=True)
class Basis:
    """Relative error of rounded weights, as they were and in the new basis."""

    method: str
    error_before: float | None = None
    error: float | None = None


@dataclass(frozen=True)
class Learned:
    """What the quantize stage tells: ranges tried, and what training did."""

    range_method: str
    kept: str = ""
    best_update: int = 0
    ranges_tried: dict[str, Held] = field(default_factory=dict)
    history: tuple[Held, ...] = ()
    basis: Basis | None = None


@dataclass(frozen=True)
class Damage:
    """Of one layer by itself, in nats of KL: its weight's rounding, and its input's where that is quantized."""

    name: str
    bits: str
    weight_kl: float
    input_kl: float | None = None


@dataclass(frozen=True)
class Damages:
    """What `pipeline sensitivity` found on so many synthetic `pictures`; `teacher` has the sha256 of its weights."""

    teacher: dict[str, str]
    pictures: int
    layers: tuple[Damage, ...]


def damages_of(folder: Path, manifest: Manifest) -> Damages | None:
    """Of this run's teacher, where `pipeline sensitivity` has left it in the run folder or in sensitivity/ there."""
    for path in (folder / SENSITIVITY, folder / "sensitivity" / SENSITIVITY):
        with suppress(OSError, ValueError):
            found = of_json(Damages, json.loads(path.read_bytes()))
            if found and found.layers and found.teacher.get("sha256") == manifest.teacher.sha256:
                return found
    return None


def inverted_of(manifest: Manifest) -> Inverted | None:
    """None where its run tells nothing of it."""
    stage = manifest.find("invert")
    return of_json(Inverted, stage.metrics) if stage else None


def learned_of(manifest: Manifest) -> Learned | None:
    """None where its run tells nothing of it."""
    stage = manifest.find("quantize")
    return of_json(Learned, stage.metrics) if stage else None
