"""How to calibrate and train, as checked values; imports nothing heavy."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf

from inversion.errors import InputError

AUTO, FISHER = "auto", "fisher"
AUTO_METHODS = ("max", "percentile", "mse", FISHER)
"""What `auto` tries; ModelOpt's entropy search takes seconds a layer."""
RANGE_METHODS = (*AUTO_METHODS, "entropy", "lsq")
MOST_LEAVES = 100_000
JUDGES = 48
"""Dead leaves that nothing learns from, numbered behind those of calibration: they choose what `auto` and training
keep."""
VIEWS = ("mosaic", "sparse", "leaves", "mixed")


@dataclass(frozen=True)
class Basis:
    """In which basis the weights are rounded (`calib.basis`): the model's function stays the same.

    `learned` rotations err least by the weights alone, after so many `updates`; `random` ones are drawn; `none` rounds
    the weights as they come.
    """

    method: str = "learned"
    updates: int = 300
    seed: int = 0

    def __post_init__(self) -> None:
        _one_of("basis", self.method, ("learned", "random", "none"))
        if self.updates < 1:
            raise InputError(f"basis.updates must be at least 1, not {self.updates}: or take basis.method=random.")


@dataclass(frozen=True)
class Calibration:
    """How activation ranges are set: `method` on `views` of the images, weights being float.

    `fisher` takes, for each activation by itself, the range whose rounding moves the answer least by the teacher's own
    gradients (`calib.ranges`); `max`, `percentile` and `entropy` are ModelOpt's; `mse` errs least in squares; `lsq` is
    the LSQ paper's first step; `auto` tries max, percentile, mse and fisher on held-out images.

    `leaves` dead-leaves pictures (`inversion.leaves`) stand beside the images, and others judge: they choose what
    `auto` takes and training keeps. `held_out` is the share of trajectories that only judge: in the proof, and without
    leaves here too.
    """

    method: str = FISHER
    views: str = "mixed"
    leaves: int = 96
    held_out: float = 0.25
    seed: int = 0

    def __post_init__(self) -> None:
        _one_of("range method", self.method, (AUTO, *RANGE_METHODS))
        _one_of("calibration views", self.views, VIEWS)
        if self.leaves < 0 or (self.leaves == 0 and self.views == "leaves"):
            raise InputError(f"calibration.leaves must be at least {int(self.views == 'leaves')}, not {self.leaves}.")
        if self.leaves > MOST_LEAVES:
            raise InputError(
                f"calibration.leaves must be at most {MOST_LEAVES}, not {self.leaves}: hundreds are enough."
            )
        if not 0 < self.held_out <= 0.5:
            raise InputError(f"the held-out share must be above 0 and at most 0.5, not {self.held_out}.")


@dataclass(frozen=True)
class Rounding:
    """What attention and MLP weights below 8 bits start from: `gptq` on `views`, or each weight's `nearest` integer.

    `damping` is the share of the Hessian's mean diagonal that GPTQ adds to it. With `saliency` a token counts there as
    much as the teacher's answer depends on it, else all tokens count alike.
    """

    method: str = "gptq"
    views: str = "mixed"
    damping: float = 0.1
    saliency: bool = True

    def __post_init__(self) -> None:
        _one_of("rounding method", self.method, ("gptq", "nearest"))
        _one_of("rounding views", self.views, VIEWS)
        if not 0 < self.damping < inf:
            raise InputError(f"rounding damping must be positive and finite, not {self.damping}.")


@dataclass(frozen=True)
class Training:
    """KL to the teacher at `temperature`, plus `feature_weight` times the relative squared error of the tokens behind
    each block, on `views` of the images; dense ones as random crops where `crops` says so.

    `adam`: `learning_rate` for weights, `step_learning_rate` for quantizer steps, relative to each step. `sgd`
    (the paper's): momentum 0.9, weight decay 1e-4, one rate for both; the text says 0.001, appendix D 0.01.
    Held-out fidelity is measured `checks` times, of the weights and of their average of decay `ema` (0: none);
    `patience` checks without less KL end the training.
    """

    updates: int = 200
    batch: int = 16
    views: str = "mixed"
    crops: bool = True
    temperature: float = 1.0
    feature_weight: float = 4.0
    optimizer: str = "adam"
    schedule: str = "cosine"
    learning_rate: float = 1.5e-5
    step_learning_rate: float = 1e-3
    ema: float = 0.98
    precision: str = "auto"
    checks: int = 8
    patience: int = 3
    seed: int = 0

    def __post_init__(self) -> None:
        _one_of("training views", self.views, VIEWS)
        _one_of("optimizer", self.optimizer, ("adam", "sgd"))
        _one_of("schedule", self.schedule, ("cosine", "constant"))
        _one_of("training precision", self.precision, ("auto", "float32", "bfloat16"))
        if self.crops and self.views == "sparse":
            raise InputError("sparse images cannot be cropped: set training.crops=false, or training.views=mixed.")
        for name in ("batch", "checks", "patience"):
            if getattr(self, name) < 1:
                raise InputError(f"training {name} must be at least 1, not {getattr(self, name)}.")
        for name in ("updates", "learning_rate", "step_learning_rate", "feature_weight"):
            if not 0 <= getattr(self, name) < inf:
                raise InputError(f"training {name} must be finite and not negative, not {getattr(self, name)}.")
        if not 0 < self.temperature < inf:
            raise InputError(f"training temperature must be positive and finite, not {self.temperature}.")
        if not 0 <= self.ema < 1:
            raise InputError(f"training ema must be at least 0 and below 1, not {self.ema}.")


@dataclass(frozen=True)
class Distillation:
    """Appendix D of the paper: KL to the teacher at `temperature`, SGD at a constant rate, one update a batch.

    `flips` mirrors half of the images. `clip_norm` bounds the gradient's norm, which the paper does not (0): without
    it, few updates at its rate teach nothing (docs/decisions/0014).
    """

    learning_rate: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 1e-4
    temperature: float = 1.0
    clip_norm: float = 1.0
    flips: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("learning_rate", "weight_decay", "clip_norm"):
            if not 0 <= getattr(self, name) < inf:
                raise InputError(f"distillation {name} must be finite and not negative, not {getattr(self, name)}.")
        if not 0 <= self.momentum < 1:
            raise InputError(f"distillation momentum must be at least 0 and below 1, not {self.momentum}.")
        if not 0 < self.temperature < inf:
            raise InputError(f"distillation temperature must be positive and finite, not {self.temperature}.")


def _one_of(what: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise InputError(f"unknown {what} {value!r}: take one of {', '.join(allowed)}.")
