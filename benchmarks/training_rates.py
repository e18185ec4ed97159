"""Which learning rate helps at which bits? One set of images, one training each from the same calibrated model.

    python benchmarks/training_rates.py --teacher deit_tiny --checkpoint FILE --images RUN/images \
        --val-data DIR --class-map FILE

`Training.learning_rate` and the recipe's FINE_RATE are what this says. Half an hour on two cores.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from ranges import answers
from recording import add_teacher_arguments, write_record

from calib.quantize import quantize
from calib.scheme import QuantScheme
from calib.settings import Calibration, Training
from export.compare import compare
from export.qdq import qdq_module
from inversion.images import load_images
from inversion.teacher import load_teacher
from pipeline.valdata import open_val_data

RATES = (0.0, 3e-6, 1.5e-5)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_teacher_arguments(parser)
    parser.add_argument("--images", type=Path, required=True)
    args = parser.parse_args()
    teacher, images = load_teacher(args.teacher, args.checkpoint), load_images(args.images)
    val_data = open_val_data(args.val_data, teacher.spec, args.class_map)
    rows = []
    for bits in ("w8a8", "w4a8"):
        for rate in RATES:
            training = Training(updates=64, batch=8, learning_rate=rate)
            result = quantize(teacher, images, QuantScheme.parse(bits), Calibration(method="kl"), training)
            real = compare(*answers(teacher, qdq_module(teacher.model, result.weights), val_data)).to_dict()
            history = [(update, fidelity.kl) for update, fidelity in result.training.history]
            print(bits, rate, history, f"real KL {real['kl']:.4f}", flush=True)
            rows.append({"bits": bits, "learning_rate": rate, "held_out_kl": history, "real": real})
    write_record(f"training_rates_{args.teacher}", {"images": len(images), "rows": rows})


if __name__ == "__main__":
    main()
