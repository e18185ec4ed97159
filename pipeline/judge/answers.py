"""Models against the teacher on pictures: all of them answer for the same ones."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from export.edge.compare import Comparison, compare
from export.edge.runtime import Array, Runtime, answer
from export.pixels import from_pixels, to_pixels
from inversion.teacher import Teacher

AT_ONCE = 25


@dataclass(frozen=True)
class Pictures:
    """`count` pictures of one kind. `batches` gives (images [B, C, H, W], labels [B]) in an order that stays; where
    they are not `labelled`, the numbers there mean nothing."""

    kind: str
    count: int
    batches: Callable[[], Iterable[tuple[Tensor, Tensor]]]
    labelled: bool = False

    @classmethod
    def of(cls, kind: str, images: Tensor) -> Pictures:
        """Pictures without labels, in memory."""
        blank = torch.zeros(len(images), dtype=torch.long)
        return cls(kind, len(images), lambda: zip(images.split(AT_ONCE), blank.split(AT_ONCE), strict=True))


@dataclass(frozen=True)
class Answers:
    """Logits [M, classes] of the teacher and, by name, of each model, for the same M pictures; their labels, if any."""

    teacher: Array
    models: dict[str, Array]
    labels: Array | None = None

    def comparisons(self) -> dict[str, Comparison]:
        """Each model against the teacher."""
        return {name: compare(self.teacher, logits, self.labels) for name, logits in self.models.items()}


MISTAKEN, LEAST = 0.8, 10
"""Share of a class's pictures that look like another, of so many at least."""


def mistaken(answers: Answers) -> list[str]:
    """One sentence where the teacher takes nearly all labelled pictures of a class for one and the same other class."""
    assert answers.labels is not None
    said, found = answers.teacher.argmax(1), []
    for label in np.unique(answers.labels).tolist():
        counts = np.bincount(said[answers.labels == label])
        most, total = int(counts.argmax()), int(counts.sum())
        if most != label and total >= LEAST and counts[most] >= MISTAKEN * total:
            found.append(f"{counts[most]} of the {total} pictures of class {label} are class {most} to the teacher")
    more = f", and {len(found) - 1} more classes are mistaken so" if found[1:] else ""
    return [f"{found[0]}{more}: look at the labels."] if found else []


def together(parts: Sequence[Answers]) -> Answers:
    """Those for all pictures of several kinds, without labels."""
    names = parts[0].models
    return Answers(
        np.concatenate([part.teacher for part in parts]),
        {name: np.concatenate([part.models[name] for part in parts]) for name in names},
    )


@torch.inference_mode()
def judge(
    teacher: Teacher, runtimes: Mapping[str, Runtime], pictures: Pictures, on_picture: Callable[[int], None]
) -> Answers:
    """What `teacher` and each runtime say of `pictures`; `on_picture` is told how many are done."""
    teachers: list[Array] = []
    found: dict[str, list[Array]] = {name: [] for name in runtimes}
    labels: list[Array] = []
    for images, target in pictures.batches():
        shown = images
        for name, runtime in runtimes.items():
            shown, given = _given(runtime, images, teacher)
            found[name].append(answer(runtime, given))
        # all files of a run take the same kind of input
        teachers.append(teacher.model(shown.to(teacher.device)).float().cpu().numpy())
        labels.append(target.numpy())
        on_picture(sum(map(len, labels)))
    models = {name: np.concatenate(parts) for name, parts in found.items()}
    return Answers(np.concatenate(teachers), models, np.concatenate(labels) if pictures.labelled else None)


@torch.inference_mode()
def against_module(runtime: Runtime, module: nn.Module, teacher: Teacher, pictures: Iterable[Tensor]) -> Comparison:
    """`runtime` against the torch module that its file was made from."""
    pairs: list[tuple[Array, Array]] = []
    for images in pictures:
        shown, given = _given(runtime, images, teacher)
        pairs.append((module(shown).numpy(), answer(runtime, given)))
    ours, theirs = (np.concatenate(side) for side in zip(*pairs, strict=True))
    return compare(ours, theirs)


def first(pictures: Iterable[Pictures], count: int) -> Iterator[Tensor]:
    """The first `count` pictures of several kinds together, in batches."""
    for kind in pictures:
        for images, _ in kind.batches():
            yield images[:count]
            count -= len(images)
            if count <= 0:
                return


def _given(runtime: Runtime, images: Tensor, teacher: Teacher) -> tuple[Tensor, Array]:
    """What the teacher is to see, and what the runtime is given: a model that takes bytes sees rounded pixels."""
    (dtype,) = runtime.dtypes.values()
    if dtype == np.uint8:
        pixels = to_pixels(images, teacher.spec)
        return from_pixels(pixels, teacher.spec), pixels.numpy()
    return images, images.numpy().astype(dtype)
