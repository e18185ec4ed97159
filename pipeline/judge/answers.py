"""One judge: any models against one teacher, all on the same pictures.

    judge = Judge(teacher.logits, Pictures.of("leaves", dead_leaves(teacher.spec, 100, seed=0)))
    judge(student).agreement, judge(student).kl_interval

A model is whatever takes images and gives logits: a torch module, and by `of_runtime` an ONNX session or an engine.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from export.edge.compare import Comparison, compare, confidences, kl_of_each
from export.edge.runtime import Array, Runtime, answer
from export.pixels import from_pixels, to_pixels
from inversion.plainvit import Module
from inversion.progress import Progress, quiet
from inversion.teacher import InputSpec
from pipeline.pictures.valdata import ValData
from pipeline.record.proof import Disputed

AT_ONCE = 25

Model = Callable[[Tensor], Tensor | Array]
"""Normalised images [B, C, H, W] -> logits [B, classes], on any device."""


@dataclass(frozen=True)
class Pictures:
    """`count` pictures of one kind. `batches` gives (images [B, C, H, W], labels [B]) in an order that stays; where
    they are not `labelled`, the numbers there mean nothing. `numbers` say where each comes from, if anyone knows."""

    kind: str
    count: int
    batches: Callable[[], Iterable[tuple[Tensor, Tensor]]]
    labelled: bool = False
    numbers: Sequence[int] = ()

    @classmethod
    def of(cls, kind: str, images: Tensor, at_once: int = AT_ONCE, numbers: Sequence[int] = ()) -> Pictures:
        """Pictures without labels, in memory."""
        blank = torch.zeros(len(images), dtype=torch.long)
        parts = images.split(at_once), blank.split(at_once)
        return cls(kind, len(images), lambda: zip(*parts, strict=True), numbers=numbers)

    @classmethod
    def real(cls, val_data: ValData, at_once: int = AT_ONCE) -> Pictures:
        """Labelled ones, read anew at each pass."""
        return cls("real", len(val_data), lambda: val_data.batches(at_once), labelled=True)

    def in_bytes(self, spec: InputSpec) -> Pictures:
        """The same as a model sees them that takes bytes: with rounded pixels."""

        def batches() -> Iterator[tuple[Tensor, Tensor]]:
            for images, labels in self.batches():
                yield from_pixels(to_pixels(images, spec), spec), labels

        return replace(self, batches=batches)


@dataclass(frozen=True)
class Answers:
    """Logits [M, classes] of the teacher and, by name, of each model, for the same M pictures; their labels, if any."""

    teacher: Array
    models: dict[str, Array]
    labels: Array | None = None

    def comparisons(self) -> dict[str, Comparison]:
        """Each model against the teacher."""
        return {name: compare(self.teacher, logits, self.labels) for name, logits in self.models.items()}


class Judge:
    """Models against `teacher` on `pictures`. The teacher answers once, at the first pass over them, and is then known:
    of any later models only their own answers are asked."""

    def __init__(self, teacher: Model, pictures: Pictures) -> None:
        self.teacher, self.pictures = teacher, pictures
        self._known: tuple[Array, Array] | None = None

    def __call__(self, model: Model) -> Comparison:
        """How faithful one model is."""
        return self.answers({"": model}).comparisons()[""]

    @torch.inference_mode()
    def answers(self, models: Mapping[str, Model], progress: Progress = quiet) -> Answers:
        """What the teacher and each model say, by name."""
        found: dict[str, list[Array]] = {name: [] for name in models}
        theirs, labels, done = [], [], 0
        for images, target in self.pictures.batches():
            for name, model in models.items():
                found[name].append(_array(model(images)))
            if self._known is None:
                theirs.append(_array(self.teacher(images)))
                labels.append(target.numpy())
            done += len(images)
            progress(self.pictures.kind, done, self.pictures.count, math.nan)
        self._known = self._known or (np.concatenate(theirs), np.concatenate(labels))
        logits, targets = self._known
        said = {name: np.concatenate(parts) for name, parts in found.items()}
        return Answers(logits, said, targets if self.pictures.labelled else None)


def of_module(module: Module, device: torch.device) -> Model:
    """The model of a torch module that stands on `device`."""

    def model(images: Tensor) -> Tensor:
        said: Tensor = module(images.to(device))
        return said

    return model


def of_runtime(runtime: Runtime, spec: InputSpec) -> Model:
    """A session's model; one that takes bytes is given bytes."""
    (dtype,) = runtime.dtypes.values()

    def model(images: Tensor) -> Array:
        return answer(runtime, to_pixels(images, spec).numpy() if dtype == np.uint8 else images.numpy().astype(dtype))

    return model


def _array(said: Tensor | Array) -> Array:
    return said.float().cpu().numpy() if isinstance(said, Tensor) else said


MOST_DISPUTED = 8


def disputed(pictures: Pictures, answers: Answers, name: str) -> list[Disputed]:
    """The `pictures` to which the model `name` answers least as the teacher does: other classes first, then by KL."""
    theirs, ours = answers.teacher, answers.models[name]
    said, heard, divergence = theirs.argmax(1), ours.argmax(1), kl_of_each(theirs, ours)
    sure, too = confidences(theirs), confidences(ours)
    order = np.lexsort((-divergence, said == heard))[:MOST_DISPUTED] if pictures.numbers else ()
    return [
        Disputed(
            pictures.kind, pictures.numbers[row], round(float(divergence[row]), 6), int(said[row]),
            round(float(sure[row]), 4), int(heard[row]), round(float(too[row]), 4),
        )
        for row in order
    ]  # fmt: skip


def most_disputed(found: Iterable[Disputed]) -> tuple[Disputed, ...]:
    """Of several kinds together."""
    return tuple(sorted(found, key=lambda one: (one.teacher == one.quantized, -one.kl)))[:MOST_DISPUTED]


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


def first(pictures: Sequence[Pictures], count: int) -> Pictures:
    """The first `count` pictures of several kinds together."""

    def batches() -> Iterator[tuple[Tensor, Tensor]]:
        left = count
        for kind in pictures:
            for images, labels in kind.batches():
                yield images[:left], labels[:left]
                left -= len(images)
                if left <= 0:
                    return

    return Pictures("first", min(count, sum(kind.count for kind in pictures)), batches)
