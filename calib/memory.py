"""What quantization will need of the memory where the teacher is, asked for before any work."""

from __future__ import annotations

import torch

from calib.settings import AUTO, FISHER, Calibration, Rounding, Training
from inversion.errors import MachineError
from inversion.machine import choose_precision, free_memory, on
from inversion.plainvit import PlainViT

NUMBERS_PER_TOKEN_WIDTH = 52
"""What a block keeps of a token for the backward pass, fake quantization among it, over the token's width: DeiT-Tiny's
training grows by 47 MB an image in bfloat16 (batches of 8, 32 and 64)."""
WEIGHT_COPIES = 8
"""Teacher, student, its fake-quantized weights and gradient, Adam's two moments, the average, the best state."""
GRADIENT_IMAGES, GRADIENT_NUMBERS = 8, 80
"""Images whose answers' gradients are taken together (`calib.fisher`), and what each keeps of a token over its width,
in float32: so DeiT-Small and DeiT-Base come to 2.8 and 6.3 GB, where whole processes peaked at 4.3 and 8.1."""
GRADIENT_COPIES = 5
"""The teacher as it is, folded, rotated and centred, and the student."""


def require_quantizing_memory(
    model: PlainViT, calibration: Calibration, rounding: Rounding, training: Training
) -> None:
    """Raises `MachineError` where what is free where `model` is would not do for its ranges, rounding or training."""
    device = model.pos_embed.device
    free = free_memory(device)
    if training.updates and (need := training_bytes(model, training, device)) > free:
        raise MachineError(
            f"training in batches of {training.batch} needs about {need / 1e9:.1f} GB, {free / 1e9:.1f} GB are free"
            f"{on(device)}: take a smaller training.batch."
        )
    by_gradients = calibration.method in (AUTO, FISHER) or (rounding.method == "gptq" and rounding.saliency)
    if by_gradients and (need := gradient_bytes(model)) > free:
        raise MachineError(
            f"ranges and rounding by gradients need about {need / 1e9:.1f} GB, {free / 1e9:.1f} GB are free"
            f"{on(device)}: take calibration.method=mse and rounding.saliency=false."
        )


def training_bytes(model: PlainViT, training: Training, device: torch.device) -> int:
    """An estimate of what training `model` so takes, without its images."""
    half = choose_precision(training.precision, device) == torch.bfloat16
    kept = NUMBERS_PER_TOKEN_WIDTH * _token_widths(model) * (2 if half else 4)
    return training.batch * kept + 4 * WEIGHT_COPIES * _weights(model)


def gradient_bytes(model: PlainViT) -> int:
    """An estimate of what `fisher` ranges and the tokens' saliency take, without the images."""
    return 4 * (GRADIENT_IMAGES * GRADIENT_NUMBERS * _token_widths(model) + GRADIENT_COPIES * _weights(model))


def _token_widths(model: PlainViT) -> int:
    """Numbers of an image's tokens, over all blocks."""
    return model.embed_dim * (model.patch_embed.num_patches + model.num_prefix_tokens) * len(model.blocks)


def _weights(model: PlainViT) -> int:
    return sum(parameter.numel() for parameter in model.parameters())
