"""ONNX in, TensorRT engines out, one an architecture."""

from __future__ import annotations

import dataclasses
import math

from export.edge.build import ENGINE_GRAPH, build_engines
from export.edge.engine_spec import sidecar
from export.edge.registry import choose_backend
from pipeline.recipe.recipe import Recipe
from pipeline.record.manifest import Facts
from pipeline.run import reads
from pipeline.run.job import Job
from pipeline.run.stage import Stage, StageResult


class Engine(Stage):
    """model.onnx -> the graph that TensorRT runs best, engine.BACKEND.ARCH.plan and what each needs, beside it."""

    name = "engine"
    version = 3
    libraries = ("onnx", "tensorrt", "tensorrt_rtx")

    def reads(self, job: Job) -> Facts:
        return {"backend": job.backend, **reads.settings(job.recipe, "engine")}

    def check_recipe(self, recipe: Recipe) -> None:
        choose_backend(recipe.engine.backend, recipe.engine.arch)

    def run(self, job: Job) -> StageResult:
        folder, engine = job.places.folder, job.recipe.engine
        for stale in (*folder.glob("engine.*"), folder / ENGINE_GRAPH):
            stale.unlink(missing_ok=True)
        if job.backend is None:
            return StageResult([], {"engines": []})
        outputs, specs = [folder / ENGINE_GRAPH], []
        with job.display.progress() as progress:
            for path, spec in build_engines(
                folder / "model.onnx", folder, engine.arch, job.backend, engine.precision, engine.batch
            ):
                outputs += [path, sidecar(path)]
                specs.append({"path": path.name, **dataclasses.asdict(spec)})
                progress(self.name, len(specs), len(engine.arch), math.nan)
        return StageResult(outputs, {"engines": specs})
