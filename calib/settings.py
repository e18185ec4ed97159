"""How to calibrate and train, as checked values; imports nothing heavy."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf

from inversion.errors import InputError

AUTO = "auto"
AUTO_METHODS = ("max", "percentile", "mse", "kl")
"""What `auto` tries; ModelOpt's entropy search takes seconds a layer."""
RANGE_METHODS = (*AUTO_METHODS, "entropy")
VIEWS = ("mosaic", "sparse")


@dataclass(frozen=True)
class Calibration:
    """How activation ranges are set: `method` on `views` of the images.

    `max`, `percentile` and `entropy` are ModelOpt's; `mse` errs least in squares; `kl` shrinks each max range while
    the KL to the teacher falls; `auto` tries all but `entropy`.

    `held_out` is the share of trajectories that only judge: they choose the method and what training keeps.
    """

    method: str = AUTO
    views: str = "mosaic"
    held_out: float = 0.25

    def __post_init__(self) -> None:
        _one_of("range method", self.method, (AUTO, *RANGE_METHODS))
        _one_of("calibration views", self.views, VIEWS)
        if not 0 < self.held_out <= 0.5:
            raise InputError(f"the held-out share must be above 0 and at most 0.5, not {self.held_out}.")


@dataclass(frozen=True)
class Training:
    """KL to the teacher on `views` of the images.

    `adam`: `learning_rate` for weights, `step_learning_rate` for quantizer steps, relative to each step. `sgd`
    (the paper's): momentum 0.9, weight decay 1e-4, one rate for both; the text says 0.001, appendix D 0.01.
    Held-out fidelity is measured `checks` times; `patience` checks without less KL end the training.
    """

    updates: int = 200
    batch: int = 16
    views: str = "mosaic"
    optimizer: str = "adam"
    schedule: str = "cosine"
    learning_rate: float = 1.5e-5
    step_learning_rate: float = 1e-3
    checks: int = 8
    patience: int = 3
    seed: int = 0

    def __post_init__(self) -> None:
        _one_of("training views", self.views, VIEWS)
        _one_of("optimizer", self.optimizer, ("adam", "sgd"))
        _one_of("schedule", self.schedule, ("cosine", "constant"))
        for name in ("batch", "checks", "patience"):
            if getattr(self, name) < 1:
                raise InputError(f"training {name} must be at least 1, not {getattr(self, name)}.")
        for name in ("updates", "learning_rate", "step_learning_rate"):
            if not 0 <= getattr(self, name) < inf:
                raise InputError(f"training {name} must be finite and not negative, not {getattr(self, name)}.")


def _one_of(what: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise InputError(f"unknown {what} {value!r}: take one of {', '.join(allowed)}.")
