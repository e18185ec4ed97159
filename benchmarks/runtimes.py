"""How fast are the artefacts, and which of their products run on integers?

    python benchmarks/runtimes.py RUN [RUN ...] [--int8-attention]

For each run folder: ONNX Runtime's latency at batches 1 and 8, with a dynamic and with a fixed batch, every model timed
in turn; file sizes; the kernels of ONNX Runtime; and engines for sm86, sm89 and sm120 with what their builder says of
their kernels: of the graph as it is, behind fences, and in 16-bit floats. With --int8-attention also of a graph whose
attention is quantized, with steps of 0.05 (kernels depend on no step).

DeiT-Tiny takes a minute a run on two quiet cores.
"""

from __future__ import annotations

import argparse
import dataclasses
import tempfile
from pathlib import Path
from typing import Any

import onnx
import torch
from onnx.tools.update_model_dims import update_inputs_outputs_dims
from recording import write_record
from rich.console import Console
from rich.table import Table

from calib.attention import QUANTIZERS, attention_layers
from calib.scheme import QuantScheme
from calib.weights import QuantizedWeights
from export.edge.engine_graph import write_engine_graph
from export.edge.kernels import sentences
from export.edge.latency import measure_latency
from export.edge.registry import available_backend, find_engine_backend, find_runtime
from export.graph import export_quantized
from export.qdq import qdq_module
from inversion.teacher import load_teacher
from pipeline.recipe.resolve import read_back
from pipeline.record.manifest import Manifest, load_manifest

BATCHES = (1, 8)
ARCHS = ("sm86", "sm89", "sm120")
THREADS = 2
STEP = 0.05


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--int8-attention", action="store_true")
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--name", default="runtimes")
    args = parser.parse_args()
    found = [measure(run, args.rounds, args.int8_attention) for run in args.runs]
    write_record(args.name, {"threads": THREADS, "runs": found})
    Console().print(table(found))


def measure(run: Path, rounds: int, int8_attention: bool) -> dict[str, Any]:
    manifest = load_manifest(run)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        latency = [timed(run, batch, rounds, folder) for batch in BATCHES]
        engines = build_all(run / "model.onnx", folder)
        if int8_attention:
            path = folder / "int8_attention.onnx"
            export_int8_attention(run, manifest, path)
            engines += [{**engine, "attention": "int8"} for engine in build_all(path, folder)]
            attention = find_runtime("cpu").kernels(path).to_dict()
    return {
        "teacher": manifest.teacher.name,
        "bits": manifest.bits,
        "bytes": {path.name: path.stat().st_size for path in sorted(run.glob("*.onnx"))},
        "latency": latency,
        "kernels": find_runtime("cpu").kernels(run / "model.onnx").to_dict(),
        "kernels_int8_attention": attention if int8_attention else None,
        "engines": engines,
    }


def timed(run: Path, batch: int, rounds: int, folder: Path) -> dict[str, Any]:
    """Median and p95 of both models with a dynamic and a fixed batch, and ratios to the float model."""
    models = {"float": run / "model.fp32.onnx", "quantized": run / "model.onnx"}
    for name, path in tuple(models.items()):
        models[f"{name}_fixed"] = fix_batch(path, batch, folder / f"{name}.{batch}.onnx")
    found = measure_latency(models, batch, threads=THREADS, runs=rounds, budget_s=120)
    row: dict[str, Any] = {
        name: {"median_ms": one.median_ms, "p95_ms": one.p95_ms, "runs": one.n} for name, one in found.items()
    }
    ratios = {
        "ratio": found["quantized"].median_ms / found["float"].median_ms,
        "ratio_fixed": found["quantized_fixed"].median_ms / found["float_fixed"].median_ms,
    }
    return {"batch": batch, **ratios, **row}


def fix_batch(path: Path, batch: int, out: Path) -> Path:
    """`path` with its batch fixed, as a user's tool does it."""
    model = onnx.load(path)
    sizes = [
        {value.name: [batch, *(dim.dim_value for dim in value.type.tensor_type.shape.dim[1:])] for value in values}
        for values in (model.graph.input, model.graph.output)
    ]
    model = update_inputs_outputs_dims(model, *sizes)
    del model.graph.value_info[:]
    onnx.save(onnx.shape_inference.infer_shapes(model), out)
    return out


def build_all(model: Path, folder: Path) -> list[dict[str, Any]]:
    """One engine for each architecture in float16, and for sm89 the graph as it is and the other precisions."""
    name = available_backend()
    if name is None:
        return []
    backend = find_engine_backend(name)
    specs = []
    for precision in ("as exported", "float16", "bfloat16", "float32"):
        archs = ARCHS if precision == "float16" else ("sm89",)
        graph = model
        if precision != "as exported":
            graph = folder / f"{precision}.onnx"
            write_engine_graph(model, graph, precision)
        for arch in archs:
            spec = dataclasses.asdict(backend.build(graph, folder / "engine.plan", arch))
            kernels = {key: spec["kernels"][key] for key in ("linears", "attention", "layer_types")}
            kept = {key: spec[key] for key in ("backend", "version", "arch", "bytes", "build_seconds")}
            reasons = sentences(spec["kernels"])[1:]
            specs.append({"graph": precision, "attention": "float", **kept, **kernels, "reasons": reasons})
    return specs


def export_int8_attention(run: Path, manifest: Manifest, path: Path) -> None:
    """The run's weights with attention's products quantized."""
    weights = QuantizedWeights.load(run / "quantized.safetensors")
    recipe = read_back(manifest.recipe)
    teacher = load_teacher(recipe.teacher, recipe.checkpoint, checkpoint_key=recipe.checkpoint_key, given=recipe.input)
    steps = {
        f"{name}.{part}_step": torch.tensor(STEP) for name in attention_layers(teacher.model) for part in QUANTIZERS
    }
    scheme = QuantScheme.parse(weights.scheme.bits, attention="int8")
    changed = dataclasses.replace(weights, scheme=scheme, tensors={**weights.tensors, **steps})
    export_quantized(qdq_module(teacher.model, changed), teacher.spec, path, {})


def table(found: list[dict[str, Any]]) -> Table:
    columns = ("model", "batch", "FP32, ms", "quantized, ms", "ratio", "ratio, fixed batch")
    shown = Table(*columns, title=f"ONNX Runtime, {THREADS} threads, medians")
    for run in found:
        for row in run["latency"]:
            cells = (f"{row['float']['median_ms']:.1f}", f"{row['quantized']['median_ms']:.1f}")
            ratios = (f"{row['ratio']:.2f}", f"{row['ratio_fixed']:.2f}")
            shown.add_row(f"{run['teacher']} {run['bits']}", str(row["batch"]), *cells, *ratios)
    return shown


if __name__ == "__main__":
    main()
