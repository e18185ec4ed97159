"""One judge: whatever takes images and gives logits is held against the teacher, on the same pictures."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from calib.distillation.student import Student
from export.edge.runtime import open_runtime
from export.graph import export_float
from inversion.leaves import dead_leaves
from inversion.teacher import DIGITS_VIT, Teacher, load_teacher
from pipeline.judge.answers import (
    Answers,
    Judge,
    Pictures,
    disputed,
    first,
    most_disputed,
    of_module,
    of_runtime,
)
from pipeline.pictures.valdata import digits_held_out
from pipeline.record.proof import Disputed
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


def test_what_is_disputed_can_be_had_again() -> None:
    """Other classes before other probabilities, each by KL, by the pictures' own numbers; pictures that nobody can
    find again, such as real ones, are not named."""
    teacher = np.log([[0.9, 0.1], [0.6, 0.4], [0.8, 0.2], [0.55, 0.45]])
    ours = np.log([[0.5, 0.5], [0.4, 0.6], [0.8, 0.2], [0.1, 0.9]])
    answers = Answers(teacher, {"model": ours})
    pictures = Pictures.of("leaves", torch.zeros(4, 1, 2, 2), numbers=[70, 71, 72, 73])
    found = disputed(pictures, answers, "model")
    assert [each.number for each in found] == [73, 71, 70, 72]
    kl = round(0.55 * float(np.log(5.5)) + 0.45 * float(np.log(0.5)), 6)
    assert found[0] == Disputed("leaves", 73, kl, 0, 0.55, 1, 0.9)
    assert found[3].kl == 0
    assert disputed(dataclasses.replace(pictures, numbers=()), answers, "model") == []
    both = most_disputed([*found, *(dataclasses.replace(each, kind="mosaics", kl=each.kl + 0.01) for each in found)])
    assert [(each.kind, each.number) for each in both[:4]] == [
        ("mosaics", 73), ("leaves", 73), ("mosaics", 71), ("leaves", 71),
    ]  # fmt: skip
