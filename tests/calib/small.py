"""Small teachers and hand-cut images for the tests of this folder."""

from __future__ import annotations

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Generator, Tensor
from torch.nn import functional as F

from calib.ranges import insert_quantizers
from calib.scheme import QuantScheme
from calib.views import Views, make_views
from inversion.images import SparseImages
from inversion.sparse import patchify
from inversion.teacher import InputSpec, Teacher

CPU = torch.device("cpu")


def small_teacher() -> Teacher:
    """16 patches of 8x8 grey pixels, two thin blocks, every weight random."""
    torch.manual_seed(0)
    model = VisionTransformer(32, 8, in_chans=1, num_classes=5, embed_dim=32, depth=2, num_heads=2)
    model = model.eval().requires_grad_(False)
    for weight in model.parameters():
        weight.add_(0.2 * torch.randn_like(weight))
    return Teacher(model, InputSpec((32, 32), (0.5,), (0.25,), "bicubic", 1.0, 5), "small", "0" * 64)


def sparse_images(trajectories: int, pictures: Tensor | None = None) -> SparseImages:
    """Each trajectory's picture [1, 32, 32], noise unless given, cut into images of 7, 7 and 2 random patches."""
    generator = Generator().manual_seed(trajectories)
    if pictures is None:
        coarse = torch.randn(trajectories, 1, 12, 12, generator=generator)
        pictures = F.interpolate(coarse, size=32, mode="bilinear").clamp(-2, 2)
    kept = torch.rand(trajectories, 16, generator=generator).argsort(1)
    kept = F.pad(kept, (0, 5), value=-1).view(-1, 7)
    trajectory = torch.arange(trajectories).repeat_interleave(3)
    patches = patchify(pictures, (8, 8))[trajectory.unsqueeze(1), kept.clamp(min=0)]
    return SparseImages(
        patches=patches * (kept >= 0).unsqueeze(-1),
        kept=kept.to(torch.int16),
        labels=(trajectory % 5).to(torch.int32),
        stage=torch.tensor([1, 2, 3], dtype=torch.int8).repeat(trajectories),
        trajectory=trajectory.to(torch.int32),
        metadata={"grid": "4x4", "patch_size": "8", "channels": "1", "teacher_sha256": "0" * 64},
    )


def views(trajectories: int, kind: str = "mosaic") -> Views:
    return make_views(sparse_images(trajectories), kind, CPU)


def inserted(teacher: Teacher, bits: str) -> VisionTransformer:
    """A copy of the teacher with quantizers, whose activations have no ranges yet."""
    return insert_quantizers(teacher.model, QuantScheme.parse(bits))
