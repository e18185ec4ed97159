"""Several workers that quantize and train one model together: each sees its part of the images, all end alike."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, distributed

from calib.fidelity import Fidelity
from calib.views import Views
from inversion.errors import InputError
from inversion.plainvit import PlainViT


class Workers(Protocol):
    """`size` workers, of which this process is number `rank`. All of them call the same methods in the same order.

    - `total`    the sum of every worker's `value`, in the place of `value`
    - `largest`  the largest of every worker's, element by element, in its place
    - `agreed`   what worker 0 has, in its place
    """

    @property
    def rank(self) -> int: ...

    @property
    def size(self) -> int: ...

    def total(self, value: Tensor) -> Tensor: ...

    def largest(self, value: Tensor) -> Tensor: ...

    def agreed(self, value: Tensor) -> Tensor: ...


@dataclass(frozen=True)
class Alone:
    """One worker: whatever it has is the sum, the largest, and agreed on."""

    rank: int = 0
    size: int = 1

    def total(self, value: Tensor) -> Tensor:
        return value

    def largest(self, value: Tensor) -> Tensor:
        return value

    def agreed(self, value: Tensor) -> Tensor:
        return value


ALONE = Alone()


@dataclass(frozen=True)
class Together:
    """The processes of torch's default process group, which must exist. Sums are taken in an order that the number of
    workers decides, so that equal work gives equal bytes, on every worker."""

    rank: int
    size: int

    @classmethod
    def of_process_group(cls) -> Together:
        return cls(distributed.get_rank(), distributed.get_world_size())

    def total(self, value: Tensor) -> Tensor:
        distributed.all_reduce(value)
        return value

    def largest(self, value: Tensor) -> Tensor:
        distributed.all_reduce(value, distributed.ReduceOp.MAX)
        return value

    def agreed(self, value: Tensor) -> Tensor:
        distributed.broadcast(value, 0)
        return value


def parts_of(views: Views, workers: Workers) -> Iterator[tuple[int, Views, int]]:
    """Of each group of `views`: how many images lie before this worker's share, the share, and how many behind it.
    Shares are of equal size, give or take an image."""
    for patches, kept in views.groups:
        parts = kept.tensor_split(workers.size)
        before = sum(map(len, parts[: workers.rank]))
        own = slice(before, before + len(parts[workers.rank]))
        group = ((patches[own], kept[own]),) if own.stop > own.start else ()
        yield before, Views(group), len(kept) - own.stop


def part_of(views: Views, workers: Workers) -> Views:
    """The images of `views` that this worker sees. Raises `InputError` where one of the workers would see none."""
    if workers.size == 1:
        return views
    if not any(len(kept) >= workers.size for _, kept in views.groups):
        raise InputError(f"{workers.size} workers share {len(views)} images: take fewer workers, or more images.")
    return Views(tuple(group for _, own, _ in parts_of(views, workers) for group in own.groups))


def agree(model: PlainViT, workers: Workers) -> None:
    """From here on every worker's `model` has what worker 0's has, to the last bit."""
    if workers.size > 1:
        for value in model.state_dict().values():
            value.copy_(workers.agreed(value.detach().clone().contiguous()))


def agreed_fidelity(found: Fidelity, workers: Workers) -> Fidelity:
    """What worker 0 found: what is chosen by it must not differ by a last bit."""
    return Fidelity(*workers.agreed(torch.tensor([found.kl, found.agreement], dtype=torch.float64)).tolist())


def sum_gradients(parameters: Sequence[Tensor], losses: Sequence[Tensor], workers: Workers) -> list[Tensor]:
    """Give every worker the sums of all gradients, in one exchange; returns the sums of `losses`, scalars."""
    if workers.size == 1:
        return list(losses)
    held = [parameter.grad for parameter in parameters if parameter.grad is not None]
    parts = [*held, *(loss.detach() for loss in losses)]
    summed = workers.total(torch.cat([part.float().flatten() for part in parts]))
    pieces = summed.split([part.numel() for part in parts])
    for gradient, piece in zip(held, pieces, strict=False):
        gradient.copy_(piece.view_as(gradient))
    return [piece.reshape(()) for piece in pieces[len(held) :]]
