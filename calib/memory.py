"""What training will need of a CPU's memory, asked for before any work."""

from __future__ import annotations

import torch

from calib.settings import Training
from inversion.errors import MachineError
from inversion.machine import choose_precision, free_memory
from inversion.plainvit import PlainViT

NUMBERS_PER_TOKEN_WIDTH = 52
"""What a block keeps of a token for the backward pass, fake quantization among it, over the token's width: DeiT-Tiny's
training grows by 47 MB an image in bfloat16 (batches of 8, 32 and 64)."""
WEIGHT_COPIES = 8
"""Teacher, student, its fake-quantized weights and gradient, Adam's two moments, the average, the best state."""


def training_bytes(model: PlainViT, training: Training, device: torch.device) -> int:
    """An estimate of what training `model` so takes, without its images."""
    tokens = model.patch_embed.num_patches + model.num_prefix_tokens
    half = choose_precision(training.precision, device) == torch.bfloat16
    kept = NUMBERS_PER_TOKEN_WIDTH * model.embed_dim * tokens * len(model.blocks) * (2 if half else 4)
    return training.batch * kept + 4 * WEIGHT_COPIES * sum(parameter.numel() for parameter in model.parameters())


def require_training_memory(model: PlainViT, training: Training) -> None:
    """Raises `MachineError` where the memory of the CPU that trains is not enough."""
    device = model.pos_embed.device
    need, free = training_bytes(model, training, device), free_memory()
    if training.updates and device.type == "cpu" and need > free:
        raise MachineError(
            f"training in batches of {training.batch} needs about {need / 1e9:.1f} GB, {free / 1e9:.1f} GB are free: "
            "take a smaller training.batch."
        )
