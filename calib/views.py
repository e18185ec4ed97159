"""What calibration and training look at: sparse images, the mosaics that they tile, dead leaves, or a mixture."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from inversion.errors import InputError
from inversion.images import SparseImages
from inversion.plainvit import PlainViT
from inversion.sparse import patchify, sparse_forward

AT_ONCE = 32
"""Images that pass a model together."""


@dataclass(frozen=True)
class Views:
    """Groups of (`patches` [M, K, C*P*P], `kept` [M, K]); within a group all images hold equally many patches."""

    groups: tuple[tuple[Tensor, Tensor], ...]

    def __len__(self) -> int:
        return sum(len(kept) for _, kept in self.groups)

    def batches(self, size: int = AT_ONCE) -> Iterator[tuple[Tensor, Tensor]]:
        """(`patches`, `kept`) of at most `size` images of one group, in order."""
        for patches, kept in self.groups:
            yield from zip(patches.split(size), kept.split(size), strict=True)

    def first(self, count: int) -> Views:
        """At most `count` images of each group."""
        return Views(tuple((patches[:count], kept[:count]) for patches, kept in self.groups))

    @torch.inference_mode()
    def logits(self, model: PlainViT) -> list[Tensor]:
        """What `model` says of every image, a tensor [M, num_classes] a group."""
        return [
            torch.cat([sparse_forward(model, *part) for part in Views((group,)).batches()]) for group in self.groups
        ]


def make_views(images: SparseImages, kind: str, device: torch.device, leaves: Tensor | None = None) -> Views:
    """Views of `images` and of `leaves`, dense pictures [M, C, H, W].

    - `sparse`: the images, and nothing of `leaves`
    - `mosaic`: the images of each trajectory together, with all patches of the grid
    - `leaves`: nothing of `images`
    - `mixed`:  mosaics and leaves, in turn as far as both go, so that the first few hold some of both
    """
    if kind == "sparse":
        groups = [images[rows].trimmed() for rows in images.by_count()]
        return Views(tuple((patches.to(device), kept.to(device)) for patches, kept in groups))
    sources = [images.mosaics()] if kind in ("mosaic", "mixed") else []
    if leaves is not None and kind in ("leaves", "mixed"):
        sources.append(leaves)
    return dense_views(_in_turn(sources).to(device), images.patch_size)


def dense_views(pictures: Tensor, patch_size: tuple[int, int]) -> Views:
    """One group: `pictures` [M, C, H, W] with all their patches."""
    patches = patchify(pictures, patch_size)
    return Views(((patches, torch.arange(patches.shape[1], device=patches.device).expand(len(patches), -1)),))


def _in_turn(sources: list[Tensor]) -> Tensor:
    """The first of each, the second of each, and so on."""
    turns = torch.cat([torch.arange(len(source)) for source in sources])
    return torch.cat(sources)[turns.argsort(stable=True)]


def split_held_out(images: SparseImages, share: float) -> tuple[SparseImages, SparseImages]:
    """(training, held-out) images; whole trajectories are held out, every `1/share`-th and at least one."""
    trajectories = images.trajectory.unique()
    if len(trajectories) < 2:
        raise InputError("one trajectory leaves nothing to hold out: invert more images.")
    every = max(2, min(round(1 / share), len(trajectories)))
    held = trajectories[every - 1 :: every]
    chosen = torch.isin(images.trajectory, held)
    return images[~chosen], images[chosen]
