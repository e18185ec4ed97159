"""What a stage is. A new one is a file in `pipeline/run/stages` and an entry in `pipeline.run.build.STAGES`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from pathlib import Path

from pipeline.recipe.recipe import Recipe
from pipeline.record.manifest import Facts
from pipeline.run.job import Job
from pipeline.run.pace import Pace


@dataclass(frozen=True)
class StageResult:
    """Files that a stage published, and what it measured."""

    outputs: list[Path]
    metrics: Facts = field(default_factory=dict)


class Stage(ABC):
    """From files to files.

    - `version`     raised when its code starts to give other results from the same inputs
    - `libraries`   of which its result depends on the version
    - `unfinished`  patterns of files in the run folder that it would take up when it is run again
    """

    name: str
    version: int
    libraries: tuple[str, ...]
    unfinished: tuple[str, ...] = ()

    @abstractmethod
    def reads(self, job: Job) -> Facts:
        """All that it reads beside the files of the stages before it, as JSON takes it: its digest is made of that.
        What is not in it cannot make the stage run again."""

    def check_recipe(self, recipe: Recipe) -> None:  # noqa: B027 - most stages refuse nothing here
        """Refuse what no teacher would make possible, before one is loaded."""

    def check(self, job: Job) -> None:  # noqa: B027
        """Refuse what this job cannot do, before any work."""

    @abstractmethod
    def cost(self, job: Job, pace: Pace) -> float:
        """Seconds that it is expected to take, by what `pace` measures of this machine."""

    @abstractmethod
    def run(self, job: Job) -> StageResult:
        """Do the work."""

    def after(self, job: Job, metrics: Facts) -> None:  # noqa: B027
        """Say what is to be said of a finished stage, also of one that had not to run again."""
