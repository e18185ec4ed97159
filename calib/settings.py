"""How to calibrate and train, as checked values; imports nothing heavy."""

from __future__ import annotations

import math
from typing import Annotated, Literal, get_args

from pydantic import Field

from inversion.checked import Amount, Count, Decay, Flag, Positive, Seed, Whole, checked
from inversion.errors import InputError
from inversion.job import Precision

AUTO, FISHER = "auto", "fisher"
RangeMethod = Literal["auto", "max", "percentile", "mse", "fisher"]
RANGE_METHODS = tuple(name for name in get_args(RangeMethod) if name != AUTO)
"""What `auto` tries."""
JUDGES = 48
"""Dead leaves that nothing learns from, numbered behind those of calibration: they choose what `auto` and training
keep."""
SEARCH_IMAGES = 16
"""Of each group of views, from which `fisher` takes ranges: enough to rank them, since the same images see every one
that is tried."""
SHARE_STEP, SMALLEST_SHARE, SMALLEST_SHARE_BELOW_8 = 0.84, 0.25, 0.05
View = Literal["mosaic", "sparse", "leaves", "mixed"]
VIEWS = get_args(View)


def tried_shares(eight_bits: bool) -> list[float]:
    """Of the widest range, those that are tried: fewer integers want far narrower ones."""
    smallest = SMALLEST_SHARE if eight_bits else SMALLEST_SHARE_BELOW_8
    return [SHARE_STEP**power for power in range(1 + math.floor(math.log(smallest) / math.log(SHARE_STEP) + 1e-9))]


@checked("basis")
class Basis:
    """In which basis the weights are rounded (`calib.basis`): the model's function stays the same.

    `learned` rotations err least by the weights alone, after so many `updates`; `random` ones are drawn; `none` rounds
    the weights as they come.
    """

    method: Literal["learned", "random", "none"] = "learned"
    updates: Count = 300
    seed: Seed = 0


@checked("calibration")
class Calibration:
    """How activation ranges are set: `method` on `views` of the images, weights being float.

    `fisher` takes, for each activation by itself, the range whose rounding moves the answer least by the teacher's own
    gradients (`calib.ranges`); `max` and `percentile` are ModelOpt's; `mse` errs least in squares; `auto` tries
    all of them on held-out images.

    `leaves` dead-leaves pictures (`inversion.leaves`) stand beside the images, and others judge: they choose what
    `auto` takes and training keeps. `held_out` is the share of trajectories that only judge: in the proof, and without
    leaves here too.
    """

    method: RangeMethod = "fisher"
    views: View = "mixed"
    leaves: Annotated[int, Field(strict=True, ge=0, le=100_000)] = 96
    held_out: Annotated[float, Field(strict=True, gt=0, le=0.5)] = 0.25
    seed: Seed = 0

    def __post_init__(self) -> None:
        if self.leaves == 0 and self.views == "leaves":
            raise InputError("calibration.leaves must be at least 1 where views is leaves, not 0.")


@checked("rounding")
class Rounding:
    """What attention and MLP weights below 8 bits start from: `gptq` on `views`, or each weight's `nearest` integer.

    `damping` is the share of the Hessian's mean diagonal that GPTQ adds to it. With `saliency` a token counts there as
    much as the teacher's answer depends on it, else all tokens count alike.
    """

    method: Literal["gptq", "nearest"] = "gptq"
    views: View = "mixed"
    damping: Positive = 0.1
    saliency: Flag = True


@checked("training")
class Training:
    """No training unless `updates` says so: in a good basis it buys nothing (docs/decisions/0016).

    KL to the teacher at `temperature`, plus `feature_weight` times the relative squared error of the tokens behind
    each block, on `views` of the images; dense ones as random crops where `crops` says so.

    `adam`: `learning_rate` for weights, `step_learning_rate` for quantizer steps, relative to each step. `sgd`
    (the paper's): momentum 0.9, weight decay 1e-4, one rate for both; the text says 0.001, appendix D 0.01.
    Held-out fidelity is measured `checks` times, of the weights and of their average of decay `ema` (0: none);
    `patience` checks without less KL end the training.
    """

    updates: Whole = 0
    batch: Count = 16
    views: View = "mixed"
    crops: Flag = True
    temperature: Positive = 1.0
    feature_weight: Amount = 4.0
    optimizer: Literal["adam", "sgd"] = "adam"
    schedule: Literal["cosine", "constant"] = "cosine"
    learning_rate: Amount = 1.5e-5
    step_learning_rate: Amount = 1e-3
    ema: Decay = 0.98
    precision: Precision = "auto"
    checks: Count = 8
    patience: Count = 3
    seed: Seed = 0

    def __post_init__(self) -> None:
        if self.crops and self.views == "sparse":
            raise InputError("sparse images cannot be cropped: set training.crops=false, or training.views=mixed.")


@checked("distillation")
class Distillation:
    """Appendix D of the paper: KL to the teacher at `temperature`, SGD at a constant rate, one update a batch.

    `flips` mirrors half of the images. `clip_norm` bounds the gradient's norm, which the paper does not (0): without
    it, few updates at its rate teach nothing (docs/decisions/0014).
    """

    learning_rate: Amount = 0.1
    momentum: Decay = 0.9
    weight_decay: Amount = 1e-4
    temperature: Positive = 1.0
    clip_norm: Amount = 1.0
    flips: Flag = True
    seed: Seed = 0
