"""What an engine is built for, as checked values; imports nothing heavy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

from inversion.errors import InputError

Precision = Literal["float16", "bfloat16", "float32"]
PRECISIONS = get_args(Precision)
PRECISION: Precision = "float16"
"""What stands beside the integers where nothing else is said: TensorRT fuses attention in 16 bits only."""
ON_DEVICE = ("sm75", "sm80", "sm86", "sm87", "sm89", "sm90", "sm100", "sm120")
"""Architectures that TensorRT builds for on their own device; where it cannot be here, a line for there is given."""
ONLY_ON_DEVICE = ("sm87", "sm90", "sm100")
"""Those of them that TensorRT-RTX knows nothing of: the line is given whatever is installed here."""
NAMED = {"orin": "sm87", "hopper": "sm90"}
"""What some are called by."""
BATCHES = (1, 8, 32)
"""Smallest batch, the one to optimise for, and the largest."""


def require_precision(precision: str) -> None:
    """Raises `InputError` for a type of floats that an engine cannot have."""
    if precision not in PRECISIONS:
        raise InputError(f"unknown precision {precision!r}: take one of {', '.join(PRECISIONS)}.")


def require_batches(batches: Sequence[int]) -> None:
    """Raises `InputError` for batches that are no profile."""
    if len(batches) != 3 or not 1 <= batches[0] <= batches[1] <= batches[2]:
        given = ",".join(map(str, batches))
        raise InputError(f"batches {given} are no profile: give smallest, optimal and largest, as in 1,8,32.")
