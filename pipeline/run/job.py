"""What a stage works on: one value, made before any work and handed on."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from export.edge.registry import choose_backend
from inversion.teacher import Teacher
from pipeline.cluster.connect import Cluster
from pipeline.pictures.labels import known_labels
from pipeline.pictures.valdata import ValData
from pipeline.recipe.recipe import Recipe
from pipeline.record.manifest import StageRecord
from pipeline.show.display import Display

QUANTIZED = "quantized.safetensors"
TRAINING = "training.safetensors"
"""What interrupted training goes on from; a finished stage leaves none."""


@dataclass(frozen=True)
class Places:
    """Where files lie: the models in `folder`, the shards in `images`; `training` is there while training goes on."""

    folder: Path
    images: Path
    quantized: Path
    training: Path

    @classmethod
    def run(cls, folder: Path) -> Places:
        """Those of a run folder."""
        return cls(folder, folder / "images", folder / QUANTIZED, folder / TRAINING)


@dataclass(frozen=True)
class Job:
    """A recipe on this machine, with its teacher where it is to run: every stage works where the teacher is.

    `pictures` are the real ones that judge. `made` are the records of stages that are done, by name. A
    `cluster` works for those stages that can send their work.
    """

    recipe: Recipe
    teacher: Teacher
    places: Places
    display: Display
    pictures: ValData | None = None
    made: dict[str, StageRecord] = field(default_factory=dict)
    cluster: Cluster | None = None

    @cached_property
    def backend(self) -> str | None:
        """The engine's, or None where none is built."""
        return choose_backend(self.recipe.engine.backend, self.recipe.engine.arch)

    @cached_property
    def labels(self) -> tuple[str, ...] | None:
        """What the classes are called, where that is known."""
        found = known_labels(self.teacher, self.recipe.checkpoint, self.recipe.class_map)
        return tuple(found) if found else None
