"""A small CNN with batch norm, trained on scikit-learn's real digits: a prior (appendix G) to try on `digits_vit`.

    python benchmarks/train_digits_cnn.py --out cnn.safetensors
    pipeline invert --teacher digits_vit --out with --set inversion.prior=resnet10t \
        --set inversion.prior_checkpoint=cnn.safetensors --set inversion.learning_rate=0.05
    python benchmarks/image_quality.py --teacher digits_vit --images with --images without
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import timm
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn
from train_digits_vit import BATCH, SPEC, augment

from pipeline.pictures.preprocess import transform
from pipeline.pictures.valdata import digits_held_out, digits_split

NAME = "resnet10t"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--epochs", type=int, default=6)
    args = parser.parse_args()
    torch.manual_seed(0)
    cnn = timm.create_model(NAME, pretrained=False, in_chans=1, num_classes=10)
    train(cnn, args.epochs)
    save_file(cnn.state_dict(), args.out)
    found = [(cnn(_for_cnn(cnn, images)).argmax(1) == labels).sum() for images, labels in digits_held_out(SPEC)]
    print(f"{NAME}: {int(sum(found))} of 500 held-out digits")


def train(cnn: nn.Module, epochs: int) -> None:
    """One-cycle AdamW on the 1,297 digits that are not held out; `cnn` ends in eval mode."""
    generator = torch.Generator().manual_seed(0)
    pictures, labels, _, _ = digits_split()
    prepare = transform(SPEC)
    images, targets = torch.stack([prepare(Image.fromarray(one)) for one in pictures]), torch.from_numpy(labels)
    optimizer = torch.optim.AdamW(cnn.parameters(), lr=2e-3)
    steps = len(images) // BATCH
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=epochs * steps)
    cnn.train()
    for _ in range(epochs):
        for rows in torch.randperm(len(images), generator=generator)[: steps * BATCH].split(BATCH):
            loss = F.cross_entropy(cnn(_for_cnn(cnn, augment(images[rows], generator))), targets[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    cnn.eval()


def _for_cnn(cnn: Any, images: Tensor) -> Tensor:
    """From the teacher's normalisation to the CNN's own."""
    cfg = cnn.pretrained_cfg
    return (images * SPEC.std[0] + SPEC.mean[0] - cfg["mean"][0]) / cfg["std"][0]


if __name__ == "__main__":
    main()
