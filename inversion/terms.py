"""The optional term of the inversion loss beside Eq. 1, off unless a job names its CNN."""

from __future__ import annotations

from functools import partial
from typing import Any

import timm
import torch
from torch import Tensor, nn

from inversion.augment import shifted_pixels
from inversion.checkpoint import read_checkpoint
from inversion.errors import InputError
from inversion.job import Inversion
from inversion.teacher import Teacher, create_pretrained

FIRST_LAYER = 10.0
"""Weight of the first batch norm in the prior, as in DeepInversion; the others weigh 1."""


def chosen_prior(teacher: Teacher, job: Inversion) -> BatchNormPrior | None:
    """The one that `job` asks for, where the teacher is."""
    return BatchNormPrior(teacher, job.prior, job.prior_checkpoint, job.prior_weight) if job.prior else None


class BatchNormPrior:
    """Distance of the batch norms' inputs from the statistics that a CNN was trained with (appendix G).

    For each batch norm, the norms of the differences of means and of variances; times B, as cross entropy is summed.
    """

    def __init__(self, teacher: Teacher, name: str, checkpoint: str, weight: float) -> None:
        self.spec, self.weight = teacher.spec, weight
        self.cnn = _load_cnn(name, checkpoint, teacher.spec.channels).to(teacher.device)
        self.norms = [module for module in self.cnn.modules() if isinstance(module, nn.BatchNorm2d)]
        if not self.norms:
            raise InputError(f"prior {name!r} has no batch norm to compare with: take a CNN such as resnet50.")
        cfg: dict[str, Any] = self.cnn.pretrained_cfg
        mean, std = (torch.tensor(cfg[key][: teacher.spec.channels]) for key in ("mean", "std"))
        ours, spread = torch.tensor(teacher.spec.mean), torch.tensor(teacher.spec.std)
        # a CUDA graph could not copy them from the CPU
        self.scale, self.shift = (
            part.view(-1, 1, 1).to(teacher.device) for part in (spread / std, (ours - mean) / std)
        )

    def gradient(self, canvas: Tensor, offset: Tensor) -> Tensor:
        whole = torch.zeros(1, 1, dtype=torch.long, device=canvas.device)
        source = shifted_pixels(whole, offset, (1, 1), self.spec.size).unsqueeze(1).expand_as(canvas)
        picture = canvas.gather(2, source).unflatten(2, self.spec.size).requires_grad_()
        (found,) = torch.autograd.grad(self(picture) * self.weight * len(picture), picture)
        return torch.zeros_like(canvas).scatter_(2, source, found.flatten(2))

    def __call__(self, pictures: Tensor) -> Tensor:
        """The unweighted prior [] of normalised `pictures` [B, C, H, W]."""
        distances: list[Tensor] = []
        handles = [norm.register_forward_hook(partial(_distance, distances)) for norm in self.norms]
        try:
            self.cnn(pictures * self.scale + self.shift)
        finally:
            for handle in handles:
                handle.remove()
        return torch.stack(distances).sum() + (FIRST_LAYER - 1) * distances[0]


def _load_cnn(name: str, checkpoint: str, channels: int) -> Any:
    if not timm.is_model(name.split(".")[0]):
        raise InputError(f"unknown prior {name!r}: take a timm CNN with batch norm, such as resnet50.")
    if not checkpoint:
        cnn = create_pretrained(name, name, "inversion.prior_checkpoint=FILE", num_classes=0, in_chans=channels)
        return cnn.eval().requires_grad_(False)
    cnn = timm.create_model(name, pretrained=False, num_classes=0, in_chans=channels)
    head = cnn.pretrained_cfg.get("classifier") or ()
    heads = tuple(f"{one}." for one in ([head] if isinstance(head, str) else head))
    state = {key: value for key, value in read_checkpoint(checkpoint).items() if not key.startswith(heads)}
    try:
        cnn.load_state_dict(state)
    except RuntimeError as error:
        reason = str(error).splitlines()[1].strip().rstrip(".")
        raise InputError(f"prior checkpoint {checkpoint!r} is not one of {name!r}: {reason}.") from None
    return cnn.eval().requires_grad_(False)


def _distance(distances: list[Tensor], norm: Any, inputs: tuple[Tensor], _output: Tensor) -> None:
    variance, mean = torch.var_mean(inputs[0], dim=(0, 2, 3), correction=0)
    distances.append((variance - norm.running_var).norm() + (mean - norm.running_mean).norm())
