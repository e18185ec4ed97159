"""`pipeline distill`: a student, its learning curve, and what an interrupted run goes on from, in one folder."""

from __future__ import annotations

import dataclasses
import json
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NotRequired, TypedDict

from matplotlib.figure import Figure
from torch import Tensor

from calib.distillation.distiller import Batches, Distiller, Stored, Streamed
from calib.distillation.student import Student, adapt_pictures
from calib.settings import Distillation
from inversion.checkpoint import weights_sha256
from inversion.config import CONFIG, config_bytes
from inversion.errors import InputError
from inversion.images import load_images, require_images_of
from inversion.inverter import Inverter
from inversion.job import Inversion
from inversion.publish import publish
from inversion.teacher import Teacher
from inversion.tensorfile import read_tensors, write_tensors
from pipeline.cluster.connect import Cluster
from pipeline.cluster.inverting import Ahead
from pipeline.judge.answers import Judge, Model, Pictures
from pipeline.pictures.valdata import BATCH, ValData
from pipeline.record.lock import hold
from pipeline.record.manifest import Facts, TeacherRecord
from pipeline.record.versions import versions
from pipeline.show.display import Display
from pipeline.show.gallery import png

STUDENT, RESULT, CURVE, PROGRESS = "student.safetensors", "distillation.json", "curve.png", "progress.safetensors"
STUDENT_FORMAT, PROGRESS_FORMAT = "patch-rebirth.student/1", "patch-rebirth.distillation/1"
SAVE_EVERY_S = 60.0


class Point(TypedDict):
    """A learning curve's, on disk: after so many batches, the KL of the last one, nats; None before the first. The
    rest where real pictures judge."""

    batch: int
    seconds: float
    kl: float | None
    top1: NotRequired[float]
    teacher_top1: NotRequired[float]
    real_kl: NotRequired[float]


class Figures(TypedDict):
    """`RESULT`, on disk. `identity` tells this distillation from others."""

    identity: Facts
    teacher: Facts
    student: dict[str, str]
    versions: dict[str, str | None]
    batches: int
    seconds: float
    curve: list[Point]


@dataclass(frozen=True)
class Source:
    """What a student learns from: an inversion that streams by, or a folder of images shown for some epochs."""

    inversion: Inversion | None = None
    keep_images: bool = False
    images: Path | None = None
    batch: int = 128
    epochs: int = 1

    def batches(
        self, teacher: Teacher, out: Path, seed: int, cluster: Cluster | None = None, threads: int = 1
    ) -> Batches:
        """Made on a `cluster` where one is given. Raises `InputError` where the images are not the teacher's."""
        if self.images is None:
            assert self.inversion is not None
            keep = out / "images" if self.keep_images else None
            if cluster:
                return Ahead(cluster, teacher, self.inversion, threads, keep)
            return Streamed(Inverter(teacher, self.inversion), keep)
        images = load_images(self.images)
        require_images_of(teacher, images, self.images)
        return Stored(images, self.batch, self.epochs, seed)

    def describe(self) -> Facts:
        """For the record, and to know a run again."""
        if self.inversion is not None:
            return {"inversion": dataclasses.asdict(self.inversion)}
        return {"images": str(self.images), "batch": self.batch, "epochs": self.epochs}


@dataclass(frozen=True)
class Job:
    """A distillation, as the command line states it; the student is judged `checks` times. On a `cluster`, a batch is
    made on so many `threads`."""

    teacher: Teacher
    student: Student
    source: Source
    settings: Distillation
    val_data: ValData | None = None
    checks: int = 10
    cluster: Cluster | None = None
    threads: int = 1


def so_many(batches: int, inversion: Inversion) -> Inversion:
    """The inversion of so many `batches`."""
    one = dataclasses.replace(inversion, images=inversion.batch)
    whole = len(one.shards()[0]) * one.images_per_trajectory  # v = 7 makes 126 of 128
    return dataclasses.replace(one, images=batches * whole, batch=whole)


def distill(job: Job, out: Path, display: Display) -> Figures:
    """Train `job.student` and write it, its learning curve and all figures into `out`; returns the figures.

    Stopped at any moment, the same call goes on, at most SAVE_EVERY_S seconds and a batch earlier, and ends with the
    same student. Raises `InputError` where `out` holds another distillation.
    """
    batches = job.source.batches(job.teacher, out, job.settings.seed, job.cluster, job.threads)
    with hold(out):
        run = Run(job, batches, out, display)
        if finished := run.finished():
            return finished
        run.resume()
        run.learn()
        return run.conclude()


class Run:
    """One distillation in its folder."""

    def __init__(self, job: Job, batches: Batches, out: Path, display: Display) -> None:
        self.job, self.batches, self.out, self.display = job, batches, out, display
        self.identity = json.loads(
            json.dumps(
                {
                    "teacher": job.teacher.sha256,
                    "student": job.student.name,
                    "initial weights": weights_sha256(job.student.model.state_dict()),
                    "mean or std": [(spec.mean, spec.std) for spec in (job.teacher.spec, job.student.spec)],
                    "settings": dataclasses.asdict(job.settings),
                    "checks": job.checks,
                    **job.source.describe(),
                }
            )
        )
        self.distiller = Distiller(job.teacher, job.student, job.settings)
        self.judge = real_judge(job.teacher, job.val_data) if job.val_data else None
        self.done, self.seconds = 0, 0.0
        self.curve: list[Point] = []

    def finished(self) -> Figures | None:
        """The figures of this very distillation, where it was finished before; the student is then as it was."""
        path = self.out / RESULT
        if not path.is_file():
            return None
        mend = "take another --out."
        try:
            result: Figures = json.loads(path.read_text())
            identity = result["identity"]
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(f"{str(path)!r} is no record of a distillation: {mend}") from error
        self._require_same(identity)
        tensors, _ = read_tensors(self.out / STUDENT, STUDENT_FORMAT, mend)
        self.job.student.model.load_state_dict(tensors)
        self.display.say(f"finished before: {str(self.out)!r}")
        return result

    def resume(self) -> None:
        """Take up what an earlier, interrupted call left in the folder."""
        path = self.out / PROGRESS
        if not path.is_file():
            return
        tensors, metadata = read_tensors(path, PROGRESS_FORMAT, "remove it to begin anew.")
        self._require_same(json.loads(metadata.get("identity", "{}")))
        self.distiller.restore(tensors)
        self.done, self.seconds = int(metadata["done"]), float(metadata["seconds"])
        self.curve = json.loads(metadata["curve"])
        self.display.say(f"going on at batch {self.done} of {len(self.batches)}")

    def learn(self) -> None:
        total, saved = len(self.batches), time.monotonic()
        iterations = self.job.source.inversion.iterations if self.job.source.inversion else 1
        if self.done == 0 and not self.curve:
            self.curve.append(self._point(None))
        with self.display.progress() as progress:

            def inverted(_what: str, done: int, _total: int, _loss: float) -> None:
                progress("distillation", done, total * iterations, math.nan)

            for number in range(self.done, total):
                started = time.perf_counter()
                images = self.batches.batch(number, inverted)
                kl = self.distiller.learn(images, number)
                self.seconds += time.perf_counter() - started
                self.done = number + 1
                progress("distillation", self.done * iterations, total * iterations, kl)
                self._note(kl)
                if time.monotonic() - saved > SAVE_EVERY_S:
                    self._save()
                    saved = time.monotonic()

    def conclude(self) -> Figures:
        """Write the student, the curve and the figures; what only served to go on is removed."""
        job, student = self.job, self.job.student
        model = {name: value.detach().cpu().clone() for name, value in student.model.state_dict().items()}
        about = {"format": STUDENT_FORMAT, "teacher_sha256": job.teacher.sha256, "architecture": student.name}
        write_tensors(self.out / STUDENT, model, about)
        architecture, pool = student.model.pretrained_cfg["architecture"], student.model.global_pool
        built = getattr(student.model, "_model_args", {})  # what timm writes too
        publish(self.out / CONFIG, config_bytes(architecture, student.spec, pool, job.teacher.labels, built))
        result: Figures = {
            "identity": self.identity,
            "teacher": dataclasses.asdict(TeacherRecord.of(job.teacher)),
            "student": {"name": student.name, "sha256": weights_sha256(model)},
            "versions": versions(),
            "batches": self.done,
            "seconds": round(self.seconds, 1),
            "curve": self.curve,
        }
        publish(self.out / CURVE, png(learning_curve({student.name: self.curve})))
        publish(self.out / RESULT, (json.dumps(result, indent=2) + "\n").encode())
        (self.out / PROGRESS).unlink(missing_ok=True)
        return result

    def _require_same(self, identity: Facts) -> None:
        if identity != self.identity:
            what = next((key for key in self.identity if identity.get(key) != self.identity[key]), "version")
            raise InputError(f"{str(self.out)!r} holds a distillation with another {what}: take another --out.")

    def _note(self, kl: float) -> None:
        """Judge the student where that is due."""
        every = max(1, len(self.batches) // self.job.checks)
        if self.done % every == 0 or self.done == len(self.batches):
            self.curve.append(self._point(round(kl, 6)))

    def _point(self, kl: float | None) -> Point:
        """Of the student as it is now, judged where there is a judge."""
        point: Point = {"batch": self.done, "seconds": round(self.seconds, 3), "kl": kl}
        if self.judge:
            found = self.judge(of_student(self.job.teacher, self.job.student))
            assert found.top1 is not None
            assert found.teacher_top1 is not None
            point |= {"top1": found.top1, "teacher_top1": found.teacher_top1, "real_kl": found.kl}
        return point

    def _save(self) -> None:
        about = {"identity": json.dumps(self.identity), "done": str(self.done), "seconds": repr(self.seconds),
                 "curve": json.dumps(self.curve), "format": PROGRESS_FORMAT}  # fmt: skip
        write_tensors(self.out / PROGRESS, self.distiller.state(), about)


def real_judge(teacher: Teacher, val_data: ValData) -> Judge:
    """Judges students on real pictures, which nothing learns from."""
    return Judge(teacher.logits, Pictures.real(val_data, BATCH))


def of_student(teacher: Teacher, student: Student) -> Model:
    """Answers for the teacher's pictures as `student` sees them; in training it is in between."""
    model = student.model

    def answers(images: Tensor) -> Tensor:
        trains = model.training
        said: Tensor = model.eval()(adapt_pictures(images, teacher, student).to(teacher.device))
        model.train(trains)
        return said

    return answers


def in_words(result: Figures, out: Path) -> str:
    """The end of the curve, and what to do with the student."""
    last = result["curve"][-1]
    judged = ""
    if "top1" in last:
        judged = f"top-1 {100 * last['top1']:.2f}% of real pictures (teacher {100 * last['teacher_top1']:.2f}%), "
    return f"{judged}KL {last['kl']:.4f} after {result['batches']} batches: {out / STUDENT}"


def learning_curve(curves: Mapping[str, Sequence[Point]]) -> Figure:
    """Top-1, or where no real pictures judge the KL of the batches, over minutes (Figure A3), a line a student."""
    figure = Figure(figsize=(5, 3.2), layout="constrained")
    panel = figure.subplots()
    real = any("top1" in point for curve in curves.values() for point in curve)
    for name, curve in curves.items():
        heights = [(point["seconds"] / 60, _height(point, real)) for point in curve]
        shown = [(minutes, height) for minutes, height in heights if height is not None]
        panel.plot([minutes for minutes, _ in shown], [height for _, height in shown], marker=".", label=name)
    panel.set_title("Learning curve" if len(curves) == 1 else "Learning curves", fontsize=10)
    panel.set_xlabel("minutes of inversion and training")
    panel.set_ylabel("top-1, % of real pictures" if real else "KL to the teacher, synthetic")
    panel.legend(fontsize=8)
    return figure


def _height(point: Point, real: bool) -> float | None:
    """Where a point stands in the picture; None for one that has no such figure."""
    if not real:
        return point["kl"]
    return 100 * point["top1"] if "top1" in point else None
