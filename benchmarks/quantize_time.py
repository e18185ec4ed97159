"""How long does `quantize` take, phase by phase, and how much memory? For any teacher, also with random weights.

    python benchmarks/quantize_time.py --teacher deit_base --random-weights --bits w4a8 --effort quick

The images are dead leaves cut as PRI cuts them, as many as the effort inverts: what they show costs nothing and
changes nothing in the time.
"""

from __future__ import annotations

import argparse
import resource
import time

import torch
from image_quality import add_json_argument, save
from recording import add_teacher_arguments
from torch import Generator
from torch.nn import functional as F

from calib.quantization import quantize
from inversion.images import SparseImages
from inversion.leaves import dead_leaves
from inversion.sparse import patchify
from inversion.teacher import Teacher, load_teacher
from pipeline.recipe.resolve import EFFORTS, make_recipe

FIRST = 200_000
"""Number of the first leaf that stands for an inverted image."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_teacher_arguments(parser)
    parser.add_argument("--random-weights", action="store_true")
    parser.add_argument("--bits", default="w4a8")
    parser.add_argument("--effort", default="quick", choices=EFFORTS)
    add_json_argument(parser)
    args = parser.parse_args()
    recipe = make_recipe({"teacher": args.teacher, "bits": args.bits, "effort": args.effort})
    teacher = load_teacher(args.teacher, args.checkpoint, random_weights=args.random_weights)
    v = recipe.inversion.division_factor
    images = cut_leaves(teacher, recipe.inversion.images // v, v)
    spent: dict[str, float] = {}
    last = time.perf_counter()

    def on_phase(phase: str, _done: int, _total: int, _value: float) -> None:
        nonlocal last
        now = time.perf_counter()
        spent[phase] = spent.get(phase, 0.0) + now - last
        last = now

    start = time.perf_counter()
    parts = recipe.basis, recipe.calibration, recipe.rounding, recipe.training
    quantize(teacher, images, recipe.quant_scheme(), *parts, on_phase)
    total = time.perf_counter() - start
    results = {
        "teacher": args.teacher,
        "bits": args.bits,
        "effort": args.effort,
        "images": len(images),
        "leaves": recipe.calibration.leaves,
        "threads": torch.get_num_threads(),
        "seconds": round(total, 1),
        "seconds_by_phase": {phase: round(seconds, 1) for phase, seconds in spent.items()},
        "peak_bytes": 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss,
    }
    save(f"quantize_time_{args.teacher}_{args.bits}", results, args.json)


def cut_leaves(teacher: Teacher, trajectories: int, v: int) -> SparseImages:
    """As `inversion.inverter` gives them: of each picture v images of disjoint patches that tile it."""
    generator, count = Generator().manual_seed(0), teacher.num_patches
    patches = patchify(dead_leaves(teacher.spec, trajectories, 0, first=FIRST), teacher.patch_size)
    size = count // v
    sizes = [*[size] * (v - 1), count - size * (v - 1)]
    longest, parts = max(sizes), []
    for _ in range(trajectories):
        parts += [F.pad(part, (0, longest - len(part)), value=-1)
                  for part in torch.randperm(count, generator=generator).split(sizes)]  # fmt: skip
    kept, trajectory = torch.stack(parts), torch.arange(trajectories).repeat_interleave(v)
    live = (kept >= 0).unsqueeze(-1)
    rows, columns = teacher.grid
    height, width = teacher.patch_size
    return SparseImages(
        patches=patches[trajectory.unsqueeze(1), kept.clamp(min=0)] * live,
        kept=kept.to(torch.int16),
        labels=torch.zeros(len(kept), dtype=torch.int32),
        stage=torch.arange(1, v + 1, dtype=torch.int8).repeat(trajectories),
        trajectory=trajectory.to(torch.int32),
        metadata={"grid": f"{rows}x{columns}", "patch_size": f"{height}x{width}", "teacher_sha256": teacher.sha256},
    )


if __name__ == "__main__":
    main()
