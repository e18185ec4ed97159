"""Images in, quantized weights out: basis, ranges, rounding, training."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, TypedDict, cast

from calib.fidelity import Fidelity
from calib.layers import require_layers
from calib.memory import require_quantizing_memory
from inversion.images import load_images, require_images_of
from pipeline.cluster.quantizing import Work
from pipeline.cluster.quantizing import quantize as cluster_quantize
from pipeline.record.manifest import Facts
from pipeline.run import reads
from pipeline.run.job import TRAINING, Job
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
