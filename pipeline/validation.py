"""Are the files faithful? Every runtime that is here against the PyTorch teacher, layers against torch's, and gates."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from calib.quantized import QuantizedWeights
from calib.scheme import integer_range
from export.compare import Comparison, compare
from export.engine import available, local_arch
from export.engine_session import EngineSession, open_engine
from export.engines import ENGINE_GRAPH
from export.graph import integer_weights
from export.kernels import engine_kernels, onnxruntime_kernels
from export.latency import measure_latency, peak_bytes
from export.parity import LayerParity, layer_parity
from export.pixels import from_pixels, to_pixels
from export.runtime import Array, Runtime, open_runtime
from inversion.teacher import Teacher
from pipeline.display import Advance
from pipeline.valdata import ValData

BATCH = 25
LATENCY_BATCHES = (1, 8)
PARITY_PICTURES = 2
ONNX, GRAPH = "onnxruntime", "engine graph"

Limits = Mapping[str, float | None]


@dataclass(frozen=True)
class Files:
    """What is judged: the quantized and the float ONNX, the graph of the engines where ONNX Runtime can run it, and
    the engines, each with its `EngineSpec` as JSON; `provider` is ONNX Runtime's."""

    quantized: Path
    float32: Path
    engine_graph: Path | None = None
    engines: Sequence[tuple[Path, dict[str, Any]]] = ()
    provider: str = "cpu"


@dataclass(frozen=True)
class Reference:
    """The quantized model that `Files.quantized` was made from, and its torch module."""

    weights: QuantizedWeights
    module: nn.Module


def validate(
    teacher: Teacher,
    files: Files,
    reference: Reference | None,
    held_out: Tensor,
    val_data: ValData | None,
    limits: Limits,
    advance: Advance,
) -> dict[str, Any]:
    """The `validation` part of a manifest.

    `held_out` [M, C, H, W] are synthetic pictures that neither calibration nor training has seen. Without `reference`
    nothing is said of single layers.
    """
    with ExitStack() as stack:
        runtimes: dict[str, Runtime] = {ONNX: stack.enter_context(open_runtime(files.quantized, files.provider))}
        executed = {path: stack.enter_context(open_engine(path)) for path, spec in files.engines if _is_here(spec)}
        runtimes |= {path.name: engine for path, engine in executed.items()}
        about = {"version": runtimes[ONNX].version, "provider": runtimes[ONNX].provider, "executed": True}
        blank = torch.zeros(len(held_out), dtype=torch.long)
        graph = {GRAPH: stack.enter_context(open_runtime(files.engine_graph))} if files.engine_graph else {}
        synthetic = _judge(teacher, runtimes | graph, reference, [(held_out, blank)], 0, advance)
        real = None
        if val_data:
            real = _judge(teacher, runtimes, None, val_data.batches(BATCH), len(held_out), advance, labelled=True)
        engines = [_describe_engine(path, spec, executed.get(path), synthetic, real) for path, spec in files.engines]
    speed = _speed(files)
    kernels = onnxruntime_kernels(files.quantized, files.provider)
    layers = layer_parity(files.quantized, reference.module, held_out[:PARITY_PICTURES]) if reference else []
    gates = [
        *(_layer_gates(files.quantized, reference.weights, layers) if reference else []),
        *_fidelity_gates(synthetic, real, limits),
        _at_least("integer_coverage", kernels.share, limits["min_integer_coverage"]),
        *(
            _at_least(f"integer_coverage_{engine['arch']}", engine["kernels"]["share"], limits["min_integer_coverage"])
            for engine in engines
        ),
        *(_at_most("latency_ratio", row["ratio"], limits["max_latency_ratio"]) for row in speed["latency"]),
    ]
    gates = [gate for gate in gates if gate["limit"] is not None]
    parity = synthetic.get("torch")
    return {
        "passed": all(gate["passed"] for gate in gates),
        "gates": gates,
        "synthetic": synthetic[ONNX].to_dict(),
        "real": real[ONNX].to_dict() if real else None,
        "runtimes": {ONNX: {**about, **speed, "kernels": kernels.to_dict()}, "tensorrt": engines or None},
        "engine_graph": synthetic[GRAPH].to_dict() if GRAPH in synthetic else None,
        "onnx_against_torch": parity.to_dict() if parity else None,
        "layers": _describe_layers(layers) if layers else None,
    }


def fingerprint(val_data: str | None, class_map: str | None) -> list[Any]:
    """Changes when the pictures do: paths, sizes and times of the files."""
    files: list[Any] = []
    for given in (val_data, class_map):
        root = Path(given) if given else None
        found = [] if root is None else sorted(root.rglob("*")) if root.is_dir() else [root]
        digest = hashlib.sha256()
        for path in found:
            if path.is_file():
                stat = path.stat()
                digest.update(f"{path} {stat.st_size} {stat.st_mtime_ns}\n".encode())
        files.append([given, digest.hexdigest()])
    return files


@torch.inference_mode()
def _judge(
    teacher: Teacher,
    runtimes: Mapping[str, Runtime],
    reference: Reference | None,
    batches: Iterable[tuple[Tensor, Tensor]],
    done: int,
    advance: Advance,
    labelled: bool = False,
) -> dict[str, Comparison]:
    """Each runtime against the teacher, by name; as `torch`, ONNX Runtime against the reference module."""
    answers: dict[str, list[Array]] = {name: [] for name in ("teacher", "torch", *runtimes)}
    labels = []
    for images, target in batches:
        for name, runtime in runtimes.items():
            shown, feeds = _feeds(runtime, images, teacher)
            answers[name].append(runtime.run(feeds)["logits"])
        # all files of a run take the same kind of input
        answers["teacher"].append(teacher.model(shown.to(teacher.device)).float().cpu().numpy())
        if reference:
            answers["torch"].append(reference.module(shown).numpy())
        labels.append(target.numpy())
        done += len(target)
        advance(done, "")
    logits = {name: np.concatenate(parts) for name, parts in answers.items() if parts}
    known = np.concatenate(labels) if labelled else None
    found = {name: compare(logits["teacher"], logits[name], known) for name in runtimes}
    return found | ({"torch": compare(logits["torch"], logits[ONNX])} if reference else {})


def _feeds(runtime: Runtime, images: Tensor, teacher: Teacher) -> tuple[Tensor, dict[str, Array]]:
    """What the teacher is to see, and what the runtime is given: a model that takes bytes sees rounded pixels."""
    ((name, dtype),) = runtime.dtypes.items()
    if dtype == np.uint8:
        pixels = to_pixels(images, teacher.spec)
        return from_pixels(pixels, teacher.spec), {name: pixels.numpy()}
    return images, {name: images.numpy()}


def _is_here(spec: Mapping[str, Any]) -> bool:
    """Whether the engine's backend and its GPU are those of this machine."""
    return local_arch() == spec["arch"] and available(spec["backend"]) is not None


def _describe_engine(
    path: Path,
    spec: dict[str, Any],
    engine: EngineSession | None,
    synthetic: Mapping[str, Comparison],
    real: Mapping[str, Comparison] | None,
) -> dict[str, Any]:
    """The engine's spec; where it was executed, with its fidelity, and its kernels from its own inspector."""
    if engine is None:
        return spec
    runtime = f"{engine.provider} {engine.version} {spec['arch']}"
    kernels = engine_kernels(path.with_name(ENGINE_GRAPH), engine.layers(), runtime, "the engine's inspector")
    verdict = {"synthetic": synthetic[path.name].to_dict(), "real": real[path.name].to_dict() if real else None}
    return {**spec, "executed": True, "kernels": kernels.to_dict(), **verdict}


def _layer_gates(path: Path, weights: QuantizedWeights, layers: Sequence[LayerParity]) -> list[dict[str, Any]]:
    exact = sum(layer.exact for layer in layers)
    return [
        _at_least("integer_layers", _fitting_layers(path, weights), len(weights.layers)),
        _at_least("exact_layers", exact, len(layers)),
    ]


def _fidelity_gates(
    synthetic: Mapping[str, Comparison], real: Mapping[str, Comparison] | None, limits: Limits
) -> list[dict[str, Any]]:
    names = {"torch": "onnx_against_torch_kl", ONNX: "synthetic_kl", GRAPH: "engine_graph_kl"}
    gates = [
        _at_most(names.get(name, f"synthetic_kl_{name}"), found.kl, limits["max_kl"])
        for name, found in synthetic.items()
    ]
    for name, found in (real or {}).items():
        suffix = "" if name == ONNX else f"_{name}"
        assert found.top1_drop is not None  # labels were given
        gates.append(_at_least(f"real_agreement{suffix}", found.agreement, limits["min_agreement"]))
        gates.append(_at_most(f"real_top1_drop{suffix}", 100 * found.top1_drop, limits["max_drop"]))
    return gates


def _fitting_layers(path: Path, weights: QuantizedWeights) -> int:
    """How many layers' weights stand in the ONNX file as integers within their bits."""
    found = integer_weights(path)
    fitting = 0
    for name, bits in weights.layers.items():
        low, high = integer_range(bits.weight)
        smallest, largest = found.get(f"{name}.weight", (low - 1, high + 1))
        fitting += low <= smallest and largest <= high
    return fitting


def _describe_layers(layers: Sequence[LayerParity]) -> dict[str, Any]:
    """Every layer alone against torch's, on the same inputs."""
    return {
        "layers": len(layers),
        "exact": sum(layer.exact for layer in layers),
        "flipped_integers": max(layer.flipped for layer in layers),
        "largest_step": max(layer.largest_step for layer in layers),
        "largest_error": max(layer.error for layer in layers),
    }


def _at_least(name: str, value: float, limit: float | None) -> dict[str, Any]:
    return {"name": name, "value": value, "limit": limit, "passed": limit is None or value >= limit}


def _at_most(name: str, value: float, limit: float | None) -> dict[str, Any]:
    return {"name": name, "value": value, "limit": limit, "passed": limit is None or value <= limit}


def _speed(files: Files) -> dict[str, Any]:
    """Size, peak memory and latency; the two models are timed in turn, at each of `LATENCY_BATCHES`."""
    models = {"float": files.float32, "quantized": files.quantized}
    rows: dict[str, dict[str, Any]] = {
        name: {"bytes": path.stat().st_size, "peak_bytes": peak_bytes(path)} for name, path in models.items()
    }
    latency = []
    for batch in LATENCY_BATCHES:
        found = measure_latency(models, batch, provider=files.provider)
        times = {name: {"median_ms": one.median_ms, "p95_ms": one.p95_ms} for name, one in found.items()}
        ratio = times["quantized"]["median_ms"] / times["float"]["median_ms"]
        latency.append({"batch": batch, **times, "ratio": ratio})
    return {**rows, "latency": latency, "latency_ratio": latency[0]["ratio"]}
