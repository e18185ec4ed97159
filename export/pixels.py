"""Pictures as bytes at a model's entrance: the last steps of preprocessing, moved into the graph."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from inversion.teacher import InputSpec


class FromPixels(nn.Module):
    """`model` behind the scaling and normalisation of its `spec`.

    Takes uint8 pictures [B, H, W, C], 0 to 255, resized and cropped; gives what `model` makes of them.
    """

    pixel_max: Tensor
    pixel_mean: Tensor
    pixel_std: Tensor

    def __init__(self, model: nn.Module, spec: InputSpec) -> None:
        super().__init__()
        self.vit = model
        self.register_buffer("pixel_max", torch.tensor(255.0))
        for name, values in (("pixel_mean", spec.mean), ("pixel_std", spec.std)):
            self.register_buffer(name, torch.tensor(values).view(1, -1, 1, 1))

    def forward(self, pixels: Tensor) -> Tensor:
        # TensorRT takes bytes at its entrance alone: nothing but a cast may stand between them and the floats
        images = pixels.float().permute(0, 3, 1, 2) / self.pixel_max
        return self.vit((images - self.pixel_mean) / self.pixel_std)


def to_pixels(images: Tensor, spec: InputSpec) -> Tensor:
    """Normalised images [B, C, H, W] as the nearest uint8 pictures [B, H, W, C]; exact where they came from such."""
    mean, std = (torch.tensor(part).view(-1, 1, 1) for part in (spec.mean, spec.std))
    return ((images * std + mean) * 255).round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).contiguous()


def from_pixels(pixels: Tensor, spec: InputSpec) -> Tensor:
    """The normalised images [B, C, H, W] of uint8 pictures [B, H, W, C]."""
    return FromPixels(nn.Identity(), spec)(pixels)
