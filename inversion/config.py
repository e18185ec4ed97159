"""What stands beside a teacher's weights: a config.json in timm's layout, or what its user says of its pictures."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from inversion.errors import InputError

CONFIG = "config.json"
INTERPOLATIONS = ("bicubic", "bilinear", "lanczos")


@dataclass(frozen=True)
class GivenInput:
    """How pictures enter the teacher, where its name or its config.json do not say it: `mean` and `std` a channel for
    pixels in 0..1, `crop` the share of the resized picture's side that the centre crop keeps. What is left out stays.
    """

    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    crop: float | None = None
    interpolation: str | None = None

    def __post_init__(self) -> None:
        if not all(0 <= value <= 1 for value in self.mean):
            raise InputError(f"mean {_words(self.mean)} is not within 0..1: give it for pixels from 0 to 1, as in 0.5.")
        if not all(0 < value <= 1 for value in self.std):
            raise InputError(f"std {_words(self.std)} is not above 0 and at most 1: give it for pixels from 0 to 1.")
        if self.crop is not None and not 0 < self.crop <= 1:
            raise InputError(f"crop {self.crop} must be above 0 and at most 1: the share of the side that is kept.")
        if self.interpolation is not None and self.interpolation not in INTERPOLATIONS:
            raise InputError(f"interpolation {self.interpolation!r} is not one of {', '.join(INTERPOLATIONS)}.")

    def settings(self) -> dict[str, Any]:
        """As timm's pretrained_cfg calls them; what was not given is left out."""
        found = {"mean": self.mean, "std": self.std, "crop_pct": self.crop, "interpolation": self.interpolation}
        return {key: value for key, value in found.items() if value not in ((), None)}


@dataclass(frozen=True)
class Config:
    """`architecture` is timm's name; `settings` its pretrained_cfg; `labels` the classes' names, where known."""

    architecture: str
    settings: dict[str, Any] = field(default_factory=dict)
    labels: tuple[str, ...] | None = None


def read_config(folder: Path) -> Config | None:
    """The config.json in `folder`, or None where there is none of timm's layout.

    Raises `InputError` for one that says of itself what a teacher must not be, or holds what it cannot.
    """
    path = folder / CONFIG
    try:
        found = json.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{str(path)!r} cannot be read as JSON: mend or remove it.") from error
    if not isinstance(found, dict):
        return None
    if found.get("problem_type") == "multi_label_classification":
        raise InputError(f"{str(path)!r} is of a multi-label teacher, whose answers are no softmax over classes.")
    settings = found.get("pretrained_cfg")
    if not isinstance(found.get("architecture"), str) or not isinstance(settings, dict):
        return None
    known = {
        key: settings[key] for key in ("mean", "std", "crop_pct", "interpolation", "input_size") if key in settings
    }
    _require_plain(known, path)
    names = found.get("label_names") or settings.get("label_names")
    labels = tuple(map(str, names)) if isinstance(names, list) and names else None
    return Config(found["architecture"], known, labels)


def config_bytes(architecture: str, spec: Any, pool: str, labels: tuple[str, ...] | None) -> bytes:
    """config.json in timm's layout, for a model whose input is `spec`, an `InputSpec`."""
    size = [spec.channels, *spec.size]
    told = {
        "architecture": architecture,
        "num_classes": spec.num_classes,
        "global_pool": pool,
        "pretrained_cfg": {
            "input_size": size, "mean": list(spec.mean), "std": list(spec.std), "crop_pct": spec.crop,
            "interpolation": spec.interpolation, "num_classes": spec.num_classes,
        },
        **({"label_names": list(labels)} if labels else {}),
    }  # fmt: skip
    return (json.dumps(told, indent=1) + "\n").encode()


def _require_plain(settings: dict[str, Any], path: Path) -> None:
    for key in ("mean", "std", "input_size"):
        value = settings.get(key, [1])
        if not isinstance(value, list) or not all(
            isinstance(part, int | float) and math.isfinite(part) for part in value
        ):
            raise InputError(f"{str(path)!r} has {key} {value!r}: it must be a list of numbers.")
    size = settings.get("input_size", [3, 224, 224])
    if len(size) != 3 or not all(isinstance(side, int) and side > 0 for side in size):
        raise InputError(f"{str(path)!r} has input_size {size!r}: it must be channels, height and width.")
    GivenInput(
        tuple(settings.get("mean", ())), tuple(settings.get("std", ())), settings.get("crop_pct"),
        settings.get("interpolation"),
    )  # fmt: skip


def _words(values: tuple[float, ...]) -> str:
    return ",".join(f"{value:g}" for value in values)
