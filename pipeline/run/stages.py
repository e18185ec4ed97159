"""A build: its stages, each from files to files, in their order."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from calib.fidelity import Fidelity
from calib.layers import require_layers
from calib.memory import require_training_memory
from calib.settings import JUDGES
from calib.views import split_held_out
from calib.weights import QuantizedWeights
from export.edge.build import ENGINE_GRAPH, build_engines
from export.edge.engine import choose_backend, sidecar
from export.edge.exactness import ALWAYS, WHERE_PRODUCTS_SATURATE
from export.edge.runtime import require_provider
from export.graph import export_float, export_quantized, write_int4
from export.qdq import qdq_module
from inversion.errors import InputError
from inversion.images import load_images
from inversion.inverter import PROGRESS, plan, settle
from inversion.machine import choose_device, require_memory, settle_sums
from inversion.publish import publish
from inversion.teacher import Teacher, load_teacher
from pipeline.judge.answers import Pictures
from pipeline.judge.validation import Files, Reference, proof_leaves, validate
from pipeline.pictures.labels import known_labels
from pipeline.pictures.preprocess import preprocess_steps
from pipeline.pictures.valdata import ValData, judging_pictures
from pipeline.recipe.recipe import MOST_THREADS, STAGES, Recipe
from pipeline.record.manifest import MANIFEST, describe_teacher, read_manifest
from pipeline.record.versions import library_versions
from pipeline.run.folder import SHARDS, RunFolder, StageResult, file_sha256, product_digest
from pipeline.run.inverting import describe_images, invert_with_bar
from pipeline.run.reads import Facts, machine, reads
from pipeline.show.display import Advance, Display
from pipeline.show.report import write_junit, write_report

if TYPE_CHECKING:
    from calib.qat import Outcome
    from calib.quantize import Quantized

STAGE_VERSIONS = {"invert": 3, "quantize": 6, "export": 3, "engine": 3, "validate": 3}
"""Raised when a stage's code starts to give other results from the same inputs."""

LIBRARIES = {
    "invert": ("torch", "timm"),
    "quantize": ("torch", "timm", "modelopt"),
    "export": ("torch", "timm", "onnx", "onnxscript", "onnx_ir"),
    "engine": ("onnx", "tensorrt", "tensorrt_rtx"),
    "validate": ("torch", "timm", "onnxruntime", "tensorrt", "tensorrt_rtx"),
}
"""Of which a stage's result depends on the version."""

TRAINING = "training.safetensors"
"""What interrupted training goes on from; a finished stage leaves none."""
UNFINISHED = {"invert": ("images/*.safetensors",), "quantize": (TRAINING,)}
"""What a stage that is run again would take up."""
VERDICTS = ("report.html", "junit.xml")


def build(
    recipe: Recipe,
    folder: Path,
    display: Display,
    device: str = "auto",
    anew_from: str | None = None,
    stale: Sequence[Path] = (),
) -> dict[str, Any]:
    """Every stage in one run folder; returns the manifest. What can be refused is refused before any work, and leaves
    an earlier verdict as it was.

    `device` is where the teacher is, and all that runs it. The stage `anew_from` and all after it run again, whatever
    they left there. `stale` are files elsewhere that tell an earlier verdict: they go when work begins.
    """
    recipe = dataclasses.replace(recipe, threads=settle_sums(recipe.threads or threads_of(folder)))
    place = choose_device(device).type
    require_provider(recipe.validation.provider)
    if recipe.inversion.trajectories < 2:
        raise InputError(
            f"inversion.images={recipe.inversion.images} makes one trajectory and leaves none to judge by: take more."
        )
    backend = choose_backend(recipe.engine.backend, recipe.engine.arch)
    teacher = teacher_of(recipe, display, device=place)
    plan(teacher, recipe.inversion)
    require_memory(teacher.model, settle(teacher, recipe.inversion), teacher.device)
    require_layers(teacher.model, recipe.quant_scheme())
    require_training_memory(teacher.model, recipe.training)
    val_data = real_pictures(recipe, teacher, display)
    with RunFolder(folder, display.log) as run:
        work = Build(recipe, teacher, val_data, backend, run, display)
        work.begin(stale)
        if anew_from:
            work.forget_from(anew_from)
        work.invert()
        work.quantize()
        work.export()
        work.engine()
        return work.conclude()


class Build:
    """The stages of one run. Each method runs its stage, or finds it unchanged, and notes its digest."""

    def __init__(
        self,
        recipe: Recipe,
        teacher: Teacher,
        val_data: ValData | None,
        backend: str | None,
        run: RunFolder,
        display: Display,
    ) -> None:
        self.recipe, self.teacher, self.val_data, self.backend = recipe, teacher, val_data, backend
        self.run, self.display, self.folder = run, display, run.path
        self.scheme = recipe.quant_scheme()
        self.digests: dict[str, str] = {}
        labels = known_labels(teacher, recipe.checkpoint, recipe.class_map)
        self.facts = Facts(
            recipe,
            teacher,
            tuple(labels) if labels else None,
            val_data.fingerprint if val_data else None,
            backend,
            machine(),
        )

    def begin(self, stale: Sequence[Path] = (), recipe: Recipe | None = None) -> None:
        """State what runs, as `recipe` where that is not what it runs by; nothing that tells an earlier verdict stays,
        here or in the files of `stale`."""
        self.run.begin((recipe or self.recipe).to_dict(), describe_teacher(self.teacher))
        for path in (*(self.folder / name for name in VERDICTS), *stale):
            path.unlink(missing_ok=True)

    def forget_from(self, stage: str) -> None:
        """Let `stage` and all after it run again, from nothing."""
        for name in STAGES[STAGES.index(stage) :]:
            self.run.forget(name)
            for pattern in UNFINISHED.get(name, ()):
                for path in sorted(self.folder.glob(pattern)):
                    path.unlink()

    def conclude(self) -> dict[str, Any]:
        """Judge the run's files and write the verdict wherever it is read; returns the manifest."""
        self.run.conclude(self.validate())
        write_report(self.run.manifest, self.folder)
        write_junit(self.run.manifest, self.folder / "junit.xml")
        return self.run.manifest

    def invert(self) -> None:
        job = self.recipe.inversion

        def work() -> StageResult:
            paths = invert_with_bar(self.teacher, job, self.folder / "images", self.display)
            progress = self.folder / "images" / PROGRESS
            outputs = [*paths, *([progress] if progress.exists() else [])]
            return StageResult(outputs, describe_images(self.teacher, paths))

        record = self._stage("invert", work)
        for stray in self.run.strays(SHARDS):  # whoever reads the folder would take it for one of the run's
            stray.unlink()
        for sentence in record["metrics"]["warnings"]:
            self.run.log("warning", message=sentence)
            self.display.warn(sentence)

    def quantize(self) -> None:
        recipe, path = self.recipe, self.folder / "quantized.safetensors"

        def work() -> StageResult:
            from calib.quantize import quantize  # ModelOpt loads for seconds, which a finished run need not wait for

            images = load_images(self.folder / "images")
            with self.display.phases() as on_phase:
                quantized = quantize(
                    self.teacher, images, self.scheme, recipe.basis, recipe.calibration, recipe.rounding,
                    recipe.training, on_phase, self.folder / TRAINING,
                )  # fmt: skip
            quantized.weights.save(path)
            return StageResult([path], describe_quantized(quantized))

        record = self._stage("quantize", work)
        for sentence in record["metrics"]["basis"]["left_out"]:
            self.display.say(sentence)
        (self.folder / TRAINING).unlink(missing_ok=True)

    def export(self) -> None:
        settings = dataclasses.asdict(self.recipe.export)

        def work() -> StageResult:
            with self.display.steps("export", 3) as advance:
                return StageResult(
                    export_files(self.teacher, self.quantized(), self.folder, self.facts.labels, advance, **settings)
                )

        self._stage("export", work)

    def engine(self) -> None:
        job, backend = self.recipe.engine, self.backend

        def work() -> StageResult:
            for stale in (*self.folder.glob("engine.*"), self.folder / ENGINE_GRAPH):
                stale.unlink(missing_ok=True)
            if backend is None:
                return StageResult([], {"engines": []})
            outputs, specs = [self.folder / ENGINE_GRAPH], []
            model = self.folder / "model.onnx"
            with self.display.steps("engine", len(job.arch)) as advance:
                for path, spec in build_engines(model, self.folder, job.arch, backend, job.precision, job.batch):
                    outputs += [path, sidecar(path)]
                    specs.append({"path": path.name, **dataclasses.asdict(spec)})
                    advance(len(specs), spec.arch)
            return StageResult(outputs, {"engines": specs})

        record = self._stage("engine", work)
        self.engines = record["metrics"]["engines"]

    def validate(self) -> dict[str, Any]:
        recipe, limits = self.recipe, self.recipe.validation.limits(self.scheme)

        def work() -> StageResult:
            _, held_out = split_held_out(load_images(self.folder / "images"), recipe.calibration.held_out)
            unseen = recipe.calibration.leaves + JUDGES
            leaves = proof_leaves(self.teacher, recipe.validation.pictures, recipe.calibration.seed, unseen)
            synthetic = [Pictures.of("mosaics", held_out.mosaics()), leaves]
            weights = QuantizedWeights.load(self.quantized())
            reference = Reference(weights, qdq_module(self.teacher.model, weights))
            total = sum(pictures.count for pictures in synthetic) + (len(self.val_data) if self.val_data else 0)
            with self.display.steps("validation", total) as advance:
                verdict = validate(self.teacher, self.files(), reference, synthetic, self.val_data, limits, advance)
            return StageResult([], verdict)

        verdict: dict[str, Any] = self._stage("validate", work)["metrics"]
        for sentence in verdict["warnings"]:
            self.display.warn(sentence)
        return verdict

    def quantized(self) -> Path:
        return self.folder / "quantized.safetensors"

    def files(self) -> Files:
        """What the validation judges; ONNX Runtime's CPU kernels know no bfloat16."""
        graph = self.folder / ENGINE_GRAPH
        runs = graph.exists() and self.recipe.engine.precision != "bfloat16"
        engines = [(self.folder / spec["path"], spec) for spec in self.engines]
        provider = self.recipe.validation.provider
        model, float32 = (self.folder / name for name in ("model.onnx", "model.fp32.onnx"))
        return Files(model, float32, graph if runs else None, engines, provider)

    def _stage(self, name: str, work: Callable[[], StageResult]) -> dict[str, Any]:
        before = STAGES[STAGES.index(name) - 1] if name != STAGES[0] else None
        inputs = {
            "version": STAGE_VERSIONS[name],
            "libraries": library_versions(LIBRARIES[name]),
            "reads": reads(name, self.facts),
            "before": before and self.digests[before],
        }
        record = self.run.stage(name, inputs, work)
        self.digests[name] = product_digest(record)
        self.display.stage(record)
        return record


def real_pictures(recipe: Recipe, teacher: Teacher, display: Display) -> ValData | None:
    """The pictures that judge a run, each looked at once."""
    return judging_pictures(teacher, recipe.checkpoint, recipe.judges, display)


def teacher_of(recipe: Recipe, display: Display, checkpoint: Path | str | None = None, device: str = "cpu") -> Teacher:
    """The teacher that a recipe names; what was assumed of it is said."""
    path = checkpoint or recipe.checkpoint
    teacher = load_teacher(
        recipe.teacher, path, checkpoint_key=recipe.checkpoint_key, given=recipe.input, device=device
    )
    for sentence in teacher.notes:
        display.warn(sentence)
    return teacher


def threads_of(folder: Path) -> int:
    """The number of threads that the run in `folder` began with; 0 where there is none."""
    recorded = read_manifest(folder / MANIFEST).get("recipe", {})
    found = recorded.get("threads", 0) if isinstance(recorded, dict) else 0
    return found if isinstance(found, int) and 0 < found <= MOST_THREADS else 0


def describe_quantized(quantized: Quantized) -> dict[str, Any]:
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


def export_files(
    teacher: Teacher,
    quantized: Path,
    folder: Path,
    labels: Sequence[str] | None,
    advance: Advance,
    uint8_input: bool = False,
) -> list[Path]:
    """model.onnx of the file `quantized`, model.int4.onnx where weights have 4 bits, model.fp32.onnx to compare with,
    preprocess.json. All carry what is known of teacher, scheme, labels and preprocessing."""
    weights, spec = QuantizedWeights.load(quantized), teacher.spec
    preprocess = preprocess_steps(spec, uint8_input)
    about = {
        "teacher": weights.teacher,
        "teacher_sha256": weights.teacher_sha256,
        "quantized_sha256": file_sha256(quantized),
        "preprocess": json.dumps(preprocess),
        **({"labels": json.dumps(list(labels))} if labels else {}),
    }
    model, baseline, packed = (folder / name for name in ("model.onnx", "model.fp32.onnx", "model.int4.onnx"))
    module = qdq_module(teacher.model, weights)
    export_quantized(module, spec, model, {**about, "scheme": str(weights.scheme)}, uint8_input)
    advance(1, "")
    export_float(teacher.model, spec, baseline, {**about, "scheme": "float32"}, uint8_input)
    advance(2, "")
    packed.unlink(missing_ok=True)
    if four_bits := [name for name, bits in weights.layers.items() if bits.weight <= 4]:
        write_int4(model, packed, four_bits)
    steps = folder / "preprocess.json"
    session = {"session_config": ALWAYS, "session_config_on_x86_without_vnni": WHERE_PRODUCTS_SATURATE}
    publish(steps, json.dumps({**preprocess, "onnxruntime": session}, indent=1).encode())
    advance(3, "")
    return [model, baseline, *([packed] if four_bits else []), steps]
