"""What to invert, as checked values; imports nothing heavy."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf

from inversion.errors import InputError

METHODS = ("dmi", "smi", "pri")


@dataclass(frozen=True)
class Inversion:
    """What to invert. `images` and `batch` count sparse images; a shard holds one batch.

    `tv_weight` is lambda of Eq. 1. Loss and total variation are summed over images, and each image has its own
    TV norm, so an image's optimisation does not depend on the batch size.
    """

    method: str = "pri"
    images: int = 128
    iterations: int = 4000
    batch: int = 128
    division_factor: int = 4
    sparsity: int = 76
    learning_rate: float = 0.25
    betas: tuple[float, float] = (0.5, 0.99)
    tv_weight: float = 1e-4
    seed: int = 0

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise InputError(f"unknown method {self.method!r}: take one of {', '.join(METHODS)}.")
        for name in ("images", "iterations", "batch", "division_factor"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} must be at least 1, not {getattr(self, name)}.")
        if not 0 < self.learning_rate < inf or not 0 <= self.tv_weight < inf:
            raise InputError(
                "learning_rate must be positive and tv_weight not negative, both finite, "
                f"not {self.learning_rate} and {self.tv_weight}."
            )
        if len(self.betas) != 2 or not all(0 <= beta < 1 for beta in self.betas):
            raise InputError(f"betas must be two numbers from 0 to below 1, not {self.betas}.")
        if self.batch < self.images_per_trajectory:
            raise InputError(f"batch {self.batch} is less than one trajectory's {self.images_per_trajectory} images.")

    @property
    def images_per_trajectory(self) -> int:
        return self.division_factor if self.method == "pri" else 1

    @property
    def trajectories(self) -> int:
        """Enough of them for `images`."""
        return -(-self.images // self.images_per_trajectory)

    def shards(self) -> list[range]:
        """Which trajectories each shard holds."""
        per_shard = self.batch // self.images_per_trajectory
        return [
            range(start, min(start + per_shard, self.trajectories)) for start in range(0, self.trajectories, per_shard)
        ]
