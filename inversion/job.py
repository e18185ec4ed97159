"""What to invert, as checked values; imports nothing heavy."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from math import inf

from inversion.errors import InputError

METHODS = ("dmi", "smi", "pri")
SELECTIONS = ("attention", "low", "random", "top")
PRECISIONS = ("auto", "float32", "bfloat16")
AUTO_BATCH = 0
CHOICES = {
    "method": METHODS,
    "selection": SELECTIONS,
    "precision": PRECISIONS,
    "tv_norm": ("image", "batch"),
    "removed": ("held", "zero"),
}


@dataclass(frozen=True)
class Inversion:
    """What to invert. `images` and `batch` count sparse images; a shard holds one batch (0: as many as fit).

    Eq. 1: cross entropy and total variation are summed over images; `tv_weight` is lambda.

    - `selection`  which patches leave (PRI) or stay (SMI) first: most `attention` (the method), or for Table 1
      the `low`est, `random` ones, the `top` of the picture
    - `prune_at`   SMI's four pruning iterations; they end before T does
    - `tv_norm`    `image`: each image has its own TV norm, so its optimisation does not depend on the batch;
      `batch`: one norm over the batch, as in SMI's code
    - `removed`    what active patches see in place of those that left: `held`, their last pixels, or `zero`, grey
    - `classes`    target classes, each as often as the others; empty: all that the teacher knows
    - `precision`  of the teacher's matrix products; `auto` is bfloat16 where the hardware multiplies it natively

    Optional terms, each off by default (`inversion.terms`):

    - `label_confidence`   below 1: targets are soft, the class's probability drawn from [label_confidence, 1]
    - `low_pass`           above 0: every `low_pass_every` updates, frequencies above this share of Nyquist go
    - `attention_entropy`  weight that rewards the entropy of the attention which scores patches
    - `prior`              a timm CNN whose batch norms' statistics pictures are drawn to (appendix G), with weights
      from `prior_checkpoint` or timm's pretrained ones, by `prior_weight`
    """

    method: str = "pri"
    images: int = 128
    iterations: int = 4000
    batch: int = 128
    division_factor: int = 4
    sparsity: int = 76
    prune_at: tuple[int, ...] = (50, 100, 200, 300)
    learning_rate: float = 0.25
    betas: tuple[float, float] = (0.5, 0.99)
    tv_weight: float = 1e-4
    tv_norm: str = "image"
    selection: str = "attention"
    removed: str = "held"
    precision: str = "auto"
    label_confidence: float = 1.0
    low_pass: float = 0.0
    low_pass_every: int = 50
    attention_entropy: float = 0.0
    prior: str = ""
    prior_checkpoint: str = ""
    prior_weight: float = 0.01
    classes: tuple[int, ...] = ()
    seed: int = 0

    def __post_init__(self) -> None:
        for name, choices in CHOICES.items():
            if getattr(self, name) not in choices:
                raise InputError(f"unknown {name} {getattr(self, name)!r}: take one of {', '.join(choices)}.")
        for name in ("images", "iterations", "division_factor", "low_pass_every"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} must be at least 1, not {getattr(self, name)}.")
        for name in ("tv_weight", "attention_entropy", "prior_weight"):
            if not 0 <= getattr(self, name) < inf:
                raise InputError(f"{name} must be finite and not negative, not {getattr(self, name)}.")
        if not 0 < self.learning_rate < inf:
            raise InputError(f"learning_rate must be positive and finite, not {self.learning_rate}.")
        if len(self.betas) != 2 or not all(0 <= beta < 1 for beta in self.betas):
            raise InputError(f"betas must be two numbers from 0 to below 1, not {self.betas}.")
        if len(self.prune_at) != 4 or any(one >= next_ for one, next_ in pairwise((0, *self.prune_at))):
            raise InputError(f"prune_at must be four rising iterations from 1 on, not {list(self.prune_at)}.")
        if not 0 < self.label_confidence <= 1:
            raise InputError(f"label_confidence must be above 0 and at most 1, not {self.label_confidence}.")
        if not 0 <= self.low_pass <= 1:
            raise InputError(f"low_pass must be a share of Nyquist from 0 (off) to 1, not {self.low_pass}.")
        if self.batch < 0 or 0 < self.batch < self.images_per_trajectory:
            raise InputError(
                f"batch {self.batch} is less than one trajectory's {self.images_per_trajectory} images: "
                "take more, or 0 for as many as fit."
            )

    @property
    def images_per_trajectory(self) -> int:
        return self.division_factor if self.method == "pri" else 1

    @property
    def trajectories(self) -> int:
        """Enough of them for `images`."""
        return -(-self.images // self.images_per_trajectory)

    def shards(self) -> list[range]:
        """Which trajectories each shard holds; `batch` must be a number of images by now."""
        per_shard = self.batch // self.images_per_trajectory
        assert per_shard > 0, "an automatic batch is resolved before shards are laid out"
        return [
            range(start, min(start + per_shard, self.trajectories)) for start in range(0, self.trajectories, per_shard)
        ]
