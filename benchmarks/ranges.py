"""Which ranges keep the teacher best? Every range method on every kind of views, without training; real pictures judge.

    python benchmarks/ranges.py --teacher deit_tiny --checkpoint FILE --images RUN/images --bits w8a8 \
        --val-data DIR --class-map FILE

The default method is what this says. Real pictures compare the methods and do not choose in a build. Weights are
rounded to nearest. Half a minute to four minutes a row on two cores.
"""

from __future__ import annotations

import argparse
import itertools
from pathlib import Path
from typing import Any

from image_quality import Exam, add_json_argument, open_pictures, save, split, standard_error
from recording import add_teacher_arguments

from calib.quantization import quantize
from calib.scheme import QuantScheme
from calib.settings import FISHER, RANGE_METHODS, Basis, Calibration, Rounding, Training
from export.qdq import qdq_module
from inversion.images import load_images
from inversion.teacher import load_teacher

CHOICES = [
    *itertools.product(RANGE_METHODS, ("mosaic", "leaves", "mixed")),
    (FISHER, "sparse"),
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_teacher_arguments(parser)
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("--bits", default="w8a8")
    parser.add_argument("--leaves", type=int, default=Calibration().leaves, help="dead leaves beside the images")
    parser.add_argument("--basis", default="learned", choices=("learned", "random", "none"))
    parser.add_argument("--limit", type=int, default=500, help="pictures that judge")
    add_json_argument(parser)
    args = parser.parse_args()
    teacher, images = load_teacher(args.teacher, args.checkpoint), load_images(args.images)
    exam = Exam(teacher, split(open_pictures(args, teacher.spec), args.limit, 0)[0])
    scheme, nearest = QuantScheme.parse(args.bits), Rounding(method="nearest")
    rows = []
    views: Any
    for method, views in CHOICES:
        calibration = Calibration(method=method, views=views, leaves=args.leaves)
        result = quantize(teacher, images, scheme, Basis(method=args.basis), calibration, nearest, Training(updates=0))
        real, divergence = exam.judge(qdq_module(teacher.model, result.weights))
        held_out = result.training.calibrated
        row = {"method": method, "views": views, "held_out_kl": held_out.kl, "real": real}
        row["standard_error_of_kl"] = standard_error(divergence)
        print(method, views, f"held-out KL {held_out.kl:.4f}", f"real KL {real['kl']:.4f}", flush=True)
        rows.append(row)
    about = {key: images.metadata[key] for key in ("method", "division_factor", "iterations", "tv_weight", "seed")}
    results = {"images": {"count": len(images), **about}, "leaves": args.leaves, "pictures": len(exam.labels)}
    save(f"ranges_{args.teacher}_{args.bits}", {**results, "rows": rows}, args.json)


if __name__ == "__main__":
    main()
