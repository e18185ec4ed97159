"""Images in, quantized weights out: basis, ranges, rounding, training."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, TypedDict, cast

from calib.fidelity import Fidelity
from calib.gptq import STRIP, block_linears
from calib.layers import require_layers
from calib.memory import require_quantizing_memory
from calib.saliency import GROUPS
from calib.settings import AUTO, FISHER, JUDGES, RANGE_METHODS, SEARCH_IMAGES, tried_shares
from inversion.images import load_images, require_images_of
from pipeline.cluster.quantizing import Work
from pipeline.cluster.quantizing import quantize as cluster_quantize
from pipeline.recipe.recipe import Recipe
from pipeline.record.manifest import Facts
from pipeline.run import reads
from pipeline.run.job import TRAINING, Job
from pipeline.run.pace import Pace, rounding_flops
from pipeline.run.stage import Stage, StageResult

if TYPE_CHECKING:
    from calib.qat import Outcome
    from calib.quantization import Quantized


class Described(TypedDict):
    """The metrics of this stage: KL in nats and agreement are shares on held-out synthetic images."""

    basis: dict[str, object]
    range_method: str
    ranges_tried: dict[str, dict[str, float]]
    calibrated: dict[str, float]
    trained: dict[str, float]
    kept: str
    best_update: int
    history: list[dict[str, float]]


LOADING = 1.5e6
"""What loading ModelOpt takes, and copying the teacher, in calls of torch (`Pace.call`)."""
QUANTIZED_FORWARD = 1.5
"""A picture through the model with quantizers, over the teacher's own time."""
FORWARDS_OF_ROUNDING = 4
"""Passes over a picture: one to the first block, and of each block a part before each of its four linears."""


class Quantize(Stage):
    """Shards -> `quantized.safetensors`."""

    name = "quantize"
    version = 7
    libraries = ("torch", "timm", "modelopt")
    unfinished = (TRAINING,)

    def reads(self, job: Job) -> Facts:
        return {
            "teacher": reads.of_teacher(job.teacher),
            "name": job.teacher.name,
            "pixels": reads.of_pixels(job.teacher),
            "threads": job.recipe.threads,
            "scheme": reads.of_scheme(job.recipe),
            **reads.settings(job.recipe, "basis", "calibration", "rounding", "training"),
        }

    def check(self, job: Job) -> None:
        require_layers(job.teacher.model, job.recipe.quant_scheme())
        if job.cluster:  # whose machines train
            job.cluster.team(job.recipe.threads)
            return
        recipe = job.recipe
        require_quantizing_memory(job.teacher.model, recipe.calibration, recipe.rounding, recipe.training)

    def cost(self, job: Job, pace: Pace) -> float:
        """Several workers of a cluster share the images: of the time, all but the basis."""
        recipe, updates = job.recipe, 0
        basis = 0.0
        if recipe.basis.method == "learned":
            basis, updates = pace.basis_update(recipe.quant_scheme()), recipe.basis.updates
        pictures = (recipe.calibration.leaves + JUDGES) * pace.leaf
        team = job.cluster.team(recipe.threads) if job.cluster else 1
        shared = _range_seconds(job, pace) + _rounding_seconds(job, pace) + _training_seconds(job, pace)
        return LOADING * pace.call + pictures + updates * basis + shared / team

    def run(self, job: Job) -> StageResult:
        recipe, places = job.recipe, job.places
        images = load_images(places.images)
        require_images_of(job.teacher, images, places.images)
        places.quantized.parent.mkdir(parents=True, exist_ok=True)
        what = (recipe.quant_scheme(), recipe.basis, recipe.calibration, recipe.rounding, recipe.training)
        with job.display.progress() as progress:
            if job.cluster:
                work = Work(job.teacher, images, *what)
                quantized, workers = cluster_quantize(job.cluster, work, recipe.threads, places.training, progress)
                team = {"workers": workers}
            else:
                from calib.quantization import quantize  # ModelOpt loads for seconds, for which only this need wait

                quantized, team = quantize(job.teacher, images, *what, progress, places.training), {}
        quantized.weights.save(places.quantized)
        return StageResult([places.quantized], {**describe(quantized), **team})

    def after(self, job: Job, metrics: Facts) -> None:
        basis = metrics.get("basis")
        for sentence in basis.get("left_out", ()) if isinstance(basis, dict) else ():
            job.display.say(sentence)
        job.places.training.unlink(missing_ok=True)


def shown(recipe: Recipe, kind: str) -> int:
    """How many images `calib.views.make_views` makes of that kind."""
    inversion, leaves = recipe.inversion, recipe.calibration.leaves
    every = max(2, min(round(1 / recipe.calibration.held_out), inversion.trajectories))
    mosaics = inversion.trajectories - inversion.trajectories // every
    return {
        "sparse": mosaics * inversion.images_per_trajectory, "mosaic": mosaics, "leaves": leaves,
        "mixed": mosaics + leaves,
    }[kind]  # fmt: skip


def _range_seconds(job: Job, pace: Pace) -> float:
    """Each method's own, and what its model then says of the judges."""
    calibration, model = job.recipe.calibration, job.teacher.model
    methods = len(RANGE_METHODS) if calibration.method == AUTO else 1
    seconds = JUDGES * (1 + QUANTIZED_FORWARD * methods) * pace.forward
    if calibration.method != FISHER:
        seconds += 2 * shown(job.recipe, calibration.views) * pace.forward
    if calibration.method in (AUTO, FISHER):
        tokens = model.patch_embed.num_patches + model.num_prefix_tokens
        inputs = tokens * sum(layer.in_features for layer in block_linears(model).values())
        images = min(SEARCH_IMAGES, shown(job.recipe, calibration.views))
        tried = len(tried_shares(job.recipe.quant_scheme().activation_bits >= 8))
        seconds += images * (pace.forward + pace.gradient + inputs * tried * pace.tried_range)
    return seconds


def _rounding_seconds(job: Job, pace: Pace) -> float:
    """GPTQ: saliency, a Hessian a group of outputs, and the rounding by it."""
    rounding, scheme, model = job.recipe.rounding, job.recipe.quant_scheme(), job.teacher.model
    layers = [layer for name, layer in block_linears(model).items() if scheme.layer(name).weight < 8]
    if rounding.method != "gptq" or not layers:
        return 0.0
    images, groups = shown(job.recipe, rounding.views), GROUPS if rounding.saliency else 1
    tokens = images * (model.patch_embed.num_patches + model.num_prefix_tokens)
    column, flop = pace.rounding
    seconds = images * (pace.gradient if rounding.saliency else 0.0)
    seconds += images * FORWARDS_OF_ROUNDING * QUANTIZED_FORWARD * pace.forward
    for layer in layers:
        width, rows = layer.in_features, layer.out_features / groups
        hessian = tokens * width * (width + STRIP) * pace.hessian_flop
        seconds += groups * (hessian + width * column + rounding_flops(width, rows) * flop)
    return seconds


def _training_seconds(job: Job, pace: Pace) -> float:
    """Updates, forward and three times backward, and the judges' looks at them."""
    training = job.recipe.training
    looks = 1 + (training.checks * (2 if training.ema else 1) if training.updates else 0)
    update = training.batch * (1 + 3 * QUANTIZED_FORWARD) * pace.forward
    return training.updates * update + looks * JUDGES * QUANTIZED_FORWARD * pace.forward


def describe(quantized: Quantized) -> Described:
    """The basis, ranges tried and what training did, these on held-out synthetic images."""

    def plain(fidelity: Fidelity) -> dict[str, float]:
        return {"kl": round(fidelity.kl, 6), "agreement": round(fidelity.agreement, 4)}

    training = quantized.training
    return {
        "basis": dataclasses.asdict(quantized.basis),
        "range_method": quantized.method,
        "ranges_tried": {name: plain(value) for name, value in quantized.tried.items()},
        "calibrated": plain(training.calibrated),
        "trained": plain(training.best),
        "kept": _kept(training),
        "best_update": training.best_update,
        "history": [{"update": update, **plain(value)} for update, value in training.history],
    }


def _kept(training: Outcome) -> str:
    if not training.best_update:
        return "calibration alone: training did not help on held-out images"
    return "training, moving average of the weights" if training.averaged else "training"


def in_words(metrics: Facts) -> str:
    """What came out, in one line."""
    found = cast(Described, metrics)
    best = found["trained"]
    return (
        f"ranges {found['range_method']}; held-out synthetic KL {best['kl']:.4f}, "
        f"agreement {100 * best['agreement']:.1f}%"
    )
