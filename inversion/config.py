"""What stands beside a teacher's weights: a config.json in timm's layout, or what its user says of its pictures."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from inversion.checked import Number, checked
from inversion.errors import InputError

CONFIG = "config.json"
PREPROCESSOR = "preprocessor_config.json"
Interpolation = Literal["bicubic", "bilinear", "lanczos"]
RESAMPLE = {"1": "lanczos", "2": "bilinear", "3": "bicubic"}
"""Pillow's numbers."""
MODEL_ARGS = {
    "img_size", "patch_size", "in_chans", "num_classes", "global_pool", "embed_dim", "depth", "num_heads", "mlp_ratio",
    "qkv_bias", "qk_norm", "init_values", "class_token", "no_embed_class", "reg_tokens", "pre_norm", "fc_norm",
}  # fmt: skip
"""Arguments of timm's ViT that a config.json may give; a path among them would be loaded, so there is none."""
TRAINING_ARGS = {
    "drop_rate", "drop_path_rate", "pos_drop_rate", "patch_drop_rate", "proj_drop_rate", "attn_drop_rate",
    "weight_init",
}  # fmt: skip


@checked("input")
class GivenInput:
    """How pictures enter the teacher, where its name or its config.json do not say it: `mean` and `std` a channel for
    pixels in 0..1, `crop` the share of the resized picture's side that the centre crop keeps. What is left out stays.

        >>> from inversion import GivenInput, load_teacher
        >>> load_teacher("digits_vit", given=GivenInput(std=(0.25,))).spec.std
        (0.25,)
    """

    mean: tuple[Number, ...] = ()
    std: tuple[Number, ...] = ()
    crop: Number | None = None
    interpolation: Interpolation | None = None

    def __post_init__(self) -> None:
        if not all(0 <= value <= 1 for value in self.mean):
            raise InputError(f"mean {_words(self.mean)} is not within 0..1: give it for pixels from 0 to 1, as in 0.5.")
        if not all(0 < value <= 1 for value in self.std):
            raise InputError(f"std {_words(self.std)} is not above 0 and at most 1: give it for pixels from 0 to 1.")
        if self.crop is not None and not 0 < self.crop <= 1:
            raise InputError(f"crop {self.crop} must be above 0 and at most 1: the share of the side that is kept.")

    def settings(self) -> dict[str, Any]:
        """As timm's pretrained_cfg calls them; what was not given is left out."""
        found = {"mean": self.mean, "std": self.std, "crop_pct": self.crop, "interpolation": self.interpolation}
        return {key: value for key, value in found.items() if value not in ((), None)}


@dataclass(frozen=True)
class Config:
    """`architecture` is timm's name, None in Hugging Face's layout; `settings` its pretrained_cfg; `labels` what the
    classes are called. `model_args` build the model otherwise than its name says, `pool` is how it pools, `heads` how
    many heads its attention has. What is not known is None.
    """

    architecture: str | None
    settings: dict[str, Any] = field(default_factory=dict)
    labels: tuple[str, ...] | None = None
    classes: int | None = None
    model_args: dict[str, Any] = field(default_factory=dict)
    pool: str | None = None
    heads: int | None = None


def read_config(folder: Path) -> Config | None:
    """The config.json in `folder`, or None where there is none of timm's layout or of Hugging Face's ViT or DeiT.

    Raises `InputError` for one that says of itself what a teacher must not be, or holds what it cannot.
    """
    path = folder / CONFIG
    found = _read_json(path)
    if found is None:
        return None
    if found.get("problem_type") == "multi_label_classification":
        raise InputError(f"{str(path)!r} is of a multi-label teacher, whose answers are no softmax over classes.")
    settings = found.get("pretrained_cfg")
    if not isinstance(found.get("architecture"), str) or not isinstance(settings, dict):
        return _hugging_face(found, path) if found.get("model_type") in ("vit", "deit") else None
    keys = ("mean", "std", "crop_pct", "interpolation", "input_size")
    known = {key: settings[key] for key in keys if settings.get(key) is not None}
    _require_plain(known, path)
    return Config(
        found["architecture"],
        known,
        _labels(found.get("label_names") or settings.get("label_names")),
        _whole(found.get("num_classes")),
        _model_args(found.get("model_args") or {}, path),
        found.get("global_pool") if found.get("global_pool") in ("token", "avg") else None,
    )


def _read_json(path: Path) -> dict[str, Any] | None:
    """The table in a file; None where there is no file, or something else in it."""
    try:
        found = json.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{str(path)!r} cannot be read as JSON: mend or remove it.") from error
    return found if isinstance(found, dict) else None


def _hugging_face(found: dict[str, Any], path: Path) -> Config:
    """The config.json of a Hugging Face ViT or DeiT, and the preprocessor_config.json beside it."""
    if (act := found.get("hidden_act", "gelu")) != "gelu":
        raise InputError(f"{str(path)!r} has the activation {act!r}: only a teacher with 'gelu' is taken.")
    beside = path.with_name(PREPROCESSOR)
    settings = _hugging_face_settings(_read_json(beside) or {}, beside)
    if side := _whole(found.get("image_size")):
        settings["input_size"] = [len(settings.get("mean", (0, 0, 0))), side, side]
    labels = _labels(found.get("id2label"))
    if labels == tuple(
        f"LABEL_{number}" for number in range(len(labels or ()))
    ):  # what stands there when none are given
        labels = None
    return Config(None, settings, labels, heads=_whole(found.get("num_attention_heads")))


def _hugging_face_settings(told: dict[str, Any], path: Path) -> dict[str, Any]:
    """As timm's pretrained_cfg calls them; what the file does not tell is left out."""
    settings: dict[str, Any] = {}
    factor = told.get("rescale_factor", 1 / 255)
    if not isinstance(factor, int | float) or abs(factor * 255 - 1) > 1e-3 or told.get("do_rescale", True) is not True:
        raise InputError(
            f"{str(path)!r} does not scale pixels to 0..1 before mean and std: put the weights elsewhere, and "
            "give --mean and --std for pixels from 0 to 1."
        )
    for ours, theirs in (("mean", "image_mean"), ("std", "image_std")):
        if told.get(theirs) is not None:
            settings[ours] = told[theirs]
    if told.get("do_normalize") is False:
        settings |= {"mean": [0.0] * 3, "std": [1.0] * 3}
    if told.get("resample") is not None:
        settings["interpolation"] = RESAMPLE.get(str(told["resample"]), told["resample"])
    resized, kept = (_side(told.get(key)) for key in ("size", "crop_size"))
    if settings and resized:
        settings["crop_pct"] = kept / resized if kept and told.get("do_center_crop") else 1.0
    _require_plain(settings, path)
    return settings


def _side(size: Any) -> int | None:
    """Of 256, {"shortest_edge": 256} or {"height": 256, "width": 256}."""
    return _whole(size.get("shortest_edge") or size.get("height")) if isinstance(size, dict) else _whole(size)


def _whole(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else None


def _labels(names: Any) -> tuple[str, ...] | None:
    """Of a list, or of a table from each class's number to its name."""
    if isinstance(names, dict):
        numbers = [str(number) for number in range(len(names))]
        names = [names[number] for number in numbers] if names.keys() == set(numbers) else None
    return tuple(map(str, names)) if isinstance(names, list) and names else None


def _model_args(told: Any, path: Path) -> dict[str, Any]:
    """What decides the function of a timm model; what only training knows is left out, and all else refused."""
    if not isinstance(told, dict) or (unknown := sorted(told.keys() - MODEL_ARGS - TRAINING_ARGS)):
        raise InputError(
            f"{str(path)!r} has model_args {unknown if isinstance(told, dict) else told!r}: only a model of "
            f"{', '.join(sorted(MODEL_ARGS))} is taken."
        )
    return {key: value for key, value in told.items() if key in MODEL_ARGS}


def config_bytes(
    architecture: str, spec: Any, pool: str, labels: tuple[str, ...] | None, model_args: dict[str, Any] | None = None
) -> bytes:
    """config.json in timm's layout, for a model whose input is `spec`, an `InputSpec`.

    `model_args` are those it was built with, of which only what a config.json may give is written.
    """
    size = [spec.channels, *spec.size]
    plain = {key: value for key, value in (model_args or {}).items() if key in MODEL_ARGS}
    told = {
        "architecture": architecture,
        "num_classes": spec.num_classes,
        "global_pool": pool,
        "pretrained_cfg": {
            "input_size": size, "mean": list(spec.mean), "std": list(spec.std), "crop_pct": spec.crop,
            "interpolation": spec.interpolation, "num_classes": spec.num_classes,
        },
        **({"label_names": list(labels)} if labels else {}),
        **({"model_args": plain} if plain else {}),
    }  # fmt: skip
    return (json.dumps(told, indent=1) + "\n").encode()


def _require_plain(settings: dict[str, Any], path: Path) -> None:
    for key in ("mean", "std", "input_size"):
        value = settings.get(key, [1])
        if not isinstance(value, list) or not all(
            isinstance(part, int | float) and not isinstance(part, bool) and math.isfinite(part) for part in value
        ):
            raise InputError(f"{str(path)!r} has {key} {value!r}: it must be a list of numbers.")
    size = settings.get("input_size", [3, 224, 224])
    if len(size) != 3 or not all(isinstance(side, int) and side > 0 for side in size):
        raise InputError(f"{str(path)!r} has input_size {size!r}: it must be channels, height and width.")
    crop, interpolation = settings.get("crop_pct", 1), settings.get("interpolation", "bicubic")
    if not isinstance(crop, int | float) or isinstance(crop, bool) or not isinstance(interpolation, str):
        what, value = ("interpolation", interpolation) if not isinstance(interpolation, str) else ("crop_pct", crop)
        raise InputError(f"{str(path)!r} has {what} {value!r}: it must be as timm writes it, 0.9 or 'bicubic'.")
    GivenInput(
        tuple(settings.get("mean", ())), tuple(settings.get("std", ())), settings.get("crop_pct"),
        settings.get("interpolation"),
    )  # fmt: skip


def _words(values: tuple[float, ...]) -> str:
    return ",".join(f"{value:g}" for value in values)
