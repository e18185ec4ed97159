"""Does a run's model agree with its teacher on any pictures at all, without labels?

python benchmarks/other_pictures.py RUN [RUN ...] --pictures FOLDER --teacher deit_tiny --checkpoint tiny.safetensors

Random crops of each picture (30 to 100% of its area) go to the teacher in torch and to each run's model.onnx in ONNX
Runtime. Crops of one picture are alike, so intervals come from drawing whole pictures again (bootstrap).
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from recording import add_teacher_arguments, write_record
from torch import Tensor
from torchvision.transforms import v2

from export.edge.compare import compare
from export.edge.runtime import open_runtime
from inversion.teacher import Teacher, load_teacher
from pipeline.judge.answers import Judge, Pictures, of_runtime
from pipeline.pictures.preprocess import colour_mode, transform
from pipeline.record.manifest import load_manifest

DRAWS = 2000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_teacher_arguments(parser)
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--pictures", type=Path, required=True)
    parser.add_argument("--crops", type=int, default=10)
    parser.add_argument("--name", default="other_pictures")
    args = parser.parse_args()
    teacher = load_teacher(args.teacher, args.checkpoint)
    paths = sorted(path for path in args.pictures.iterdir() if path.suffix.lower() in (".jpg", ".jpeg", ".png"))
    images = torch.cat([crops(path, teacher, args.crops, number) for number, path in enumerate(paths)])
    judge = Judge(teacher.logits, Pictures.of("crops", images, args.crops))
    found = {run.name: judged(run, teacher, judge, args.crops) for run in args.runs}
    sure = torch.from_numpy(judge.answers({}).teacher).softmax(1).amax(1)
    write_record(
        args.name,
        {
            "pictures": len(paths),
            "crops": args.crops,
            "teacher_confidence": round(float(sure.mean()), 4),
            "runs": found,
        },
    )


def crops(path: Path, teacher: Teacher, count: int, seed: int) -> Tensor:
    """`count` random crops [count, C, H, W] of one picture, as the teacher sees them."""
    torch.manual_seed(seed)
    cut = v2.RandomResizedCrop(teacher.spec.size, scale=(0.3, 1.0), antialias=True)
    see = transform(teacher.spec)
    with Image.open(path) as picture:
        whole = picture.convert(colour_mode(teacher.spec))
    return torch.stack([see(cut(whole)) for _ in range(count)])


def judged(run: Path, teacher: Teacher, judge: Judge, crops_each: int) -> dict[str, Any]:
    """Agreement and KL of the run's model, with intervals over pictures."""
    with open_runtime(run / "model.onnx") as runtime:
        answers = judge.answers({"model": of_runtime(runtime, teacher.spec)})
    theirs, ours = answers.teacher, answers.models["model"]
    groups = np.arange(len(theirs)).reshape(-1, crops_each)
    by_picture = [compare(theirs[rows], ours[rows]) for rows in groups]
    lot = np.random.default_rng(0).integers(len(groups), size=(DRAWS, len(groups)))
    about: dict[str, Any] = {"bits": load_manifest(run).bits}
    for measure in ("agreement", "kl"):
        values = np.array([getattr(found, measure) for found in by_picture])
        low, high = np.quantile(values[lot].mean(1), (0.025, 0.975))
        about[measure] = {
            "mean": round(float(values.mean()), 5),
            "interval": [round(float(low), 5), round(float(high), 5)],
        }
    return about


if __name__ == "__main__":
    main()
