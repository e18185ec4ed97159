"""Which settings of ranges, rounding and training keep the teacher best? Real pictures judge, and choose nothing.

    python benchmarks/quantization.py --teacher deit_tiny --checkpoint FILE --images RUN/images --bits w4a8 \
        --setting rounding.saliency=false --setting rounding.saliency=true --setting training.updates=250 \
        --setting training.updates=250,training.learning_rate=6e-6 --val-data DIR --class-map FILE

A setting is keys of the recipe, parted by commas, on top of what `pipeline build --effort quick` takes at these bits,
and, unless it says otherwise, without training. The first setting is what the others are held
against, picture by picture. Two minutes a setting of 24 trajectories on two cores, and a second an update of 16.
"""

from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path
from typing import Any

from image_quality import Exam, add_json_argument, open_pictures, save, split, standard_error
from recording import add_teacher_arguments
from torch import Tensor

from calib.quantization import quantize
from export.qdq import qdq_module
from inversion.images import SparseImages, load_images
from inversion.teacher import Teacher, load_teacher
from pipeline.recipe.recipe import Recipe
from pipeline.recipe.resolve import make_recipe

PLAIN = ("training.updates=0",)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_teacher_arguments(parser)
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("--bits", default="w4a8")
    parser.add_argument("--setting", action="append", required=True, metavar="SECTION.KEY=VALUE,...")
    parser.add_argument("--limit", type=int, default=500, help="pictures that judge")
    add_json_argument(parser)
    args = parser.parse_args()
    # all of them before any work: a wrong key of the last setting is told at once
    recipes = {setting: recipe(args, setting) for setting in args.setting}
    teacher, images = load_teacher(args.teacher, args.checkpoint), load_images(args.images)
    exam = Exam(teacher, split(open_pictures(args, teacher.spec), args.limit, 0)[0])
    rows, found = [], {}
    for setting, chosen in recipes.items():
        row, found[setting] = measure(teacher, images, chosen, exam)
        paired = found[setting] - found[args.setting[0]]
        row = {"setting": setting, **row, "kl_less_first": float(paired.mean())}
        row["standard_error_of_kl_less_first"] = standard_error(paired)
        real = row["real"]
        print(f"{setting}: KL {real['kl']:.4f}, agreement {100 * real['agreement']:.1f}%, "
              f"top-1 {100 * real['top1']:.1f}%, held out {row['held_out_kl']}", flush=True)  # fmt: skip
        rows.append(row)
    results = {"bits": args.bits, "images": len(images), "pictures": len(exam.labels), "rows": rows}
    save(f"quantization_{args.teacher}_{args.bits}", results, args.json)


def recipe(args: argparse.Namespace, setting: str) -> Recipe:
    """The settings of one row; bad keys are refused as a recipe's are."""
    overrides = [*PLAIN, *(part.strip() for part in setting.split(","))]
    return make_recipe({"teacher": args.teacher, "bits": args.bits, "effort": "quick"}, None, overrides)


def measure(teacher: Teacher, images: SparseImages, chosen: Recipe, exam: Exam) -> tuple[dict[str, Any], Tensor]:
    """One row, and the KL of each real picture [M], nats."""
    parts = (chosen.basis, chosen.calibration, chosen.rounding, chosen.training)
    result = quantize(teacher, images, chosen.quant_scheme(), *parts)
    real, divergence = exam.judge(qdq_module(teacher.model, result.weights))
    outcome = result.training
    row = {
        **{type(part).__name__.lower(): asdict(part) for part in parts},
        "basis_error": [result.basis.error_before, result.basis.error],
        "held_out_kl": [(update, round(fidelity.kl, 5)) for update, fidelity in outcome.history],
        "best_update": outcome.best_update,
        "real": real,
        "standard_error_of_kl": standard_error(divergence),
    }
    return row, divergence


if __name__ == "__main__":
    main()
