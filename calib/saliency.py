"""How much each token of a layer's output counts for the answer: the weights of GPTQ's Hessians."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Generator, Tensor, nn

from calib.views import Views
from inversion.errors import InputError
from inversion.sparse import sparse_forward

GROUPS = 6
"""Of a layer's outputs, each with weights of its own."""
DRAWS = 2
"""Answers that are drawn for each image."""
AT_ONCE = 8
"""Images whose gradients are held together: 220 MB each for DeiT-Base."""


def token_saliency(
    model: VisionTransformer,
    views: Views,
    layers: Mapping[str, nn.Module],
    seed: int = 0,
    on_image: Callable[[int], None] | None = None,
) -> list[dict[str, Tensor]]:
    """For each batch of `views.batches()`, the saliency [B, T, GROUPS] of every layer's output tokens, mean 1 an image.

    It is the squared gradient of log p(y | image) to the output, mean over the group's channels, for answers y drawn
    from what `model` itself says: the diagonal of the Fisher information, which is the Hessian of the KL to the model.
    So of the last block's tokens none but those that the classifier reads count. Images count alike, however sure the
    model is of them.

    `layers` are linears of `model` by name; `on_image` is called with the number of images done.

    Raises `InputError` where the model's answers are not finite.
    """
    generator = Generator().manual_seed(seed)
    found, done = [], 0
    for batch in views.batches():
        parts = []
        for patches, kept in Views((batch,)).batches(AT_ONCE):
            parts.append(_squared_gradients(model, patches, kept, layers, generator))
            done += len(kept)
            if on_image:
                on_image(done)
        found.append({name: _mean_one(torch.cat([part[name] for part in parts])) for name in layers})
    return found


def _squared_gradients(
    model: VisionTransformer, patches: Tensor, kept: Tensor, layers: Mapping[str, nn.Module], generator: Generator
) -> dict[str, Tensor]:
    """Of the log likelihood of drawn answers to each layer's output, mean over a group's channels: [B, T, GROUPS]."""
    squared: dict[str, Tensor] = {}
    with _outputs_of(layers) as outputs, torch.enable_grad():
        answers = sparse_forward(model, patches.clone().requires_grad_(), kept).log_softmax(-1)
        if not bool(torch.isfinite(answers).all()):
            raise InputError("the teacher's answers are not finite numbers: the teacher or the images are broken.")
        drawn = torch.multinomial(answers.detach().exp().cpu(), DRAWS, replacement=True, generator=generator)
        for draw in drawn.to(answers.device).unbind(1):
            likelihood = answers.gather(1, draw.unsqueeze(1)).sum()
            gradients = torch.autograd.grad(likelihood, list(outputs.values()), retain_graph=True)
            for name, gradient in zip(outputs, gradients, strict=True):
                parts = [part.square().mean(-1) for part in gradient.tensor_split(GROUPS, -1)]
                squared[name] = squared.get(name, 0.0) + torch.stack(parts, -1)
    return squared


@contextmanager
def _outputs_of(layers: Mapping[str, nn.Module]) -> Iterator[dict[str, Tensor]]:
    """What each layer gives in the forward pass inside, by name."""
    outputs: dict[str, Tensor] = {}

    def keep(name: str, output: Tensor) -> None:
        outputs[name] = output

    hooks = [
        layer.register_forward_hook(lambda _, __, output, name=name: keep(name, output))
        for name, layer in layers.items()
    ]
    try:
        yield outputs
    finally:
        for hook in hooks:
            hook.remove()


def _mean_one(values: Tensor) -> Tensor:
    """`values` [B, T, G] over their mean in each image; an image that is answered with certainty counts its tokens
    alike."""
    means = values.mean((1, 2), keepdim=True)
    return torch.where(means > 0, values / means, 1.0)
