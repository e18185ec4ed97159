"""What is said of images that teach little."""

from dataclasses import replace

import torch
from timm.models.vision_transformer import VisionTransformer

from inversion.confidence import one_coloured, target_confidence, warnings_of
from inversion.images import SparseImages
from inversion.teacher import InputSpec, Teacher

SPEC = InputSpec((16, 16), (0.5,) * 3, (0.25,) * 3, "bicubic", 1.0, 4)


def teacher_of(answer: int) -> Teacher:
    """Whatever it sees, it is sure of `answer`."""
    model = VisionTransformer(16, 8, num_classes=4, embed_dim=8, depth=1, num_heads=1).eval().requires_grad_(False)
    model.head.weight.zero_()
    model.head.bias.copy_(10.0 * torch.eye(4)[answer])
    return Teacher(model, SPEC, "sure", "0" * 64)


def images() -> SparseImages:
    """Two of noise with a patch of padding, one red, one grey; all are meant to be of class 2."""
    patches = torch.randn(4, 3, 3 * 64, generator=torch.Generator().manual_seed(0))
    patches[2] = torch.tensor([1.0, -1.0, -1.0]).repeat_interleave(64)
    patches[3] = 0
    kept = torch.tensor([[0, 1, 2], [0, 3, -1], [1, 2, 3], [0, 2, -1]])
    patches[kept < 0] = 0
    number = torch.arange(4)
    about = {"grid": "2x2", "patch_size": "8", "channels": "3"}
    return SparseImages(patches, kept, torch.full((4,), 2), torch.ones(4), number, about)


def test_images_of_one_colour_are_counted() -> None:
    """Red all over and grey all over; a patch of padding makes none."""
    assert one_coloured(images()) == 2


def test_poor_images_are_warned_of() -> None:
    """One sentence for flat images, one for a teacher that recognises nothing; none where all is well, nor at 90% of
    two classes."""
    good = images()[torch.tensor([0, 1])]
    for teacher, shown, said in (
        (teacher_of(2), good, []),
        (teacher_of(2), images(), ["2 of 4 synthetic images are of one colour"]),
        (teacher_of(1), good, ["is that of chance (0.25)"]),
        (teacher_of(1), images(), ["2 of 4", "is that of chance"]),
    ):
        found = warnings_of(teacher, shown, target_confidence(teacher, replace(shown, kept=shown.kept.long())))
        assert len(found) == len(said)
        assert all(part in sentence for part, sentence in zip(said, found, strict=True))
    two = replace(teacher_of(2), spec=replace(SPEC, num_classes=2))
    assert not warnings_of(two, good, torch.tensor([0.9, 0.9]))
    assert warnings_of(two, good, torch.tensor([0.55, 0.5]))
