"""Which way of setting activation ranges keeps the teacher best on real pictures? No training, one set of images.

    python benchmarks/ranges.py --teacher deit_tiny --checkpoint FILE --images RUN/images --bits w8a8 \
        --val-data DIR --class-map FILE

The default method is what this says. Real pictures compare the methods and do nothing else. A few minutes on two cores.
"""

from __future__ import annotations

import argparse
import itertools
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from recording import add_teacher_arguments, write_record
from torch import Tensor, nn
from torch.nn import functional as F

from calib.quantize import quantize
from calib.scheme import QuantScheme
from calib.settings import Calibration, Rounding, Training
from export.compare import compare
from export.qdq import qdq_module
from inversion.images import load_images
from inversion.teacher import DIGITS_VIT, Teacher, load_teacher
from pipeline.valdata import ValData, digits_held_out, open_val_data

METHODS = ("max", "percentile", "mse", "kl")
CHOICES = [*itertools.product(METHODS, ("mosaic", "leaves", "mixed")), ("max", "sparse"), ("kl", "sparse")]


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
        scheme, nearest = QuantScheme.parse(args.bits), Rounding(method="nearest")
        result = quantize(teacher, images, scheme, calibration, nearest, Training(updates=0))
        theirs, ours, labels = answers(teacher, qdq_module(teacher.model, result.weights), val_data)
        real, held_out = compare(theirs, ours, labels).to_dict(), result.training.calibrated
        row = {"method": method, "views": views, "held_out_kl": held_out.kl, "real": real}
        row["standard_error_of_kl"] = standard_error(divergences(theirs, ours))
        print(method, views, f"held-out KL {held_out.kl:.4f}", f"real KL {real['kl']:.4f}", flush=True)
        rows.append(row)
    about = {key: images.metadata[key] for key in ("method", "division_factor", "iterations", "tv_weight", "seed")}
    write_record(f"ranges_{args.teacher}_{args.bits}", {"images": {"count": len(images), **about}, "rows": rows})


@torch.inference_mode()
def answers(teacher: Teacher, module: nn.Module, val_data: ValData) -> tuple[Any, Any, Any]:
    """Logits of teacher and quantized module [M, num_classes], and labels [M]."""
    parts = [(teacher.model(images), module(images), labels) for images, labels in val_data]
    return tuple(torch.cat(column).numpy() for column in zip(*parts, strict=True))


def divergences(theirs: np.ndarray, ours: np.ndarray) -> Tensor:
    """KL(teacher || quantized) of each picture [M], nats, from logits [M, num_classes]."""
    p, q = (torch.from_numpy(each).double().log_softmax(-1) for each in (theirs, ours))
    return F.kl_div(q, p, reduction="none", log_target=True).sum(1)


def standard_error(values: Tensor) -> float:
    """Of the mean of `values` [M]."""
    return float(values.std()) / math.sqrt(len(values))


if __name__ == "__main__":
    main()
