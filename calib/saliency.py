"""How much each token of a layer's output counts for the answer: the weights of GPTQ's Hessians."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Generator, Tensor, nn

from calib.fisher import answer_gradients, images_of, pass_over
from calib.parallel import ALONE, Workers, part_of, parts_of
from calib.views import Views
from inversion.plainvit import PlainViT
from inversion.progress import Progress, quiet

GROUPS = 6
"""Of a layer's outputs, each with weights of its own."""


def token_saliency(
    model: PlainViT,
    views: Views,
    layers: Mapping[str, nn.Module],
    seed: int = 0,
    progress: Progress = quiet,
    workers: Workers = ALONE,
) -> list[dict[str, Tensor]]:
    """For each batch of those of `views` that this worker sees (`calib.parallel.part_of`), the saliency [B, T, GROUPS]
    of every layer's output tokens, mean 1 an image.

    It is the squared gradient of log p(y | image) to the output, mean over the group's channels, for answers y drawn
    from what `model` itself says: the diagonal of the Fisher information, which is the Hessian of the KL to the model.
    So of the last block's tokens none but those that the classifier reads count. Images count alike, however sure the
    model is of them.

    `layers` are linears of `model` by name; `progress` counts images.

    Raises `InputError` where the model's answers are not finite.
    """
    generator, done = Generator().manual_seed(seed), 0
    found = []
    total = len(part_of(views, workers))
    for before, own, behind in parts_of(views, workers):
        pass_over(before, generator)
        for batch in own.batches():
            squared: list[dict[str, Tensor]] = []
            for part in answer_gradients(model, Views((batch,)), layers, "outputs", generator):
                squared.append({name: _by_group(gradients) for name, (_, gradients) in part.items()})
                done += images_of(part)
                progress("saliency", done, total, math.nan)
            found.append({name: _mean_one(torch.cat([part[name] for part in squared])) for name in layers})
        pass_over(behind, generator)
    return found


def _by_group(gradients: Tensor) -> Tensor:
    """Squares of [draws, B, T, out] summed over draws, mean over each group's channels: [B, T, GROUPS]."""
    return torch.stack([part.square().mean(-1).sum(0) for part in gradients.tensor_split(GROUPS, -1)], -1)


def _mean_one(values: Tensor) -> Tensor:
    """`values` [B, T, G] over their mean in each image; an image that is answered with certainty counts its tokens
    alike."""
    means = values.mean((1, 2), keepdim=True)
    return torch.where(means > 0, values / means, 1.0)
