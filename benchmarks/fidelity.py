"""How faithful does each source of pictures make the quantized model? ONNX Runtime answers, real pictures judge.

    python benchmarks/fidelity.py --teacher deit_tiny --checkpoint FILE --val-data DIR --class-map FILE \
        --noise 24 --leaves 24 --images DMI --images SMI --images PRI --mixed --mosaics 24 --real 24 \
        --bits w8a8 --bits w4a8 --updates 64

A source makes ranges, GPTQ's Hessians and, with --updates, the training; everything else is the same. Folders of shards
come from `pipeline invert`; --mosaics cuts them to equal counts, and each row tells what its inversion cost, so folders
of equal compute can be compared too. --mixed adds, for each folder, a row with as many dead leaves beside it. Real
pictures are the upper reference and the judge, never the same ones, and make nothing that is kept.

Differences between two sources are paired by picture. Four minutes a row without training on two cores.
"""

from __future__ import annotations

import argparse
import itertools
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from image_quality import noise, open_pictures, recipe, split
from ranges import divergences, standard_error
from recording import RECORDS, add_teacher_arguments, write_record
from rich.console import Console
from rich.table import Table
from torch import Tensor

from calib.quantize import quantize
from calib.scheme import QuantScheme
from calib.settings import Calibration, Rounding, Training
from export.compare import compare
from export.graph import export_quantized
from export.qdq import qdq_module
from export.runtime import open_runtime
from inversion.cost import Geometry, mean_iteration_flops
from inversion.errors import InputError
from inversion.images import SparseImages, load_images
from inversion.invert import plan
from inversion.leaves import dead_leaves
from inversion.sparse import patchify
from inversion.teacher import Teacher, load_teacher
from pipeline.recipe import make_recipe
from pipeline.valdata import ValData


@dataclass(frozen=True)
class Source:
    """Images, how many dead leaves stand beside them, and what a row says of them."""

    name: str
    images: SparseImages
    leaves: int
    about: dict[str, Any]


@dataclass(frozen=True)
class Exam:
    """The judging pictures: batches of them, labels [M], the teacher's logits [M, num_classes]."""

    batches: list[np.ndarray]
    labels: np.ndarray
    teacher_logits: np.ndarray


def main() -> None:
    args = arguments()
    teacher = load_teacher(args.teacher, args.checkpoint)
    judges, references = split(open_pictures(args, teacher.spec), args.limit, args.real)
    sources = list(find_sources(args, teacher, references))
    exam = take_exam(teacher, judges)
    rows, seen = [], {}
    for bits, source, updates in itertools.product(args.bits, sources, sorted({0, args.updates})):
        row, answers = measure(teacher, source, bits, updates, args, exam)
        rows.append(row)
        seen[bits, updates, source.name] = answers
        print(line(row), flush=True)
    results = {
        "teacher": {"name": teacher.name, "sha256": teacher.sha256},
        "pictures": len(exam.labels),
        "teacher_top1": float((exam.teacher_logits.argmax(1) == exam.labels).mean()),
        "range_method": args.ranges,
        "rows": rows,
        "differences": differences(seen, exam),
    }
    Console().print(table(results))
    name = f"fidelity_{args.teacher}"
    if args.json is None:
        write_record(name, results)
    else:
        write_record(name, results, args.json.parent).replace(args.json)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_teacher_arguments(parser)
    parser.add_argument("--images", type=Path, action="append", default=[], help="folder of shards; may be repeated")
    parser.add_argument("--mosaics", type=int, help="of each folder only the first so many")
    parser.add_argument("--mixed", action="store_true", help="each folder again, with as many dead leaves")
    for option in ("noise", "leaves", "real"):
        parser.add_argument(f"--{option}", type=int, default=0, metavar="N")
    parser.add_argument("--bits", action="append", help="w8a8 and w4a8 by default; may be repeated")
    parser.add_argument("--updates", type=int, default=0, help="of training; 0: ranges and rounding alone")
    parser.add_argument("--ranges", default="kl", help="range method")
    parser.add_argument("--limit", type=int, default=500, help="pictures that judge")
    parser.add_argument("--seed", type=int, default=0, help="of noise and leaves")
    parser.add_argument("--json", type=Path, metavar="OUT", help=f"the record, else a dated one in {RECORDS.name}/")
    args = parser.parse_args()
    args.bits = args.bits or ["w8a8", "w4a8"]
    return args


def find_sources(args: argparse.Namespace, teacher: Teacher, references: ValData) -> Iterator[Source]:
    spec = teacher.spec
    if args.noise:
        yield dense_source(f"noise {args.noise}", noise(spec, args.noise, args.seed), teacher)
    if args.leaves:
        yield dense_source(f"leaves {args.leaves}", dead_leaves(spec, args.leaves, args.seed), teacher)
    for folder in args.images:
        images = load_images(folder)
        if images.metadata.get("teacher_sha256") != teacher.sha256:
            raise InputError(f"{str(folder)!r} was made from another teacher than {teacher.name!r}: give its own.")
        images = images[torch.isin(images.trajectory, images.trajectory.unique()[: args.mosaics])]
        mosaics = len(images.trajectory.unique())
        about = {"images": len(images), "mosaics": mosaics, "recipe": recipe(images)}
        about["inversion_tflop"] = inversion_flops(teacher, images) / 1e12
        yield Source(folder.name, images, 0, about)
        if args.mixed and images.metadata["method"] != "smi":
            yield Source(f"{folder.name} + leaves {mosaics}", images, mosaics, about)
    if args.real:
        yield dense_source(f"real {args.real}", torch.cat([pictures for pictures, _ in references]), teacher)


def inversion_flops(teacher: Teacher, images: SparseImages) -> float:
    """FLOPs that inverting `images` took, from what their shards tell."""
    said = images.metadata
    settings = {key: said[key] for key in ("method", "division_factor", "sparsity", "iterations") if key in said}
    bits = {"teacher": teacher.name, "bits": "w8a8"}
    job = make_recipe(bits, None, [f"inversion.{key}={value}" for key, value in settings.items()]).inversion
    each = mean_iteration_flops(Geometry.of(teacher.model), plan(teacher, job), lean=True)
    return each * job.iterations * len(images.trajectory.unique())


def dense_source(name: str, pictures: Tensor, teacher: Teacher) -> Source:
    """Pictures [M, C, H, W] as images that hold all their patches."""
    patches, count = patchify(pictures, teacher.patch_size), len(pictures)
    rows, columns = teacher.grid
    height, width = teacher.patch_size
    images = SparseImages(
        patches=patches,
        kept=torch.arange(patches.shape[1], dtype=torch.int16).expand(count, -1),
        labels=torch.zeros(count, dtype=torch.int32),
        stage=torch.ones(count, dtype=torch.int8),
        trajectory=torch.arange(count, dtype=torch.int32),
        metadata={"grid": f"{rows}x{columns}", "patch_size": f"{height}x{width}", "teacher_sha256": teacher.sha256},
    )
    return Source(name, images, 0, {"images": count, "mosaics": count})


@torch.inference_mode()
def take_exam(teacher: Teacher, judges: ValData) -> Exam:
    pictures, labels = zip(*judges, strict=True)
    logits = torch.cat([teacher.model(batch) for batch in pictures])
    return Exam([batch.numpy() for batch in pictures], torch.cat(labels).numpy(), logits.numpy())


def measure(
    teacher: Teacher, source: Source, bits: str, updates: int, args: argparse.Namespace, exam: Exam
) -> tuple[dict[str, Any], np.ndarray]:
    """One row, and ONNX Runtime's logits [M, num_classes]."""
    # SMI's images tile no mosaic
    views = "mixed" if source.leaves else "sparse" if source.images.metadata.get("method") == "smi" else "mosaic"
    tuned = make_recipe({"teacher": teacher.name, "bits": bits, "effort": "quick"}).training
    training = Training(updates=updates, views=views, crops=views != "sparse", learning_rate=tuned.learning_rate)
    calibration = Calibration(method=args.ranges, views=views, leaves=source.leaves)
    found = quantize(teacher, source.images, QuantScheme.parse(bits), calibration, Rounding(views=views), training)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        export_quantized(qdq_module(teacher.model, found.weights), teacher.spec, path, {})
        with open_runtime(path) as runtime:
            ours = np.concatenate([runtime.run({"input": batch})["logits"] for batch in exam.batches])
    outcome = found.training
    row = {"source": source.name, "leaves": source.leaves, **source.about, "bits": bits, "updates": updates}
    row |= {"best_update": outcome.best_update, "held_out_kl": [(done, each.kl) for done, each in outcome.history]}
    row |= {"real": compare(exam.teacher_logits, ours, exam.labels).to_dict()}
    row["standard_error_of_kl"] = standard_error(divergences(exam.teacher_logits, ours))
    return row, ours


def differences(seen: dict[tuple[str, int, str], np.ndarray], exam: Exam) -> list[dict[str, Any]]:
    """KL and agreement of one source less those of another, at the same bits and updates, paired by picture."""
    rows = []
    for (one, first), (other, second) in itertools.combinations(seen.items(), 2):
        if one[:2] != other[:2]:
            continue
        kl = divergences(exam.teacher_logits, first) - divergences(exam.teacher_logits, second)
        agree = torch.from_numpy(agrees(exam, first) - agrees(exam, second))
        rows.append(
            {
                "bits": one[0],
                "updates": one[1],
                "sources": [one[2], other[2]],
                "kl": float(kl.mean()),
                "standard_error_of_kl": standard_error(kl),
                "agreement": float(agree.mean()),
                "standard_error_of_agreement": standard_error(agree),
            }
        )
    return rows


def agrees(exam: Exam, logits: np.ndarray) -> np.ndarray:
    """1 where the top-1 answer is the teacher's, else 0: [M]."""
    equal: np.ndarray = logits.argmax(1) == exam.teacher_logits.argmax(1)
    return equal.astype(np.float64)


def line(row: dict[str, Any]) -> str:
    real = row["real"]
    return (
        f"{row['bits']} {row['source']}, {row['updates']} updates: KL {real['kl']:.4f}, "
        f"agreement {100 * real['agreement']:.1f}%, top-1 {100 * real['top1']:.1f}%"
    )


def table(results: dict[str, Any]) -> Table:
    teacher = 100 * results["teacher_top1"]
    shown = Table("bits", "source", "updates", "top-1", "drop", "agreement [95%]", "KL", "inversion, TFLOP")
    for row in results["rows"]:
        real = row["real"]
        low, high = (100 * bound for bound in real["agreement_interval"])
        shown.add_row(
            row["bits"], row["source"], str(row["updates"]), f"{100 * real['top1']:.1f}",
            f"{teacher - 100 * real['top1']:.1f}", f"{100 * real['agreement']:.1f} [{low:.1f}, {high:.1f}]",
            f"{real['kl']:.4f} ± {row['standard_error_of_kl']:.4f}",
            f"{row['inversion_tflop']:.0f}" if "inversion_tflop" in row else "",
        )  # fmt: skip
    return shown


if __name__ == "__main__":
    main()
