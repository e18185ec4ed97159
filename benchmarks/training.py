"""Which training keeps the teacher best? Each setting starts from the same rounded model; real pictures judge.

    python benchmarks/training.py --teacher deit_tiny --checkpoint FILE --images RUN/images --bits w4a8 --updates 250 \
        --setting feature_weight=0 --setting feature_weight=4 --setting feature_weight=4,learning_rate=6e-6 \
        --val-data DIR --class-map FILE

A setting is fields of `calib.settings.Training`, parted by commas, on top of its defaults. The defaults are what this
says. Ten minutes a setting of 250 updates on two cores.
"""

from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path

from ranges import answers, divergences, standard_error
from recording import add_teacher_arguments, write_record

from calib.quantize import quantize
from calib.scheme import QuantScheme
from export.compare import compare
from export.qdq import qdq_module
from inversion.images import load_images
from inversion.teacher import load_teacher
from pipeline.recipe import Recipe, make_recipe
from pipeline.valdata import open_val_data


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_teacher_arguments(parser)
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("--bits", default="w4a8")
    parser.add_argument("--updates", type=int, default=250)
    parser.add_argument("--ranges", default="kl", help="range method")
    parser.add_argument("--setting", action="append", required=True, metavar="FIELD=VALUE,...")
    args = parser.parse_args()
    recipes = {setting: recipe(args, setting) for setting in args.setting}
    teacher, images = load_teacher(args.teacher, args.checkpoint), load_images(args.images)
    val_data = open_val_data(args.val_data, teacher.spec, args.class_map)
    rows = []
    for setting, chosen in recipes.items():
        parts = (QuantScheme.parse(args.bits), chosen.calibration, chosen.rounding, chosen.training)
        result = quantize(teacher, images, *parts)
        theirs, ours, labels = answers(teacher, qdq_module(teacher.model, result.weights), val_data)
        real = compare(theirs, ours, labels).to_dict()
        history = [(update, fidelity.kl) for update, fidelity in result.training.history]
        row = {"setting": setting, "training": asdict(chosen.training), "held_out_kl": history, "real": real}
        row["standard_error_of_kl"] = standard_error(divergences(theirs, ours))
        print(setting, history, f"real KL {real['kl']:.4f}", flush=True)
        rows.append(row)
    write_record(f"training_{args.teacher}_{args.bits}", {"images": len(images), "rows": rows})


def recipe(args: argparse.Namespace, setting: str) -> Recipe:
    """The settings of one row; bad fields are refused as a recipe's are."""
    overrides = [f"training.{part}" for part in setting.split(",") if part]
    overrides += [f"training.updates={args.updates}", f"calibration.method={args.ranges}"]
    return make_recipe({"teacher": args.teacher, "bits": args.bits, "effort": "quick"}, None, overrides)


if __name__ == "__main__":
    main()
