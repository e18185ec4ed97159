"""How faithful does each source of pictures make the quantized model? ONNX Runtime answers, real pictures judge.

    python benchmarks/fidelity.py --teacher deit_tiny --checkpoint FILE --val-data DIR --class-map FILE \
        --noise 24 --leaves 24 --images DMI --images SMI --images PRI --mixed --mosaics 24 --real 24 \
        --bits w8a8 --bits w4a8 --updates 64

A source makes ranges, GPTQ's Hessians and, with --updates, the training; everything else is the same, and a quarter of
it is held out to judge, as `pipeline build` does. Folders of shards come from `pipeline invert`: --mosaics cuts them to
equal counts, and each row tells what its inversion cost, so that folders of equal compute can be compared too. --mixed
adds, for each folder, a row with as many dead leaves beside it. Real pictures are the upper reference and the judge,
never the same ones, and make nothing that is kept.

Differences between two sources are paired by picture. A row of DeiT-Tiny and 24 mosaics without training, with 100
pictures to judge, takes two minutes on one core; a trained one sets ranges and rounds again.
SMI's images are seen sparse, as they tile no mosaic, and stand beside no leaves.
"""

from __future__ import annotations

import argparse
import itertools
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from image_quality import (
    Exam,
    add_json_argument,
    divergence,
    load_sets,
    noise,
    open_pictures,
    recipe,
    save,
    split,
    standard_error,
)
from recording import add_teacher_arguments
from rich.console import Console
from rich.table import Table
from torch import Tensor

from calib.quantization import quantize
from calib.scheme import QuantScheme
from calib.settings import AUTO, FISHER, RANGE_METHODS, Basis, Calibration, Rounding, Training
from export.edge.runtime import open_runtime
from export.graph import export_quantized
from export.qdq import qdq_module
from inversion.cost import Geometry, iteration_flops
from inversion.images import SparseImages
from inversion.job import Inversion
from inversion.leaves import dead_leaves
from inversion.schedule import schedule
from inversion.sparse import patchify
from inversion.teacher import Teacher, load_teacher
from pipeline.judge.answers import of_runtime
from pipeline.pictures.valdata import ValData
from pipeline.recipe.resolve import make_recipe


@dataclass(frozen=True)
class Source:
    """Images, how many dead leaves stand beside them, and what a row says of them."""

    name: str
    images: SparseImages
    leaves: int
    about: dict[str, Any]


@dataclass(frozen=True)
class PerPicture:
    """What the quantized model of one row said: the KL [M], nats, of each picture, and 1 where top-1 agrees, else 0."""

    divergence: Tensor
    agrees: Tensor


def main() -> None:
    args = arguments()
    teacher = load_teacher(args.teacher, args.checkpoint)
    judges, references = split(open_pictures(args, teacher.spec), args.limit, args.real)
    sources = list(find_sources(args, teacher, references))
    exam = Exam(teacher, judges)
    rows, seen = [], {}
    for bits, updates, source in itertools.product(args.bits, sorted({0, args.updates}), sources):
        row, seen[bits, updates, source.name] = measure(teacher, source, bits, updates, args, exam)
        print(line(row), flush=True)
        rows.append(row)
    results = {
        "teacher": {"name": teacher.name, "sha256": teacher.sha256},
        "pictures": len(exam.labels),
        "teacher_top1": rows[0]["real"]["teacher_top1"],
        "range_method": args.ranges,
        "rows": rows,
        "differences": differences(seen),
    }
    save(f"fidelity_{args.teacher}", results, args.json)
    for shown in (table(results), difference_table(results)):
        Console(width=150).print(shown)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_teacher_arguments(parser)
    parser.add_argument("--images", type=Path, action="append", default=[], help="folder of shards; may be repeated")
    parser.add_argument("--mosaics", type=int, help="of each folder only the first so many")
    parser.add_argument("--mixed", action="store_true", help="each folder again, with as many dead leaves")
    for option, what in (("noise", "of Gaussian noise"), ("leaves", "of dead leaves"), ("real", "that are real")):
        parser.add_argument(f"--{option}", type=int, default=0, metavar="N", help=f"a source: N pictures {what}")
    parser.add_argument("--bits", action="append", help="may be repeated; w8a8 and w4a8 where none is given")
    parser.add_argument("--updates", type=int, default=0, help="adds trained rows; 0: ranges and rounding alone")
    parser.add_argument("--ranges", default=FISHER, choices=(AUTO, *RANGE_METHODS))
    parser.add_argument("--limit", type=int, default=500, help="pictures that judge")
    parser.add_argument("--seed", type=int, default=0, help="of noise, leaves and training")
    add_json_argument(parser)
    args = parser.parse_args()
    args.bits = args.bits or ["w8a8", "w4a8"]
    for option, least in (("mosaics", 2), ("noise", 2), ("leaves", 2), ("real", 2), ("limit", 2), ("updates", 0)):
        value = getattr(args, option)
        if value is not None and value < least and value != parser.get_default(option):
            parser.error(f"--{option} must be at least {least}, not {value}")
    if not (args.images or args.noise or args.leaves or args.real):
        parser.error("nothing to compare: give --images, --noise, --leaves or --real")
    for bits in args.bits:
        QuantScheme.parse(bits)
    return args


def find_sources(args: argparse.Namespace, teacher: Teacher, references: ValData) -> Iterator[Source]:
    if args.noise:
        yield dense_source(f"noise {args.noise}", noise(teacher.spec, args.noise, args.seed), teacher)
    if args.leaves:
        yield dense_source(f"leaves {args.leaves}", dead_leaves(teacher.spec, args.leaves, args.seed), teacher)
    for name, images in load_sets(args.images, teacher, args.mosaics):
        mosaics = len(images.trajectory.unique())
        about = {"images": len(images), "mosaics": mosaics, **cost(teacher, images), "recipe": recipe(images)}
        yield Source(name, images, 0, about)
        if args.mixed and told_method(images) != "smi":
            yield Source(f"{name} + leaves {mosaics}", images, mosaics, about)
    if args.real:
        yield dense_source(f"real {args.real}", torch.cat([pictures for pictures, _ in references]), teacher)


def told_method(images: SparseImages) -> str | None:
    """Of folders of shards; dense sources were inverted by none."""
    return images.metadata.get("method")


def cost(teacher: Teacher, images: SparseImages) -> dict[str, float]:
    """What inverting `images` took: trajectories x iterations, and FLOPs (`inversion.cost`), without a CNN prior's."""
    told = images.metadata
    if not {"method", "iterations", "division_factor", "sparsity"} <= told.keys():
        return {}
    iterations, v, sparsity = (int(told[name]) for name in ("iterations", "division_factor", "sparsity"))
    method: Any = told["method"]
    prune_at: Any = tuple(map(int, told["prune_at"].split())) if "prune_at" in told else Inversion.prune_at
    job = Inversion(method, iterations=iterations, division_factor=v, sparsity=sparsity, prune_at=prune_at)
    stages = schedule(job, teacher.num_patches)
    shape, trajectories = Geometry.of(teacher.model), len(images.trajectory.unique())
    flops = sum(stage.iterations * iteration_flops(shape, stage.active, lean=True).total for stage in stages)
    return {"trajectory_iterations": iterations * trajectories, "inversion_tflop": flops * trajectories / 1e12}


def dense_source(name: str, pictures: Tensor, teacher: Teacher) -> Source:
    """Pictures [M, C, H, W] as images that hold all their patches, each a trajectory of its own."""
    patches, count = patchify(pictures, teacher.patch_size), len(pictures)
    sizes = {"grid": teacher.grid, "patch_size": teacher.patch_size}
    images = SparseImages(
        patches=patches,
        kept=torch.arange(patches.shape[1], dtype=torch.int16).expand(count, -1),
        labels=torch.zeros(count, dtype=torch.int32),
        stage=torch.ones(count, dtype=torch.int8),
        trajectory=torch.arange(count, dtype=torch.int32),
        metadata={key: "x".join(map(str, size)) for key, size in sizes.items()},
    )
    return Source(name, images, 0, {"images": count, "mosaics": count})


def measure(
    teacher: Teacher, source: Source, bits: str, updates: int, args: argparse.Namespace, exam: Exam
) -> tuple[dict[str, Any], PerPicture]:
    """One row: `source` quantizes the teacher, ONNX Runtime runs what comes out."""
    # SMI's images tile no mosaic: as mosaics, most of each would be grey
    views: Any = "mixed" if source.leaves else "sparse" if told_method(source.images) == "smi" else "mosaic"
    crops = views != "sparse"
    tuned = make_recipe({"teacher": teacher.name, "bits": bits}).training
    rate = tuned.learning_rate
    training = Training(updates=updates, views=views, crops=crops, learning_rate=rate, seed=args.seed)
    calibration = Calibration(method=args.ranges, views=views, leaves=source.leaves, seed=args.seed)
    parts = Basis(), calibration, Rounding(views=views), training
    found = quantize(teacher, source.images, QuantScheme.parse(bits), *parts)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        export_quantized(qdq_module(teacher.model, found.weights), teacher.spec, path, {})
        with open_runtime(path) as runtime:
            answers = exam.answers(of_runtime(runtime, teacher.spec))
    real, kl = answers.comparisons()["model"].to_dict(), divergence(answers)
    row = {"source": source.name, "leaves": source.leaves, **source.about, "bits": bits, "updates": updates}
    row["best_update"] = found.training.best_update
    row["held_out_kl"] = [(done, fidelity.kl) for done, fidelity in found.training.history]
    row |= {"real": real, "standard_error_of_kl": standard_error(kl)}
    agrees = answers.models["model"].argmax(1) == answers.teacher.argmax(1)
    return row, PerPicture(kl, torch.from_numpy(agrees).double())


def differences(seen: dict[tuple[str, int, str], PerPicture]) -> list[dict[str, Any]]:
    """KL and agreement of one source less those of another, at the same bits and updates, paired by picture."""
    rows = []
    for (one, first), (other, second) in itertools.combinations(seen.items(), 2):
        if one[:2] != other[:2]:
            continue
        row: dict[str, Any] = {"bits": one[0], "updates": one[1], "sources": [one[2], other[2]]}
        for name, values in (
            ("kl", first.divergence - second.divergence),
            ("agreement", first.agrees - second.agrees),
        ):
            row |= {name: float(values.mean()), f"standard_error_of_{name}": standard_error(values)}
        rows.append(row)
    return rows


def line(row: dict[str, Any]) -> str:
    real = row["real"]
    return (
        f"{row['bits']} {row['source']}, {row['updates']} updates: KL {real['kl']:.4f}, "
        f"agreement {100 * real['agreement']:.1f}%, top-1 {100 * real['top1']:.1f}%"
    )


def table(results: dict[str, Any]) -> Table:
    title = f"{results['pictures']} real pictures, teacher's top-1 {100 * results['teacher_top1']:.1f}%"
    shown = Table(
        "bits", "updates", "source", "images", "mosaics", "trajectory\niterations", "inversion,\nTFLOP", "top-1, %",
        "drop,\npoints", "agreement, %", "KL ± standard error", title=title,
    )  # fmt: skip
    for row in results["rows"]:
        real = row["real"]
        low, high = (100 * bound for bound in real["agreement_interval"])
        shown.add_row(
            row["bits"], str(row["updates"]), row["source"], str(row["images"]), str(row["mosaics"]),
            str(row.get("trajectory_iterations", "")),
            f"{row['inversion_tflop']:.3g}" if "inversion_tflop" in row else "",
            f"{100 * real['top1']:.1f}", f"{100 * real['top1_drop']:.1f}",
            f"{100 * real['agreement']:.1f} ({low:.1f} to {high:.1f})",
            f"{real['kl']:.4f} ± {row['standard_error_of_kl']:.4f}",
        )  # fmt: skip
    return shown


def difference_table(results: dict[str, Any]) -> Table:
    """Every source less the last one, which is the real pictures where there are some; the record has all pairs."""
    shown = Table("bits", "updates", "source", "less", "KL", "agreement, points", title="Paired, ± standard error")
    last = results["rows"][-1]["source"]
    for row in results["differences"]:
        if row["sources"][1] != last:
            continue
        shown.add_row(
            row["bits"], str(row["updates"]), *row["sources"],
            f"{row['kl']:+.4f} ± {row['standard_error_of_kl']:.4f}",
            f"{100 * row['agreement']:+.1f} ± {100 * row['standard_error_of_agreement']:.1f}",
        )  # fmt: skip
    return shown


if __name__ == "__main__":
    main()
