"""What to invert, as checked values; imports nothing heavy."""

from __future__ import annotations

from itertools import pairwise
from typing import Literal

from inversion.checked import Amount, Count, Decay, Positive, Seed, Whole, checked
from inversion.errors import InputError

Method = Literal["dmi", "smi", "pri"]
Selection = Literal["attention", "low", "random", "top"]
Precision = Literal["auto", "float32", "bfloat16"]
AUTO_BATCH = 0


@checked("inversion")
class Inversion:
    """What to invert. `images` and `batch` count sparse images; a shard holds one batch (0: as many as fit).

    Eq. 1: cross entropy and total variation are summed over images; `tv_weight` is lambda. The defaults are what the
    records say is best (benchmarks/records, image_quality); the paper's own numbers are the preset `paper`.

        >>> from inversion import Inversion
        >>> Inversion(images=64, iterations=1000, division_factor=4).trajectories
        16

    - `selection`  which patches leave (PRI) or stay (SMI) first: most `attention` (the method), or for Table 1
      the `low`est, `random` ones, the `top` of the picture
    - `prune_at`   SMI's four pruning iterations; they end before T does
    - `tv_norm`    `image`: each image has its own TV norm, so its optimisation does not depend on the batch;
      `batch`: one norm over the batch, as in SMI's code
    - `classes`    target classes, each as often as the others; empty: all that the teacher knows
    - `precision`  of the teacher's matrix products; `auto` is bfloat16 where the hardware multiplies it natively

    - `prior`      a timm CNN whose batch norms' statistics pictures are drawn to (appendix G), with weights from
      `prior_checkpoint` or timm's pretrained ones, by `prior_weight`; empty: none
    """

    method: Method = "pri"
    images: Count = 96
    iterations: Count = 300
    batch: Whole = 32
    division_factor: Count = 4
    sparsity: Whole = 76
    prune_at: tuple[Whole, Whole, Whole, Whole] = (50, 100, 200, 300)
    learning_rate: Positive = 0.25
    betas: tuple[Decay, Decay] = (0.5, 0.99)
    tv_weight: Amount = 1e-2
    tv_norm: Literal["image", "batch"] = "image"
    selection: Selection = "attention"
    precision: Precision = "auto"
    prior: str = ""
    prior_checkpoint: str = ""
    prior_weight: Amount = 0.01
    classes: tuple[int, ...] = ()
    seed: Seed = 0

    def __post_init__(self) -> None:
        if any(one >= next_ for one, next_ in pairwise((0, *self.prune_at))):
            raise InputError(f"inversion.prune_at must rise from 1 on, not {list(self.prune_at)}.")
        if 0 < self.batch < self.images_per_trajectory:
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
