"""Calibration and training refuse bad values when they are made."""

import re
from math import inf, nan
from typing import Any

import pytest

from calib.settings import RANGE_METHODS, VIEWS, Calibration, Rounding, Training
from inversion.errors import InputError


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            {"method": "best"},
            "unknown calibration.method 'best': take one of auto, max, percentile, mse, fisher.",
        ),
        ({"views": "dense"}, "unknown calibration.views 'dense': take one of mosaic, sparse, leaves, mixed."),
        ({"leaves": -1}, "calibration.leaves must be at least 0 and at most 100000, not -1."),
        (
            {"leaves": 0, "views": "leaves"},
            "calibration.leaves must be at least 1 where views is leaves, not 0.",
        ),
        ({"held_out": 0.0}, "calibration.held_out must be above 0 and at most 0.5, not 0.0."),
        ({"held_out": 0.6}, "calibration.held_out must be above 0 and at most 0.5, not 0.6."),
        ({"held_out": -0.1}, "calibration.held_out must be above 0 and at most 0.5, not -0.1."),
        ({"held_out": nan}, "calibration.held_out must be above 0 and at most 0.5, not nan."),
    ],
)
def test_calibration_refuses(values: dict[str, Any], message: str) -> None:
    """The message names the value and what may stand there."""
    with pytest.raises(InputError, match=f"^{re.escape(message)}$"):
        Calibration(**values)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"views": "both"}, "unknown training.views 'both': take one of mosaic, sparse, leaves, mixed."),
        ({"optimizer": "adamw"}, "unknown training.optimizer 'adamw': take one of adam, sgd."),
        ({"schedule": "linear"}, "unknown training.schedule 'linear': take one of cosine, constant."),
        ({"batch": 0}, "training.batch must be at least 1, not 0."),
        ({"checks": 0}, "training.checks must be at least 1, not 0."),
        ({"patience": -1}, "training.patience must be at least 1, not -1."),
        ({"temperature": 0.0}, "training.temperature must be above 0 and finite, not 0.0."),
        ({"temperature": nan}, "training.temperature must be above 0 and finite, not nan."),
        ({"ema": 1.0}, "training.ema must be at least 0 and below 1, not 1.0."),
        ({"precision": "fp8"}, "unknown training.precision 'fp8': take one of auto, float32, bfloat16."),
        (
            {"views": "sparse"},
            "sparse images cannot be cropped: set training.crops=false, or training.views=mixed.",
        ),
    ],
)
def test_training_refuses(values: dict[str, Any], message: str) -> None:
    """The message names the value and what may stand there."""
    with pytest.raises(InputError, match=f"^{re.escape(message)}$"):
        Training(**values)


@pytest.mark.parametrize("name", ["updates", "learning_rate", "step_learning_rate", "feature_weight"])
@pytest.mark.parametrize("value", [-1, nan, inf])
def test_training_refuses_amounts_below_zero_or_without_end(name: str, value: Any) -> None:
    """Nothing is trained a negative number of times, uphill, or by a rate that makes every weight NaN."""
    with pytest.raises(
        InputError,
        match=rf"^(training\.{name} must be at least 0|recipe key 'training\.{name}' must be int).*, not {value}\.$",
    ):
        Training(**{name: value})


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"method": "adaround"}, "unknown rounding.method 'adaround': take one of gptq, nearest."),
        ({"views": "dense"}, "unknown rounding.views 'dense': take one of mosaic, sparse, leaves, mixed."),
        ({"damping": 0.0}, "rounding.damping must be above 0 and finite, not 0.0."),
        ({"damping": inf}, "rounding.damping must be above 0 and finite, not inf."),
    ],
)
def test_rounding_refuses(values: dict[str, Any], message: str) -> None:
    """The message names the value and what may stand there."""
    with pytest.raises(InputError, match=f"^{re.escape(message)}$"):
        Rounding(**values)


def test_every_named_choice_is_accepted() -> None:
    """What the messages offer can be taken."""
    for method in ("auto", *RANGE_METHODS):
        for views in VIEWS:
            assert Calibration(method=method, views=views, held_out=0.5).method == method
    for optimizer in ("adam", "sgd"):
        assert Training(updates=0, optimizer=optimizer, schedule="constant").updates == 0
