"""How close a quantized model's answers are to the teacher's."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from calib.views import Views
from inversion.plainvit import PlainViT


@dataclass(frozen=True, order=True)
class Fidelity:
    """`kl`: mean KL(teacher || model) in nats; `agreement`: share of equal top-1 answers. Less KL sorts first."""

    kl: float
    agreement: float


def kl_to_teacher(logits: Tensor, teacher_logits: Tensor, temperature: float = 1.0) -> Tensor:
    """Mean over rows of KL(softmax(teacher / T) || softmax(logits / T)) * T^2, both [B, num_classes].

    T^2 keeps the gradient's size as T grows (Hinton et al., 2015, section 2.1).
    """
    ours, theirs = ((each / temperature).log_softmax(-1) for each in (logits, teacher_logits))
    return F.kl_div(ours, theirs, reduction="batchmean", log_target=True) * temperature**2


def fidelity(model: PlainViT, views: Views, teacher_logits: list[Tensor]) -> Fidelity:
    """Of `model` on `views`, whose teacher logits are given a tensor a group."""
    ours, theirs = torch.cat(views.logits(model)).double(), torch.cat(teacher_logits).double()
    agreement = (ours.argmax(-1) == theirs.argmax(-1)).double().mean()
    return Fidelity(kl=float(kl_to_teacher(ours, theirs)), agreement=float(agreement))
