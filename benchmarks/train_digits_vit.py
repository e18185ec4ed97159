"""Train the built-in teacher `digits_vit` on scikit-learn's real handwritten digits.

    nice -n 5 python benchmarks/train_digits_vit.py

1,297 digits train, minutes on one core; 500 are held out and looked at once, after the float16 rounding of the
saved weights. The schedule is fixed: no epoch is chosen by the held-out digits.
"""

from __future__ import annotations

import argparse
import math
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image
from recording import RECORDS, write_record
from timm.layers import PatchDropout, build_sincos2d_pos_embed
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from export.edge.compare import wilson_interval
from inversion.teacher import DIGITS_WEIGHTS, InputSpec, digits_vit, load_teacher
from inversion.tensorfile import write_tensors
from pipeline.pictures.preprocess import transform
from pipeline.pictures.valdata import digits_held_out, digits_split

FORMAT = "patch-rebirth.teacher/1"
SPEC = InputSpec((32, 32), (0.5,), (0.5,), "bicubic", 1.0, 10)
BATCH = 64
PEAK_RATE = 1.5e-3
WEIGHT_DECAY = 0.05
LABEL_SMOOTHING = 0.1
PATCH_DROP = 0.5  # half the patches, half the time; the last quarter of the epochs sees all of them
WHOLE_EPOCHS = 0.25


def augment(images: Tensor, generator: torch.Generator) -> Tensor:
    """Random rotation, scale, shear, shift and smooth bending of each picture [B, 1, 32, 32], normalised."""

    def uniform(*shape: int) -> Tensor:
        return torch.rand(shape, generator=generator) * 2 - 1

    count = len(images)
    angle, shear = uniform(count) * math.radians(10), uniform(count) * 0.15
    width, height = 1 + uniform(count) * 0.12, 1 + uniform(count) * 0.12
    cos, sin = torch.cos(angle), torch.sin(angle)
    rows = [
        torch.stack([cos * width, (cos * shear - sin) * height, uniform(count) * 0.12], 1),
        torch.stack([sin * width, (sin * shear + cos) * height, uniform(count) * 0.12], 1),
    ]
    grid = F.affine_grid(torch.stack(rows, 1), list(images.shape), align_corners=False)  # [B, 32, 32, 2]
    bend = F.interpolate(uniform(count, 2, 4, 4) * 0.06, images.shape[-2:], mode="bicubic", align_corners=True)
    # zeros outside the picture must be black, which is -1 in normalised space
    moved = F.grid_sample(images + 1, grid + bend.permute(0, 2, 3, 1), align_corners=False)
    return moved * (1 + uniform(count, 1, 1, 1) * 0.15) - 1


def fresh_model(seed: int) -> VisionTransformer:
    """Random weights; positions start from sines, which spares the epochs in which a ViT finds the plane."""
    torch.manual_seed(seed)
    model = digits_vit()
    sines = build_sincos2d_pos_embed(list(model.patch_embed.grid_size), dim=model.embed_dim, temperature=100)
    model.pos_embed.data[0, model.num_prefix_tokens :] = 0.3 * sines
    return model


def train(epochs: int, seed: int) -> VisionTransformer:
    """The weights at the end of a one-cycle schedule."""
    generator = torch.Generator().manual_seed(seed)
    pictures, labels, _, _ = digits_split()
    prepare = transform(SPEC)
    images = torch.stack([prepare(Image.fromarray(picture)) for picture in pictures])
    targets = torch.from_numpy(labels)
    model = fresh_model(seed).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=PEAK_RATE, betas=(0.9, 0.95), weight_decay=WEIGHT_DECAY)
    steps = len(images) // BATCH
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, PEAK_RATE, total_steps=epochs * steps, pct_start=0.1)
    for epoch in range(epochs):
        whole = epoch >= epochs * (1 - WHOLE_EPOCHS)
        model.patch_drop = nn.Identity() if whole else PatchDropout(PATCH_DROP)
        losses = []
        order = torch.randperm(len(images), generator=generator)[: steps * BATCH]
        for rows in order.split(BATCH):
            logits = model(augment(images[rows], generator))
            loss = F.cross_entropy(logits, targets[rows], label_smoothing=LABEL_SMOOTHING)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            losses.append(loss.item())
        print(f"epoch {epoch + 1}/{epochs} loss {sum(losses) / steps:.4f}", flush=True)
    return model


def held_out_correct(weights: Path) -> tuple[int, int]:
    """Correct and all held-out digits, by the saved file."""
    teacher = load_teacher("digits_vit", weights)
    data = digits_held_out(teacher.spec)
    return sum(int((teacher.logits(images).argmax(1) == labels).sum()) for images, labels in data), data.count


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, default=45)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--weights", type=Path, default=DIGITS_WEIGHTS)
    parser.add_argument("--records", type=Path, default=RECORDS)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    start = time.perf_counter()
    model = train(args.epochs, args.seed)
    seconds = time.perf_counter() - start
    half = {key: value.half() for key, value in model.state_dict().items()}
    write_tensors(args.weights, half, {"format": FORMAT, "architecture": "digits_vit", "seed": str(args.seed)})
    correct, count = held_out_correct(args.weights)
    write_record(
        "digits_vit",
        {
            "seed": args.seed,
            "epochs": args.epochs,
            "threads": args.threads,
            "train_pictures": len(digits_split()[0]),
            "held_out_pictures": count,
            "seconds": round(seconds, 1),
            "held_out_correct": correct,
            "held_out_top1": correct / count,
            "held_out_top1_interval_95": wilson_interval(correct, count),
            "weights_dtype": "float16",
            "weights_sha256": load_teacher("digits_vit", args.weights).sha256,
        },
        args.records,
    )


if __name__ == "__main__":
    main()
