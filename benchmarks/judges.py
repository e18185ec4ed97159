"""Which pictures can tell whether training helps on real ones? Training runs, judged at every check by all of them.

    python benchmarks/judges.py --teacher deit_tiny --checkpoint FILE --images RUN/images --bits w4a8 \
        --run mixed --run mixed,small --run leaves --run mosaic,3e-6 --val-data DIR --class-map FILE

Each run starts from the same rounded model. It is a kind of views that training sees, and optionally what it trains
(`all` weights, or `small`: norms, biases, tokens and steps alone) and Adam's rate for weights. No judge's picture is
trained on. Real pictures judge the judges, and choose nothing. A minute of two cores for 40 updates of DeiT-Tiny.
"""

from __future__ import annotations

import argparse
import copy
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from image_quality import Exam, add_json_argument, noise, open_pictures, save, split
from recording import add_teacher_arguments
from timm.models.vision_transformer import VisionTransformer
from torch import Generator, Tensor

from calib.fidelity import fidelity
from calib.layers import quantized_layers
from calib.qat import Trainer
from calib.quantization import change_basis, material, quantizable, round_weights, set_ranges
from calib.settings import VIEWS, Training
from calib.views import Views, dense_views, make_views, split_held_out
from inversion.drawing import pink_noise
from inversion.errors import InputError
from inversion.images import load_images
from inversion.leaves import TorchDice, dead_leaves
from inversion.teacher import InputSpec, Teacher, load_teacher
from pipeline.recipe.resolve import make_recipe

PARTS = ("all", "small")
FIRST_UNSEEN = 100_000
"""Number of the first dead leaf that judges: no build trains on so many."""


@dataclass(frozen=True)
class Run:
    """What one training sees and moves."""

    views: Any
    parts: str
    rate: float

    @classmethod
    def parse(cls, text: str, rate: float) -> Run:
        views, *others = [part.strip() for part in text.split(",")]
        parts = next((part for part in others if part in PARTS), "all")
        try:
            rates = [float(part) for part in others if part not in PARTS]
        except ValueError:
            raise InputError(f"--run {text!r} is not understood: write mixed, mixed,small or leaves,3e-6.") from None
        if views not in VIEWS:
            raise InputError(f"--run {text!r} names no views: begin with one of {', '.join(VIEWS)}.")
        return cls(views, parts, rates[0] if rates else rate)

    def __str__(self) -> str:
        return f"{self.views},{self.parts},{self.rate:g}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_teacher_arguments(parser)
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("--bits", default="w4a8")
    parser.add_argument("--effort", default="quick")
    parser.add_argument("--run", action="append", required=True, metavar="VIEWS[,all|small][,RATE]")
    parser.add_argument("--updates", type=int, default=60)
    parser.add_argument("--every", type=int, default=15, help="updates between two checks")
    parser.add_argument("--pictures", type=int, default=48, help="of each judge that is drawn")
    parser.add_argument("--limit", type=int, default=500, help="real pictures")
    add_json_argument(parser)
    args = parser.parse_args()
    recipe = make_recipe({"teacher": args.teacher, "bits": args.bits, "effort": args.effort})
    runs = [Run.parse(text, recipe.training.learning_rate) for text in args.run]
    teacher, images = load_teacher(args.teacher, args.checkpoint), load_images(args.images)
    exam = Exam(teacher, split(open_pictures(args, teacher.spec), args.limit, 0)[0])
    show, held_out = material(teacher, images, recipe.calibration)
    scheme = recipe.quant_scheme()
    model, *_ = change_basis(teacher.model, scheme, recipe.basis)
    start = quantizable(model, scheme, show(recipe.calibration.views))
    set_ranges(start, model, show(recipe.calibration.views), held_out, recipe.calibration)
    round_weights(start, model, scheme, show(recipe.rounding.views), recipe.rounding)
    judges = judging(teacher, make_views(split_held_out(images, recipe.calibration.held_out)[1], "mosaic",
                                         teacher.device), args.pictures)  # fmt: skip
    answers = {name: views.logits(model) for name, views in judges.items()}

    def judged(student: VisionTransformer) -> dict[str, float]:
        found = {name: fidelity(student, views, answers[name]).kl for name, views in judges.items()}
        real, _ = exam.judge(student)
        return found | {"real": real["kl"], "real_agreement": real["agreement"]}

    rows = [{"run": "start", "update": 0, **judged(start)}]
    for run in runs:
        settings = Training(updates=args.updates, checks=1, patience=args.updates, views=run.views,
                            crops=run.views != "sparse", learning_rate=run.rate)  # fmt: skip
        trainer = Trainer(copy.deepcopy(start), model, show(run.views), held_out, settings)
        if run.parts == "small":
            for layer in quantized_layers(trainer.student).values():
                layer.weight.requires_grad_(False)
        trainer.best.check(trainer.student, None, 0)
        while trainer.goes_on():
            trainer.update()
            if trainer.done % args.every == 0:
                rows.append({"run": str(run), "update": trainer.done, **judged(trainer.student)})
                print(rows[-1], flush=True)
    results = {"bits": args.bits, "images": len(images), "pictures": len(exam.labels), "rows": rows}
    results["judges"] = {name: standing(rows, name) for name in judges}
    for name, found in results["judges"].items():
        print(name, found)
    save(f"judges_{args.teacher}_{args.bits}", results, args.json)


def judging(teacher: Teacher, mosaics: Views, count: int) -> dict[str, Views]:
    """Families of pictures, by name; none is trained on."""
    spec = teacher.spec
    drawn = {
        "leaves": dead_leaves(spec, count, 0, first=FIRST_UNSEEN),
        "white noise": noise(spec, count, 1),
        "1/f noise": torch.stack([picture(spec, seed) for seed in range(count)]),
        "waves": torch.stack([waves(spec, seed) for seed in range(count)]),
    }
    return {"mosaics": mosaics} | {name: dense_views(each, teacher.patch_size) for name, each in drawn.items()}


def picture(spec: InputSpec, seed: int) -> Tensor:
    """1/f noise around grey, normalised: [C, H, W]."""
    dice = TorchDice(Generator().manual_seed(seed))
    return normalised(spec, 0.5 + 0.2 * torch.from_numpy(pink_noise((spec.channels, *spec.size), 1.1, dice)))


def waves(spec: InputSpec, seed: int) -> Tensor:
    """A picture as shaders make them, sines of sines of the position in colours of their own: [C, H, W]."""
    generator = Generator().manual_seed(seed)
    height, width = spec.size
    y, x = torch.meshgrid(torch.linspace(-1, 1, height), torch.linspace(-1, 1, width), indexing="ij")
    field = torch.stack([x, y])
    for scale in (2.0, 3.0, 6.0):
        turn = scale * torch.randn(4, len(field), generator=generator)
        phase = 6.3 * torch.rand(4, 1, 1, generator=generator)
        field = torch.sin(torch.einsum("of,fhw->ohw", turn, field) + phase)
    colours = 0.2 * torch.randn(spec.channels, 4, generator=generator) + 0.15 * torch.randn(1, 4, generator=generator)
    return normalised(spec, 0.5 + torch.einsum("cf,fhw->chw", colours, field))


def normalised(spec: InputSpec, pixels: Tensor) -> Tensor:
    mean, std = (torch.tensor(part).view(-1, 1, 1) for part in (spec.mean, spec.std))
    return (pixels.clamp(0, 1) - mean) / std


def standing(rows: list[dict[str, Any]], judge: str) -> dict[str, float]:
    """How `judge` ranks all models against real pictures: the correlation of logarithms of KL, how often it is right
    on whether a model is better than the start, and the real KL of the model that it likes best."""
    ours, real = (torch.tensor([math.log(row[name]) for row in rows]).double() for name in (judge, "real"))
    right = ((ours[1:] < ours[0]) == (real[1:] < real[0])).double().mean()
    return {
        "correlation": float(torch.corrcoef(torch.stack([ours, real]))[0, 1]),
        "right_against_start": float(right),
        "real_kl_of_its_best": rows[int(ours.argmin())]["real"],
    }


if __name__ == "__main__":
    main()
