"""What does an update on sparse images cost, against one on dense images?

    python benchmarks/training_step.py --teacher deit_tiny --checkpoint FILE --images RUN/images --bits w4a8

Equally many images a batch, the same loss (KL and tokens, no crops), timed in turn within one run. Two minutes on two
cores; other work beside it spoils the figures.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from recording import add_teacher_arguments, write_record
from timm.models.vision_transformer import VisionTransformer

from calib.lsq import learn_steps
from calib.qat import Lessons
from calib.quantization import material
from calib.ranges import calibrate, insert_quantizers
from calib.scheme import QuantScheme
from calib.settings import Calibration, Training
from inversion.images import load_images
from inversion.machine import prefer_plain_attention
from inversion.teacher import load_teacher


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_teacher_arguments(parser)
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("--bits", default="w4a8")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    teacher, images = load_teacher(args.teacher, args.checkpoint), load_images(args.images)
    show, held_out = material(teacher, images, Calibration(leaves=0))
    student = insert_quantizers(teacher.model, QuantScheme.parse(args.bits))
    calibrate(student, teacher.model, show("mosaic"), held_out, Calibration(method="max"))
    kinds = {
        kind: update_of(copy.deepcopy(student), Lessons(teacher.model, show(kind), settings))
        for kind in ("mosaic", "sparse")
        for settings in [Training(views=kind, batch=args.batch, crops=False)]
    }
    seconds: dict[str, list[float]] = {kind: [] for kind in kinds}
    for number in range(args.rounds + 1):
        for kind, update in kinds.items():
            start = time.perf_counter()
            update()
            if number:  # the first one warms up
                seconds[kind].append(time.perf_counter() - start)
    medians = {kind: statistics.median(times) for kind, times in seconds.items()}
    kept = sorted({int(patches.shape[1]) for patches, _ in show("sparse").groups})
    results = {"batch": args.batch, "patches": kept, "seconds": seconds, "medians": medians}
    write_record(f"training_step_{args.teacher}", {**results, "sparse_to_dense": medians["sparse"] / medians["mosaic"]})


def update_of(student: VisionTransformer, lessons: Lessons) -> Callable[[], None]:
    """One update of `student`, as `calib.qat.train` makes it."""
    learn_steps(student)
    student.requires_grad_(True)
    if lessons.half:
        prefer_plain_attention(student)
    optimizer = torch.optim.Adam(student.parameters(), 1e-6, fused=True)

    def update() -> None:
        loss, _ = lessons.next(student)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()

    return update


if __name__ == "__main__":
    main()
