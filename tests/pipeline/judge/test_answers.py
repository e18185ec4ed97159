"""One judge: whatever takes images and gives logits is held against the teacher, on the same pictures."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from calib.distillation.student import Student
from export.edge.runtime import open_runtime
from export.graph import export_float
from inversion.leaves import dead_leaves
from inversion.teacher import DIGITS_VIT, Teacher, load_teacher
from pipeline.judge.answers import Judge, Pictures, first, of_module, of_runtime
from pipeline.pictures.valdata import digits_held_out
from pipeline.run.distilling import of_student, real_judge


@pytest.fixture(scope="module")
def teacher() -> Teacher:
    return load_teacher(DIGITS_VIT)


def leaves(teacher: Teacher, count: int = 30) -> Pictures:
    return Pictures.of("leaves", dead_leaves(teacher.spec, count, seed=0), at_once=8)


class Counted:
    """A model that notes how many pictures it was asked about."""

    def __init__(self, teacher: Teacher) -> None:
        self.teacher, self.asked = teacher, 0

    def __call__(self, images: Tensor) -> Tensor:
        self.asked += len(images)
        return self.teacher.logits(images)


@pytest.mark.parametrize("uint8_input", [False, True])
def test_a_module_and_a_session_are_judged_alike(teacher: Teacher, uint8_input: bool, tmp_path: Path) -> None:
    """The float file is the teacher's own function, whatever it takes at its entrance, and so is the module."""
    path = tmp_path / "model.onnx"
    export_float(teacher.model, teacher.spec, path, {}, uint8_input)
    pictures = leaves(teacher).in_bytes(teacher.spec) if uint8_input else leaves(teacher)
    judge = Judge(teacher.logits, pictures)
    with open_runtime(path) as runtime:
        models = {"session": of_runtime(runtime, teacher.spec), "module": of_module(teacher.model, teacher.device)}
        found = judge.answers(models).comparisons()
    assert found["session"].n == found["module"].n == 30
    assert found["session"].agreement == found["module"].agreement == 1
    assert found["module"].kl == 0
    assert found["session"].kl < 1e-9  # another order of the same sums
    assert found["session"].top1 is None


def test_pixels_in_bytes_are_seen_by_the_teacher_too(teacher: Teacher) -> None:
    """Rounded once: rounding them again changes no bit."""
    plain, rounded = (torch.cat([images for images, _ in pictures.batches()])
                      for pictures in (leaves(teacher), leaves(teacher).in_bytes(teacher.spec)))  # fmt: skip
    again = Pictures.of("", rounded).in_bytes(teacher.spec)
    assert 0 < (plain - rounded).abs().max() < 1 / 255 / min(teacher.spec.std)
    assert torch.equal(torch.cat([images for images, _ in again.batches()]), rounded)


def test_the_teacher_answers_once(teacher: Teacher) -> None:
    """However many models are judged, one after another; each of these answers for every picture."""
    theirs, one, other = (Counted(teacher) for _ in range(3))
    judge, told = Judge(theirs, leaves(teacher)), list[int]()
    judge.answers({"one": one, "other": other}, lambda _kind, done, _total, _value: told.append(done))
    assert judge(one).agreement == 1
    assert (theirs.asked, one.asked, other.asked) == (30, 60, 30)
    assert told == [8, 16, 24, 30]
    assert judge.answers({}).teacher.shape == (30, 10)


def test_labels_count_where_there_are_some(teacher: Teacher) -> None:
    """Real pictures give top-1; the same pictures without labels do not."""
    data = digits_held_out(teacher.spec)
    found = Judge(teacher.logits, Pictures.real(data))(teacher.logits)
    assert found.n == 500
    assert found.top1 == found.teacher_top1 == 0.99

    def unlabelled() -> Iterator[tuple[Tensor, Tensor]]:
        yield next(iter(data))

    assert Judge(teacher.logits, Pictures("any", 64, unlabelled))(teacher.logits).top1 is None


def test_the_first_of_several_kinds() -> None:
    """In their order, over the border between two kinds, and no more than there are."""
    one, other = (torch.full((count, 1, 2, 2), float(count)) for count in (3, 5))
    kinds = [Pictures.of("one", one, 2), Pictures.of("other", other, 2)]
    for asked, given in ((4, 4), (2, 2), (99, 8)):
        found = first(kinds, asked)
        assert found.count == given
        shown = torch.cat([images for images, _ in found.batches()])
        assert torch.equal(shown, torch.cat([one, other])[:given])


def test_a_student_is_judged_in_eval_mode_and_goes_on_training(teacher: Teacher) -> None:
    """Dropout and batch statistics play no part in a judgement, and are back after it."""
    head: Any = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(1024, 10)).train()
    student = Student(head, teacher.spec, "small")
    judge = real_judge(teacher, digits_held_out(teacher.spec))
    assert judge(of_student(teacher, student)) == judge(of_student(teacher, student))
    assert all(module.training for module in head.modules())
