"""What all experiments share: a teacher, a student, real pictures that judge, and inverted sets that are made once."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from calib.distillation.student import Student
from calib.settings import Distillation
from inversion.errors import InputError
from inversion.images import SparseImages, load_images
from inversion.job import Inversion
from inversion.plainvit import PlainViT
from inversion.sparse import embed, patchify, sparse_forward
from inversion.teacher import Teacher
from pipeline.judge.answers import Judge
from pipeline.pictures.valdata import ValData
from pipeline.recipe.resolve import inversion_of
from pipeline.record.manifest import TeacherRecord
from pipeline.record.versions import versions
from pipeline.reproduce.bench import METHODS, describe_device
from pipeline.reproduce.scale import Scale
from pipeline.run.distilling import Figures, Job, Source, distill, real_judge
from pipeline.run.stages.invert import invert_with_bar
from pipeline.show.display import Display

PAPER_SEED = 42


@dataclass
class Laboratory:
    """One reproduction. `fresh_student` makes a student as it is before anything was learned, by seed."""

    teacher: Teacher
    fresh_student: Callable[[int], Student]
    scale: Scale
    out: Path
    display: Display
    val_data: ValData | None = None

    @property
    def seeds(self) -> list[int]:
        return [PAPER_SEED + number for number in range(self.scale.seeds)]

    @cached_property
    def judge(self) -> Judge:
        """Raises `InputError` without real pictures: asked for before anything is inverted."""
        if self.val_data is None:
            raise InputError("real pictures judge this experiment: add --val-data.")
        return real_judge(self.teacher, self.val_data)

    @cached_property
    def teacher_top1(self) -> float:
        """Percent of the real pictures."""
        found = self.judge(self.teacher.logits)
        assert found.top1 is not None
        return 100 * found.top1

    def about(self, scale: str, student: str) -> dict[str, object]:
        """What a record says of how it came about."""
        return {
            "teacher": dataclasses.asdict(TeacherRecord.of(self.teacher)),
            "student": student,
            "scale": {"name": scale, **dataclasses.asdict(self.scale)},
            "seeds": self.seeds,
            "pictures": len(self.val_data) if self.val_data else None,
            "device": describe_device(self.teacher.device),
            "versions": versions(),
        }

    def inversion(self, method: str, seed: int, images: int, **changes: Any) -> Inversion:
        """A set of `images` by a method of `METHODS`, at this scale."""
        scale = self.scale
        given = {"iterations": scale.iterations, "batch": min(scale.batch, images), "tv_weight": scale.tv_weight}
        # the paper's 50, 100, 200 and 300 of 4000, or SMI would be dense most of a short inversion
        prune_at = tuple(max(place, scale.iterations * part // 80) for place, part in enumerate((1, 2, 4, 6), start=1))
        given |= inversion_of(self.teacher.name) | {"prune_at": prune_at, "images": images, "seed": seed}
        return Inversion(**{**METHODS[method], **given, **changes})

    def streamed(self, method: str, seed: int) -> Inversion:
        """An inversion of as many batches as this scale has, each for one update."""
        one = self.inversion(method, seed, self.scale.batch)
        whole = len(one.shards()[0]) * one.images_per_trajectory
        return dataclasses.replace(one, images=self.scale.batches * whole, batch=whole)

    def images(self, job: Inversion) -> SparseImages:
        """The whole set of `job`, inverted once and kept in its `folder`."""
        self.display.say(f"images: {job.method}, {job.images} of {job.iterations} iterations, seed {job.seed}")
        invert_with_bar(self.teacher, job, self.folder(job), self.display)
        return load_images(self.folder(job))

    def folder(self, job: Inversion, part: str = "") -> Path:
        """Where the shards of `job` lie, or those of a `part` of its images."""
        settings = json.dumps([dataclasses.asdict(job), self.teacher.sha256, part], sort_keys=True)
        return self.out / "images" / f"{job.method}-{hashlib.sha256(settings.encode()).hexdigest()[:12]}"

    def keep(self, job: Inversion, part: str, images: SparseImages) -> Path:
        """The folder that now holds `images`, a part of those of `job`, as one shard."""
        folder = self.folder(job, part)
        folder.mkdir(parents=True, exist_ok=True)
        images.save(folder / "shard-00000.safetensors")
        return folder

    def distilled(self, label: str, seed: int, source: Source, checks: int = 1) -> tuple[Student, Figures]:
        """The student after learning from `source`, and the figures of that; finished ones are read from `out`."""
        student, scale = self.fresh_student(seed), self.scale
        settings = Distillation(learning_rate=scale.learning_rate, clip_norm=scale.clip_norm, seed=seed)
        self.display.say(f"distillation: {label}, seed {seed}")
        job = Job(self.teacher, student, source, settings, self.val_data, checks)
        return student, distill(job, self.out / "students" / f"{label}-{seed}", self.display)

    @cached_property
    def real(self) -> SparseImages | None:
        """The real pictures as images with all their patches, at most as many as a set has."""
        if self.val_data is None:
            return None
        pictures, labels = [], []
        for images, target in self.val_data:
            pictures.append(patchify(images, self.teacher.patch_size))
            labels.append(target)
            if sum(map(len, labels)) >= self.scale.images:
                break
        patches, target = torch.cat(pictures)[: self.scale.images], torch.cat(labels)[: self.scale.images]
        kept = torch.arange(self.teacher.num_patches).expand(len(patches), -1)
        ones = torch.ones(len(patches), dtype=torch.int64)
        return SparseImages(patches, kept, target, ones, torch.arange(len(patches)), {})


@torch.inference_mode()
def answers(teacher: Teacher, images: SparseImages) -> Tensor:
    """The teacher's logits [M, classes] of each image's patches."""
    return _each(teacher, images, lambda model, patches, kept: sparse_forward(model, patches, kept))


@torch.inference_mode()
def features(teacher: Teacher, images: SparseImages) -> Tensor:
    """What the teacher's classifier reads [M, width] of each image's patches."""
    return _each(teacher, images, lambda model, patches, kept: _before_head(model, embed(model, patches, kept)))


def _before_head(model: PlainViT, tokens: Tensor) -> Tensor:
    return model.forward_head(model.norm(model.blocks(tokens)), pre_logits=True)


def _each(teacher: Teacher, images: SparseImages, look: Callable[[PlainViT, Tensor, Tensor], Tensor]) -> Tensor:
    found: list[Tensor] = []
    order: list[Tensor] = []
    for rows in images.by_count():
        for part in rows.split(64):
            patches, kept = images[part].trimmed()
            found.append(look(teacher.model, patches.to(teacher.device), kept.to(teacher.device)).float().cpu())
            order.append(part)
    return torch.cat(found)[torch.cat(order).argsort()]
