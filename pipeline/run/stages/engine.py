"""ONNX in, TensorRT engines out, one an architecture."""

from __future__ import annotations

import dataclasses
import math

from export.edge.build import ENGINE_GRAPH, build_engines
from export.edge.engine_spec import sidecar
from export.edge.registry import choose_backend
from pipeline.recipe.recipe import Recipe
from pipeline.record import proof as record
from pipeline.record.manifest import Facts
from pipeline.run import reads
from pipeline.run.job import Job
from pipeline.run.pace import Pace
from pipeline.run.stage import Stage, StageResult

RECORDED = [field.name for field in dataclasses.fields(record.Engine) if field.name != "path"]
"""What the manifest keeps of an engine's sidecar."""


ENGINE_BLOCK = 5e4
"""What a block takes in a graph or an engine, in calls of torch (`Pace.call`)."""


class Engine(Stage):
    """model.onnx -> the graph that TensorRT runs best, engine.BACKEND.ARCH.plan and what each needs, beside it."""

    name = "engine"
    version = 4
    libraries = ("onnx", "tensorrt", "tensorrt_rtx")

    def reads(self, job: Job) -> Facts:
        return {"backend": job.backend, **reads.settings(job.recipe, "engine")}

    def check_recipe(self, recipe: Recipe) -> None:
        choose_backend(recipe.engine.backend, recipe.engine.arch)

    def cost(self, job: Job, pace: Pace) -> float:
        """The graph, and an engine for each architecture."""
        if job.backend is None:
            return 0.0
        blocks = len(job.teacher.model.blocks)
        return (1 + len(job.recipe.engine.arch)) * ENGINE_BLOCK * blocks * pace.call

    def run(self, job: Job) -> StageResult:
        folder, engine = job.places.folder, job.recipe.engine
        for stale in (*folder.glob("engine.*"), folder / ENGINE_GRAPH):
            stale.unlink(missing_ok=True)
        if job.backend is None:
            return StageResult([], {"engines": []})
        outputs, specs = [folder / ENGINE_GRAPH], []
        with job.display.progress() as progress:
            built = build_engines(
                folder / "model.onnx", folder, engine.arch, job.backend, engine.precision, engine.batch
            )
            for done, (path, spec) in enumerate(built, 1):
                progress(self.name, done, len(engine.arch), math.nan)
                if spec is None:
                    outputs.append(path)
                    job.display.say(f"{path.name}: run it on its device, beside {ENGINE_GRAPH}")
                    continue
                outputs += [path, sidecar(path)]
                told = dataclasses.asdict(spec)
                specs.append({"path": path.name, **{name: told[name] for name in RECORDED}})
        return StageResult(outputs, {"engines": specs})
