"""ONNX in, TensorRT engines out, one an architecture."""

from __future__ import annotations

import dataclasses

from export.edge.build import ENGINE_GRAPH, build_engines
from export.edge.engine_spec import sidecar
from export.edge.registry import choose_backend
from pipeline.recipe.recipe import Recipe
from pipeline.run import reads
from pipeline.run.job import Job
from pipeline.run.stage import Stage, StageResult


class Engine(Stage):
    """model.onnx -> the graph that TensorRT runs best, engine.BACKEND.ARCH.plan and what each needs, beside it."""

    name = "engine"
    version = 3
    libraries = ("onnx", "tensorrt", "tensorrt_rtx")

    def reads(self, job: Job) -> reads.Facts:
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
        with job.display.steps("engine", len(engine.arch)) as advance:
            for path, spec in build_engines(
                folder / "model.onnx", folder, engine.arch, job.backend, engine.precision, engine.batch
            ):
                outputs += [path, sidecar(path)]
                specs.append({"path": path.name, **dataclasses.asdict(spec)})
                advance(len(specs), spec.arch)
        return StageResult(outputs, {"engines": specs})
