"""How good is a set of synthetic images? GPTQ rounds the teacher's weights to 4 bits on it, and real pictures judge.

    python benchmarks/image_quality.py --teacher deit_tiny --checkpoint FILE --images A --images B \
        --noise 24 --real 24 --val-data DIR --class-map FILE

GPTQ believes the second moments that the images give each layer's inputs, so the rounded model's KL to the teacher says
how near these are to real ones. `--noise` and `--real` are the ends of the scale; "no images" is every weight rounded
to nearest. Real pictures judge, or are that reference: they make nothing that is kept.

Rounding is chaotic: 2% more damping moves DeiT-Tiny's KL by some 5%, as much as two recipes of images may differ.
So each set is rounded `--draws` times, with dampings 2% apart, and a difference has two standard errors: of the
pictures (the same ones judge all sets) and of the draws. A draw of DeiT-Tiny, 24 mosaics, takes 25 s on one core.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import math
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from recording import RECORDS, add_teacher_arguments, write_record
from timm.models.vision_transformer import VisionTransformer
from torch import Generator, Tensor
from torch.nn import functional as F

from calib.gptq import DAMPING, block_linears, round_model
from calib.ranges import calibrate, insert_quantizers
from calib.scheme import FLOAT_BITS, QuantScheme, integer_range
from calib.settings import Calibration
from calib.views import Views, dense_views, make_views
from export.edge.compare import wilson_interval
from inversion.confidence import confidence_by_stage, target_confidence
from inversion.errors import InputError
from inversion.images import SparseImages, load_images
from inversion.leaves import dead_leaves
from inversion.teacher import DIGITS_VIT, InputSpec, Teacher, load_teacher
from pipeline.judge.answers import Answers, Judge, Model, Pictures
from pipeline.pictures.valdata import ValData, digits_held_out, open_val_data

JITTER = 1.02
"""From one draw's damping to the next: changes every rounding, and nothing that matters."""
GEOMETRY = ("format", "grid", "patch_size", "channels", "mean", "std", "shard", "trajectories", "teacher_sha256")
"""Metadata of a shard that says nothing about how its images were made."""
NO_IMAGES = "no images"


@dataclass(frozen=True)
class ImageSet:
    """What GPTQ is to see (None: nothing, every weight is rounded to nearest), and what a row says of it."""

    name: str
    views: Views | None
    about: dict[str, Any]


class Exam:
    """Real pictures in memory, and the judge of models on them, whose teacher answers once."""

    def __init__(self, teacher: Teacher, val_data: ValData) -> None:
        batches = list(val_data)
        self.labels = torch.cat([labels for _, labels in batches])
        self._judge = Judge(teacher.logits, Pictures("real", len(self.labels), lambda: batches, labelled=True))

    def judge(self, model: Model) -> tuple[dict[str, Any], Tensor]:
        """The comparison of `model` with the teacher, and the KL of each picture [M], nats."""
        found = self.answers(model)
        return found.comparisons()["model"].to_dict(), divergence(found)

    def answers(self, model: Model) -> Answers:
        return self._judge.answers({"model": model})


def divergence(found: Answers) -> Tensor:
    """KL of each picture [M], nats, of the exam's one model."""
    q, p = (torch.from_numpy(logits).double().log_softmax(-1) for logits in (found.models["model"], found.teacher))
    return F.kl_div(q, p, reduction="none", log_target=True).sum(1)


def main() -> None:
    args = arguments()
    teacher = load_teacher(args.teacher, args.checkpoint)
    judges, references = split(open_pictures(args, teacher.spec), args.limit, args.real)
    sets = [ImageSet(NO_IMAGES, None, {}), *image_sets(args.images, teacher, args.mosaics)]
    if args.noise:
        sets.append(dense_set(f"--noise {args.noise}", noise(teacher.spec, args.noise, args.seed), teacher))
    if args.leaves:
        sets.append(dense_set(f"--leaves {args.leaves}", dead_leaves(teacher.spec, args.leaves, args.seed), teacher))
    if references:
        sets.append(dense_set(f"--real {args.real}", torch.cat([pictures for pictures, _ in references]), teacher))
    exam = Exam(teacher, judges)
    scheme = QuantScheme(args.bits, args.activations)
    student = insert_quantizers(teacher.model, scheme)
    dampings = [args.damping * JITTER**draw for draw in range(args.draws)]
    rows, divergences = [], {}
    for images in sets:
        row, divergences[images.name] = measure(teacher, student, scheme, images, exam, dampings)
        print(line(row), flush=True)
        rows.append(row)
    results = {
        "teacher": {"name": teacher.name, "sha256": teacher.sha256},
        "weight_bits": scheme.weight_bits,
        "activation_bits": scheme.activation_bits,
        "dampings": dampings,
        "pictures": len(judges),
        "teacher_top1": rows[0]["draws"][0]["teacher_top1"],
        "rows": rows,
        "differences": differences(divergences),
    }
    save(f"image_quality_{args.teacher}", results, args.json)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_teacher_arguments(parser)
    parser.add_argument("--images", type=Path, action="append", default=[], help="folder of shards; may be repeated")
    parser.add_argument("--mosaics", type=int, help="of each folder only the first so many, to compare equal counts")
    parser.add_argument("--noise", type=int, default=0, metavar="N", help="a reference: N pictures of Gaussian noise")
    parser.add_argument("--leaves", type=int, default=0, metavar="N", help="N dead-leaves pictures")
    parser.add_argument(
        "--real", type=int, default=0, metavar="N", help="a reference: N real pictures, which judge nothing"
    )
    parser.add_argument(
        "--limit", type=int, default=500, help="pictures that judge; 0.6 MB of memory each at 224 pixels"
    )
    parser.add_argument("--bits", type=int, default=4, help="of the attention and MLP weights")
    parser.add_argument(
        "--activations", type=int, default=FLOAT_BITS, help="8: judge also with max ranges of that many bits"
    )
    parser.add_argument("--draws", type=int, default=2)
    parser.add_argument("--damping", type=float, default=DAMPING, help="share of the Hessian's mean diagonal")
    parser.add_argument("--seed", type=int, default=0, help="of noise and leaves")
    add_json_argument(parser)
    args = parser.parse_args()
    for option, least in (("mosaics", 1), ("noise", 0), ("leaves", 0), ("real", 0), ("limit", 2), ("draws", 1)):
        value = getattr(args, option)
        if value is not None and value < least:
            parser.error(f"--{option} must be at least {least}, not {value}")
    return args


def add_json_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--json", type=Path, metavar="OUT", help=f"the record's file, else a dated one in {RECORDS.name}/"
    )


def save(name: str, results: dict[str, Any], path: Path | None) -> None:
    """A record at `path`, or among the others where that is None."""
    if path is None:
        write_record(name, results)
    else:
        write_record(name, results, path.parent).replace(path)


def open_pictures(args: argparse.Namespace, spec: InputSpec) -> ValData:
    if args.teacher == DIGITS_VIT and args.val_data is None:
        return digits_held_out(spec)
    if args.val_data is None:
        raise InputError(f"real pictures must judge the images of {args.teacher!r}: give --val-data.")
    return open_val_data(args.val_data, spec, args.class_map)


def split(data: ValData, limit: int, real: int) -> tuple[ValData, ValData]:
    """At most `limit` pictures that judge, and `real` others; drawn, since a folder's first are of a few classes.

    The judges of one `limit` stay the same whatever `real` is, as long as there are pictures enough.
    """
    if real > len(data) - 2:
        raise InputError(f"--real {real} of {len(data)} pictures leaves none to judge: take fewer.")
    order = torch.randperm(len(data), generator=Generator().manual_seed(0)).tolist()
    return some(data, order[: len(data) - real][:limit]), some(data, order[len(data) - real :])


def some(data: ValData, rows: list[int]) -> ValData:
    """The pictures of `rows`, in the data's own order."""
    chosen = set(rows)
    return ValData(
        len(rows), lambda: (each for row, each in enumerate(data.pictures()) if row in chosen), data.transform
    )


def image_sets(folders: list[Path], teacher: Teacher, most: int | None) -> Iterator[ImageSet]:
    """The first `most` mosaics of every folder."""
    for name, images in load_sets(folders, teacher, most):
        views = make_views(images, "mosaic", teacher.device)
        about = {"images": len(images), "mosaics": len(views), "recipe": recipe(images)}
        about["confidence_by_stage"] = confidence_by_stage(target_confidence(teacher, images), images)
        yield ImageSet(name, views, about)


def load_sets(folders: list[Path], teacher: Teacher, most: int | None) -> Iterator[tuple[str, SparseImages]]:
    """The images of every folder's first `most` trajectories, named by as little of the path as tells them apart."""
    if len({folder.resolve() for folder in folders}) < len(folders):
        raise InputError("--images names a folder twice: give each once.")
    common = os.path.commonpath([folder.resolve().parent for folder in folders]) if folders else ""
    for folder in folders:
        images = load_images(folder)
        if images.metadata.get("teacher_sha256") != teacher.sha256:
            raise InputError(f"{str(folder)!r} was made from another teacher than {teacher.name!r}: give its own.")
        chosen = torch.isin(images.trajectory, images.trajectory.unique()[:most])
        yield os.path.relpath(folder.resolve(), common), images[chosen]


def recipe(images: SparseImages) -> dict[str, str]:
    """How a set was made; of a file, only its name."""
    return {
        key: Path(value).name if os.sep in value else value
        for key, value in images.metadata.items()
        if key not in GEOMETRY
    }


def noise(spec: InputSpec, count: int, seed: int) -> Tensor:
    """Standard normal pixels in normalised space, clipped to what a real picture can hold: [count, C, H, W]."""
    black, white = (bound.view(-1, 1, 1) for bound in spec.pixel_bounds())
    pixels = torch.randn(count, spec.channels, *spec.size, generator=Generator().manual_seed(seed))
    return pixels.clamp(black, white)


def dense_set(name: str, pictures: Tensor, teacher: Teacher) -> ImageSet:
    """Pictures [M, C, H, W] with all their patches."""
    return ImageSet(name, dense_views(pictures, teacher.patch_size), {"images": len(pictures)})


def measure(
    teacher: Teacher,
    student: VisionTransformer,
    scheme: QuantScheme,
    images: ImageSet,
    exam: Exam,
    dampings: list[float],
) -> tuple[dict[str, Any], Tensor]:
    """One row, and the KL of every picture in every draw [draws, M], a draw a damping; `student` stays as it is.

    All figures are of rounded weights and float activations, but for those `with_quantized_activations`, which are of
    the first draw with max ranges.
    """
    start, bits = time.perf_counter(), scheme.weight_bits
    _, high = integer_range(bits)
    scales = {name: layer.weight_quantizer.amax.flatten() / high for name, layer in block_linears(student).items()}
    found, divergences, row = [], [], {"set": images.name, **images.about}
    for damping in dampings if images.views else dampings[:1]:
        model = copy.deepcopy(student)
        if images.views:
            round_model(model, images.views, scales, dict.fromkeys(scales, bits), damping)
        compared, divergence = exam.judge(model)
        found.append(compared)
        divergences.append(divergence)
        if images.views and scheme.activation_bits < FLOAT_BITS and damping == dampings[0]:
            calibrate(model, teacher.model, images.views, images.views.first(1), Calibration(method="max"))
            row["with_quantized_activations"], _ = exam.judge(model)
    row |= {key: sum(each[key] for each in found) / len(found) for key in ("kl", "agreement", "top1")}
    row["agreement_interval"] = wilson_interval(round(row["agreement"] * len(exam.labels)), len(exam.labels))
    row |= {"seconds": round(time.perf_counter() - start, 1), "draws": found}
    return row, torch.stack(divergences)


def standard_error(values: Tensor) -> float:
    """Of the mean of `values` [M]."""
    return float(values.std()) / math.sqrt(len(values))


def line(row: dict[str, Any]) -> str:
    low, high = (100 * bound for bound in row["agreement_interval"])
    parts = [
        f"{row['set']}: KL {row['kl']:.4f} (" + ", ".join(f"{each['kl']:.4f}" for each in row["draws"]) + ")",
        f"agreement {100 * row['agreement']:.1f}% ({low:.1f} to {high:.1f})",
        f"top-1 {100 * row['top1']:.1f}%",
    ]
    if "with_quantized_activations" in row:
        parts.append(f"with quantized activations KL {row['with_quantized_activations']['kl']:.4f}")
    return ", ".join([*parts, f"{row['seconds']} s"])


def differences(divergences: dict[str, Tensor]) -> list[dict[str, Any]]:
    """Mean KL of one set less that of another, for every pair, with its standard errors.

    That of the pictures is paired: each picture's KL is the mean over draws. That of the draws takes one variance for
    all sets, since two or three draws tell little about their own; None where there is one draw.
    """
    drawn = [each.mean(1) for each in divergences.values() if len(each) > 1]
    variance = sum(float(means.var()) for means in drawn) / len(drawn) if drawn else None
    rows = []
    for (one, first), (other, second) in itertools.combinations(divergences.items(), 2):
        difference = first.mean(0) - second.mean(0)
        of_pictures = standard_error(difference)
        of_draws = None
        if variance is not None:
            of_draws = math.sqrt(variance * sum(1 / len(each) for each in (first, second) if len(each) > 1))
        rows.append(
            {
                "sets": [one, other],
                "kl_difference": float(difference.mean()),
                "standard_error_of_pictures": of_pictures,
                "standard_error_of_draws": of_draws,
            }
        )
        both = math.hypot(of_pictures, of_draws or 0)
        print(f"{one} - {other}: KL {float(difference.mean()):+.4f}, standard error {both:.4f}", flush=True)
    return rows


if __name__ == "__main__":
    main()
