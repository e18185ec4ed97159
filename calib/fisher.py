"""Gradients of a model's own answers: what the Fisher information, the Hessian of the KL to the model, is made of."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Generator, Tensor, nn

from calib.parallel import ALONE, Workers, parts_of
from calib.views import Views
from inversion.errors import InputError
from inversion.plainvit import PlainViT
from inversion.sparse import sparse_forward

DRAWS = 2
"""Answers that are drawn for each image."""
AT_ONCE = 8
"""Images whose gradients are held together: 220 MB each for DeiT-Base."""


def answer_gradients(
    model: PlainViT,
    views: Views,
    modules: Mapping[str, nn.Module],
    of: str,
    generator: Generator,
    workers: Workers = ALONE,
) -> Iterator[dict[str, tuple[Tensor, Tensor]]]:
    """For `AT_ONCE` images at a time, in the order of `views`, and by the names of `modules`, parts of `model`: what
    each takes (`of` "inputs") or gives ("outputs"), [B, ...], and the gradients of log p(y | image) to it,
    [DRAWS, B, ...], for answers y drawn from what `model` itself says. Of several `workers`, each gets those of its
    share, with the answers that one alone would draw.

    Raises `InputError` where the answers are not finite.
    """
    for before, own, behind in parts_of(views, workers):
        pass_over(before, generator)
        for patches, kept in own.batches(AT_ONCE):
            yield _gradients(model, patches, kept, modules, of, generator)
        pass_over(behind, generator)


def pass_over(images: int, generator: Generator) -> None:
    """Leave `generator` as if the answers of so many images had been drawn by it."""
    if images:
        torch.multinomial(torch.ones(images, 1), DRAWS, replacement=True, generator=generator)


def _gradients(
    model: PlainViT, patches: Tensor, kept: Tensor, modules: Mapping[str, nn.Module], of: str, generator: Generator
) -> dict[str, tuple[Tensor, Tensor]]:
    with _watching(modules, of) as seen, torch.enable_grad():
        answers = sparse_forward(model, patches.clone().requires_grad_(), kept).log_softmax(-1)
        if not bool(torch.isfinite(answers).all()):
            raise InputError("the teacher's answers are not finite numbers: the teacher or the images are broken.")
        # on the CPU, so that the same seed draws the same answers everywhere
        drawn = torch.multinomial(answers.detach().exp().cpu(), DRAWS, replacement=True, generator=generator)
        likelihoods = [answers.gather(1, draw.unsqueeze(1)).sum() for draw in drawn.to(answers.device).unbind(1)]
        found = [torch.autograd.grad(each, list(seen.values()), retain_graph=True) for each in likelihoods]
    return {
        name: (value.detach(), torch.stack(gradients))
        for (name, value), *gradients in zip(seen.items(), *found, strict=True)
    }


def images_of(gradients: Mapping[str, tuple[Tensor, Tensor]]) -> int:
    """How many images one part of what `answer_gradients` gives is of."""
    return len(next(iter(gradients.values()))[0])


@contextmanager
def _watching(modules: Mapping[str, nn.Module], of: str) -> Iterator[dict[str, Tensor]]:
    """What each module takes or gives in the forward pass inside, by name."""
    seen: dict[str, Tensor] = {}

    def hook(name: str) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
        return lambda _, inputs, output: seen.__setitem__(name, inputs[0] if of == "inputs" else output)

    hooks = [module.register_forward_hook(hook(name)) for name, module in modules.items()]
    try:
        yield seen
    finally:
        for each in hooks:
            each.remove()
