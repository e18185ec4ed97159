"""A run's files in, a verdict out."""

from __future__ import annotations

from pathlib import Path

from calib.layers import quantized_layers
from calib.settings import JUDGES
from calib.views import split_held_out
from calib.weights import QuantizedWeights
from export.edge.build import ENGINE_GRAPH
from export.edge.ort_graph import ORT_GRAPH
from export.edge.registry import OPENVINO, available
from export.edge.runtime import require_provider
from export.qdq import qdq_module
from inversion.errors import InputError
from inversion.images import load_images
from pipeline.judge.answers import Pictures
from pipeline.judge.speed import LATENCY_BATCHES, LATENCY_SECONDS, THREADS
from pipeline.judge.validation import MODULE_PICTURES, Files, Reference, proof_leaves, validate
from pipeline.recipe.recipe import Recipe
from pipeline.record.manifest import JUDGE, Facts, StageRecord, of_json, to_json, warnings_in
from pipeline.record.proof import Engine, Verdict
from pipeline.run import reads
from pipeline.run.job import Job
from pipeline.run.pace import Pace
from pipeline.run.stage import Stage, StageResult

FLOAT, QUANTIZED, GRAPH, MODULE = 1.0, 0.6, 1.5, 2.0
"""A picture through the float file, the quantized one, the engines' graph and the torch module that it was made from,
over the teacher's own time on the CPU."""
ON_OPENVINO = 0.4
LATENCY_RUNS = 37
JUDGING, LAYER = 2e6, 5e4
"""What opening files and processes takes, and a layer by itself, in calls of torch (`Pace.call`)."""


class Validate(Stage):
    """All files of a run -> the `validation` part of its manifest."""

    name = JUDGE
    version = 6
    libraries = ("torch", "timm", "onnxruntime", "openvino", "tensorrt", "tensorrt_rtx")

    def reads(self, job: Job) -> Facts:
        return {
            "teacher": reads.of_teacher(job.teacher),
            "picture": reads.of_pictures(job.teacher),
            "pictures": job.pictures.fingerprint if job.pictures else None,
            "machine": reads.machine(),
            "seed": job.recipe.seed,
            "scheme": reads.of_scheme(job.recipe),
            **reads.settings(job.recipe, "validation", "engine", "calibration"),
        }

    def check_recipe(self, recipe: Recipe) -> None:
        require_provider(recipe.validation.provider)

    def cost(self, job: Job, pace: Pace) -> float:
        """Each picture through all models, each layer by itself, and the times of two models in turn."""
        recipe, picture = job.recipe, pace.forward_on_cpu
        held_out = recipe.inversion.trajectories // max(2, round(1 / recipe.calibration.held_out))
        pictures = recipe.validation.pictures + max(held_out, 1) + (job.pictures.count if job.pictures else 0)
        files = FLOAT + 2 * QUANTIZED + (ON_OPENVINO if available(OPENVINO) else 0)
        on_runtime = files + (GRAPH if job.backend else 0)
        answered = pictures * (pace.forward + on_runtime * picture) + MODULE_PICTURES * (QUANTIZED + MODULE) * picture
        rounds = [LATENCY_RUNS * batch * files * picture for batch in LATENCY_BATCHES]
        timed = sum(len(THREADS) * min(LATENCY_SECONDS, seconds) for seconds in rounds)
        layers = len(quantized_layers(job.teacher.model))
        return recipe.validation.pictures * pace.leaf + answered + timed + (JUDGING + layers * LAYER) * pace.call

    def run(self, job: Job) -> StageResult:
        recipe = job.recipe
        _, held_out = split_held_out(load_images(job.places.images), recipe.calibration.held_out)
        unseen = recipe.calibration.leaves + JUDGES
        leaves = proof_leaves(job.teacher, recipe.validation.pictures, recipe.calibration.seed, unseen)
        synthetic = [Pictures.of("mosaics", held_out.mosaics(), numbers=held_out.trajectory.unique().tolist()), leaves]
        weights = QuantizedWeights.load(job.places.quantized)
        reference = Reference(weights, qdq_module(job.teacher.model, weights))
        limits = recipe.validation.limits(recipe.quant_scheme())
        with job.display.progress() as progress:
            verdict = validate(job.teacher, files(job), reference, synthetic, job.pictures, limits, progress)
        return StageResult([], to_json(verdict))

    def after(self, job: Job, metrics: Facts) -> None:
        for sentence in warnings_in(metrics):
            job.display.warn(sentence)


def verdict_of(job: Job) -> Verdict:
    """What the finished stage found; `InputError` where its record was damaged since."""
    if (verdict := of_json(Verdict, job.made[Validate.name].metrics)) is None:
        folder = str(job.places.folder)
        raise InputError(
            f"the verdict in {folder!r} is not as a build writes it: judge again with `pipeline validate`."
        )
    return verdict


def engines_of(record: StageRecord, folder: Path) -> tuple[Engine, ...]:
    """What the finished engine stage made; `InputError` where the record of it was damaged since."""
    engines = of_json(tuple[Engine, ...], record.metrics.get("engines"))
    made = {output.path for output in record.outputs}
    if engines is None or any(engine.path not in made for engine in engines):
        raise InputError(f"the manifest in {str(folder)!r} names engines that its run did not make: build again.")
    return engines


def files(job: Job) -> Files:
    """What is judged; ONNX Runtime's CPU kernels know no bfloat16."""
    folder = job.places.folder
    graph = folder / ENGINE_GRAPH
    runs = graph.exists() and job.recipe.engine.precision != "bfloat16"
    engines = [(folder / engine.path, engine) for engine in engines_of(job.made["engine"], folder)]
    model, float32, own = (folder / name for name in ("model.onnx", "model.fp32.onnx", ORT_GRAPH))
    return Files(
        model, float32, own if own.exists() else None, graph if runs else None, engines, job.recipe.validation.provider
    )
