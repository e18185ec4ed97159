"""Which way of setting activation ranges keeps the teacher best on real pictures? No training, one set of images.

    python benchmarks/ranges.py --teacher deit_tiny --checkpoint FILE --images RUN/images --bits w8a8 \
        --val-data DIR --class-map FILE

The default method is what this says. Real pictures compare the methods and do nothing else. A few minutes on two cores.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
from recording import add_teacher_arguments, write_record
from torch import nn

from calib.quantize import quantize
from calib.scheme import QuantScheme
from calib.settings import Calibration, Training
from export.compare import compare
from export.qdq import qdq_module
from inversion.images import load_images
from inversion.teacher import DIGITS_VIT, Teacher, load_teacher
from pipeline.valdata import ValData, digits_held_out, open_val_data

CHOICES = (("max", "mosaic"), ("percentile", "mosaic"), ("mse", "mosaic"), ("kl", "mosaic"), ("kl", "sparse"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_teacher_arguments(parser)
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("--bits", default="w8a8")
    args = parser.parse_args()
    teacher, images = load_teacher(args.teacher, args.checkpoint), load_images(args.images)
    val_data = (
        digits_held_out(teacher.spec)
        if args.teacher == DIGITS_VIT
        else open_val_data(args.val_data, teacher.spec, args.class_map)
    )
    rows = []
    for method, views in CHOICES:
        calibration = Calibration(method=method, views=views)
        result = quantize(teacher, images, QuantScheme.parse(args.bits), calibration, Training(updates=0))
        real = compare(*answers(teacher, qdq_module(teacher.model, result.weights), val_data)).to_dict()
        held_out = result.training.calibrated
        row = {"method": method, "views": views, "held_out_kl": held_out.kl, "real": real}
        print(method, views, f"held-out KL {held_out.kl:.4f}", f"real KL {real['kl']:.4f}", flush=True)
        rows.append(row)
    about = {key: images.metadata[key] for key in ("method", "division_factor", "iterations", "tv_weight", "seed")}
    write_record(f"ranges_{args.teacher}_{args.bits}", {"images": {"count": len(images), **about}, "rows": rows})


@torch.inference_mode()
def answers(teacher: Teacher, module: nn.Module, val_data: ValData) -> tuple[Any, Any, Any]:
    """Logits of teacher and quantized module [M, num_classes], and labels [M]."""
    parts = [(teacher.model(images), module(images), labels) for images, labels in val_data]
    return tuple(torch.cat(column).numpy() for column in zip(*parts, strict=True))


if __name__ == "__main__":
    main()
