"""How many patches stay active for how long: dense (DMI), sparse (SMI) and rebirth (PRI) inversion."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

from inversion.errors import InputError
from inversion.job import Inversion

SMI_RATIOS = {50: 0.16, 76: 0.3, 86: 0.39}
"""Share of the active patches that each point prunes, by percentage of final sparsity (appendix D)."""


@dataclass(frozen=True)
class Stage:
    """`iterations` updates of `active` patches; then `leave` of them leave: as an image (PRI) or for good (SMI)."""

    iterations: int
    active: int
    leave: int


def schedule(job: Inversion, num_patches: int) -> list[Stage]:
    """Stages of one trajectory; the last one's patches all leave as an image.

    PRI (section 4.2): t_k = k * floor(T / v), K = floor(N / v), and the last stage holds what remains of both.
    """
    if job.method == "smi":
        return _smi(job, num_patches)
    if job.method == "pri":
        return _pri(num_patches, job.iterations, job.division_factor)
    return [Stage(job.iterations, num_patches, num_patches)]


def _pri(num_patches: int, iterations: int, v: int) -> list[Stage]:
    if not 1 <= v <= num_patches:
        raise InputError(f"division factor {v} does not divide {num_patches} patches: take 1 to {num_patches}.")
    if iterations < v:
        raise InputError(f"{iterations} iterations are too few for division factor {v}: take at least {v}.")
    length, share = iterations // v, num_patches // v
    stages = [Stage(length, num_patches - k * share, share) for k in range(v - 1)]
    rest = num_patches - (v - 1) * share
    return [*stages, Stage(iterations - (v - 1) * length, rest, rest)]


def _smi(job: Inversion, num_patches: int) -> list[Stage]:
    if job.sparsity not in SMI_RATIOS:
        raise InputError(f"sparsity {job.sparsity} is not one of SMI's: take {', '.join(map(str, SMI_RATIOS))}.")
    last = job.prune_at[-1]
    if job.iterations <= last:
        raise InputError(
            f"{job.iterations} iterations end before SMI's last pruning at {last}: take more, or set prune_at."
        )
    stages, active = [], num_patches
    for start, end in pairwise((0, *job.prune_at)):
        remain = int(active * (1 - SMI_RATIOS[job.sparsity]))
        stages.append(Stage(end - start, active, active - remain))
        active = remain
    return [*stages, Stage(job.iterations - last, active, active)]
