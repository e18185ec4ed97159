"""Which training keeps the teacher best? Each setting starts from the same rounded model; real pictures judge.

    python benchmarks/training.py --teacher deit_tiny --checkpoint FILE --images RUN/images --bits w4a8 --updates 250 \
        --setting feature_weight=0 --setting feature_weight=4 --setting feature_weight=4,learning_rate=6e-6 \
        --val-data DIR --class-map FILE

A setting is fields of `calib.settings.Training`, parted by commas, on top of what `pipeline build` takes at these bits.
The first row is the start, without training. Real pictures compare settings and choose nothing in a build.
Ten minutes a setting of 250 updates on two cores.
"""

from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path
from typing import Any

from image_quality import Exam, add_json_argument, open_pictures, save, split, standard_error
from recording import add_teacher_arguments
from torch import Tensor

from calib.quantize import quantize
from export.qdq import qdq_module
from inversion.images import SparseImages, load_images
from inversion.teacher import Teacher, load_teacher
from pipeline.recipe import Recipe, make_recipe

START = "updates=0"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_teacher_arguments(parser)
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("--bits", default="w4a8")
    parser.add_argument("--updates", type=int, default=250)
    parser.add_argument("--ranges", default="kl", help="range method")
    parser.add_argument("--setting", action="append", required=True, metavar="FIELD=VALUE,...")
    parser.add_argument("--limit", type=int, default=500, help="pictures that judge")
    add_json_argument(parser)
    args = parser.parse_args()
    # all of them before any work: a wrong field of the last setting is told at once
    recipes = {setting: recipe(args, setting) for setting in (START, *args.setting)}
    teacher, images = load_teacher(args.teacher, args.checkpoint), load_images(args.images)
    exam = Exam.of(teacher, split(open_pictures(args, teacher.spec), args.limit, 0)[0])
    rows, found = [], {}
    for setting, chosen in recipes.items():
        row, found[setting] = measure(teacher, images, chosen, exam)
        paired = found[setting] - found[START]
        row = {"setting": setting, **row, "kl_less_start": float(paired.mean())}
        row["standard_error_of_kl_less_start"] = standard_error(paired)
        print(setting, row["held_out_kl"], f"real KL {row['real']['kl']:.4f}", flush=True)
        rows.append(row)
    results = {"bits": args.bits, "images": len(images), "pictures": len(exam.labels), "rows": rows}
    save(f"training_{args.teacher}_{args.bits}", results, args.json)


def recipe(args: argparse.Namespace, setting: str) -> Recipe:
    """The settings of one row; bad fields are refused as a recipe's are."""
    overrides = [f"training.updates={args.updates}", f"calibration.method={args.ranges}"]
    overrides += [f"training.{part.strip()}" for part in setting.split(",")]
    return make_recipe({"teacher": args.teacher, "bits": args.bits, "effort": "quick"}, None, overrides)


def measure(teacher: Teacher, images: SparseImages, chosen: Recipe, exam: Exam) -> tuple[dict[str, Any], Tensor]:
    """One row, and the KL of each real picture [M], nats."""
    parts = (chosen.quant_scheme(), chosen.calibration, chosen.rounding, chosen.training)
    result = quantize(teacher, images, *parts)
    real, divergence = exam.judge(qdq_module(teacher.model, result.weights))
    outcome = result.training
    row = {
        "training": asdict(chosen.training),
        "held_out_kl": [(update, fidelity.kl) for update, fidelity in outcome.history],
        "best_update": outcome.best_update,
        "real": real,
        "standard_error_of_kl": standard_error(divergence),
    }
    return row, divergence


if __name__ == "__main__":
    main()
