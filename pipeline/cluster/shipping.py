"""Teachers on their way to other processes."""

from __future__ import annotations

import copy
import dataclasses

import torch

from inversion.teacher import Teacher


def packed(teacher: Teacher) -> Teacher:
    """`teacher` as it can be sent: on the CPU."""
    return teacher if teacher.device.type == "cpu" else unpacked(teacher, torch.device("cpu"))


def unpacked(teacher: Teacher, device: torch.device) -> Teacher:
    """A copy of `teacher` on `device`."""
    return dataclasses.replace(teacher, model=copy.deepcopy(teacher.model).to(device))
