"""How much of the paper's work a reproduction does; imports nothing heavy."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass

from inversion.errors import InputError
from inversion.job import Inversion


@dataclass(frozen=True)
class Scale:
    """Sizes of all experiments.

    - `images`, `iterations`, `batch`  of an inverted set; a method's sets are of equal counts
    - `few`, `epochs`                  images and epochs of Table 1, which trains on few images many times
    - `batches`                        updates of a streamed distillation, each on `batch` images of its own
    - `updates`                        of quantization-aware training
    - `learning_rate`, `clip_norm`     of distillation
    - `seeds`                          how many runs of everything that has a spread
    """

    images: int
    iterations: int
    batch: int
    few: int
    epochs: int
    batches: int
    updates: int
    seeds: int
    learning_rate: float = 0.1
    clip_norm: float = 1.0
    tv_weight: float = Inversion().tv_weight


SCALES = {
    "smoke": Scale(images=84, iterations=56, batch=84, few=28, epochs=10, batches=4, updates=8, seeds=1),
    "small": Scale(images=168, iterations=112, batch=42, few=28, epochs=40, batches=12, updates=40, seeds=3),
    "paper": Scale(images=10_000, iterations=4000, batch=128, few=32, epochs=120, batches=120, updates=7500, seeds=1,
                   clip_norm=0.0, tv_weight=1e-4),
}  # fmt: skip
"""`smoke` shows that everything runs, `small` what can be seen in minutes, `paper` is section 5 and appendix D."""


def choose_scale(name: str, overrides: Iterable[str] = ()) -> Scale:
    """The scale `name` with values such as `iterations=500` in place of its own; `InputError` for another name."""
    if name not in SCALES:
        raise InputError(f"unknown scale {name!r}: take one of {', '.join(SCALES)}.")
    kinds = {field.name: type(getattr(SCALES[name], field.name)) for field in dataclasses.fields(Scale)}
    values = {}
    for text in overrides:
        key, _, value = text.partition("=")
        if key not in kinds:
            raise InputError(f"unknown size {key!r} of a scale: the sizes are {', '.join(kinds)}.")
        try:
            values[key] = kinds[key](value)
        except ValueError:
            raise InputError(f"size {key!r} of a scale is {kinds[key].__name__}, not {value!r}.") from None
        if values[key] < (0 if kinds[key] is float or key == "updates" else 1):
            raise InputError(f"size {key!r} of a scale is too small: {value}.")
    return dataclasses.replace(SCALES[name], **values)
