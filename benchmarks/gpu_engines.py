"""Engines of one teacher on this GPU: INT8 in linears alone and in attention too, beside FP16 and FP32."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from calib.freeze import freeze
from calib.lsq import learn_steps
from calib.ranges import calibrate, insert_quantizers
from calib.scheme import QuantScheme
from calib.settings import Calibration
from calib.views import dense_views
from export.edge.build import ENGINE_GRAPH, build_engines, build_float_engine
from export.edge.compare import compare
from export.edge.engine_spec import read_spec
from export.edge.latency import ratio_interval, time_in_turn
from export.edge.registry import find_engine_backend
from export.edge.runtime import answer, open_engine, open_runtime
from export.graph import export_float, export_quantized
from export.qdq import qdq_module
from inversion.leaves import dead_leaves
from inversion.teacher import Teacher

BATCHES = (1, 8, 32)
INTEGER = ("int8", "int8_attention")
RUNS, WARM_UP = 400, 50


@contextmanager
def engine_files(teacher: Teacher) -> Iterator[Path]:
    """A folder of float.onnx, and of int8.onnx and int8_attention.onnx with ranges by their maximum on dead leaves."""
    shown = dense_views(dead_leaves(teacher.spec, 16, 0).to(teacher.device), teacher.patch_size)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        export_float(teacher.model, teacher.spec, folder / "float.onnx", {})
        for file, attention in zip(INTEGER, ("float", "int8"), strict=True):
            scheme = QuantScheme.parse("w8a8", attention=attention)
            student = insert_quantizers(teacher.model, scheme)
            calibrate(student, teacher.model, shown, shown, Calibration(method="max"))
            learn_steps(student)
            module = qdq_module(teacher.model, freeze(student, teacher, scheme))
            export_quantized(module, teacher.spec, folder / f"{file}.onnx", {})
        yield folder


def engine_results(folder: Path, teacher: Teacher, backend: str, arch: str, pictures: int) -> dict[str, Any]:
    """Sizes, build times and kernels of all engines, their times at each of BATCHES, and what they answer."""
    plans, graphs, chosen = {}, {}, find_engine_backend(backend)
    for precision in ("float16", "float32"):
        plans[precision] = build_float_engine(folder / "float.onnx", folder, arch, backend, BATCHES, precision)
        graphs[precision] = folder / f"{precision}.onnx"
    for kind in INTEGER:
        (folder / kind).mkdir(exist_ok=True)
        ((plans[kind], _),) = build_engines(folder / f"{kind}.onnx", folder / kind, [arch], backend, batches=BATCHES)
        graphs[kind] = folder / kind / ENGINE_GRAPH
    leaves = dead_leaves(teacher.spec, pictures, 0, first=1 << 16)
    theirs = teacher.logits(leaves).numpy()
    with ExitStack() as stack:
        sessions = {kind: stack.enter_context(open_engine(path)) for kind, path in plans.items()}
        latency = [row(batch, time_in_turn(sessions, batch, runs=RUNS, warmup=WARM_UP)) for batch in BATCHES]
        said = {kind: answer(session, leaves.numpy()) for kind, session in sessions.items()}
    first = min(16, pictures)
    with ExitStack() as stack:
        onnx = {kind: stack.enter_context(open_runtime(graph)) for kind, graph in graphs.items()}
        beside = {kind: answer(runtime, leaves[:first].numpy()) for kind, runtime in onnx.items()}
    specs = {kind: asdict(read_spec(path)) for kind, path in plans.items()}
    kept = ("version", "arch", "bytes", "build_seconds")
    return {
        "engines": {kind: {key: spec[key] for key in kept} for kind, spec in specs.items()},
        "kernels": {kind: chosen.kernels(plans[kind]).to_dict() for kind in INTEGER},
        "latency": latency,
        "against_teacher": {kind: compare(theirs, logits).to_dict() for kind, logits in said.items()},
        "against_onnxruntime": {kind: compare(beside[kind], said[kind][:first]).to_dict() for kind in said},
    }


def row(batch: int, found: dict[str, Any]) -> dict[str, Any]:
    """Times at one batch, and the ratio of each INT8 engine to FP16 with its 95% interval."""
    times = {kind: {"median_ms": one.median_ms, "p95_ms": one.p95_ms, "runs": one.n} for kind, one in found.items()}
    ratios = {kind: ratio_interval(found[kind], found["float16"]) for kind in (*INTEGER, "float32")}
    return {"batch": batch, **times, "ratio_to_float16": ratios}
