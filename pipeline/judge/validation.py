"""Are the files faithful? Every runtime that is here against the PyTorch teacher, layers against torch's, and gates."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from calib.scheme import integer_range
from calib.weights import QuantizedWeights
from export.edge.compare import Comparison
from export.edge.gpu import local_arch
from export.edge.latency import measure_latency, peak_bytes
from export.edge.registry import available, find_engine_backend, find_runtime
from export.edge.runtime import Runtime, open_engine, open_runtime
from export.graph import integer_weights
from export.parity import LayerParity, layer_parity
from inversion.leaves import dead_leaves
from inversion.teacher import Teacher
from pipeline.judge.answers import AT_ONCE, Pictures, against_module, first, judge, mistaken, together
from pipeline.pictures.valdata import ValData
from pipeline.record.gates import (
    FLOAT,
    GRAPH,
    ONNX,
    Gate,
    Limits,
    at_least,
    at_most,
    real_gates,
    synthetic_gates,
    warnings,
)
from pipeline.show.display import Advance

LATENCY_BATCHES = (1, 8)
LATENCY_SECONDS = 8.0
"""For each batch; benchmarks/runtimes.py takes longer."""
PARITY_PICTURES, MODULE_PICTURES = 2, 50
"""Synthetic pictures on which single layers, and the whole file, are held against the torch module."""
LEAVES = "leaves"


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


def proof_leaves(teacher: Teacher, count: int, seed: int, first_number: int) -> Pictures:
    """`count` dead leaves from number `first_number` on, which nothing has learned from; made as they are asked for."""

    def batches() -> Iterable[tuple[torch.Tensor, torch.Tensor]]:
        for start in range(0, count, AT_ONCE):
            size = min(AT_ONCE, count - start)
            yield dead_leaves(teacher.spec, size, seed, first_number + start), torch.zeros(size, dtype=torch.long)

    return Pictures(LEAVES, count, batches)


def labelled(val_data: ValData) -> Pictures:
    """The real pictures."""
    return Pictures("real", len(val_data), lambda: val_data.batches(AT_ONCE), labelled=True)


def validate(
    teacher: Teacher,
    files: Files,
    reference: Reference | None,
    synthetic: Sequence[Pictures],
    val_data: ValData | None,
    limits: Limits,
    advance: Advance,
) -> dict[str, Any]:
    """The `validation` part of a manifest.

    `synthetic` are pictures that neither calibration nor training has seen, kind by kind. The quantized and the float
    file, the engines' graph and the engines that run here all answer for every picture. Without `reference` nothing is
    said of single layers.
    """
    with ExitStack() as stack:
        onnx = stack.enter_context(open_runtime(files.quantized, files.provider))
        runtimes: dict[str, Runtime] = {ONNX: onnx, FLOAT: stack.enter_context(open_runtime(files.float32))}
        if files.engine_graph:
            runtimes[GRAPH] = stack.enter_context(open_runtime(files.engine_graph))
        executed = {path: stack.enter_context(open_engine(path)) for path, spec in files.engines if _is_here(spec)}
        runtimes |= {path.name: engine for path, engine in executed.items()}
        about = {"version": onnx.version, "provider": onnx.provider, "executed": True}
        found = _compared(teacher, runtimes, synthetic, val_data, advance)
        parity, layers = None, None
        if reference:
            parity = against_module(onnx, reference.module, teacher, first(synthetic, MODULE_PICTURES))
            shown = torch.cat(list(first(synthetic, PARITY_PICTURES)))
            layers = layer_parity(files.quantized, reference.module, shown)
        engines = [_describe_engine(path, spec, executed.get(path), found) for path, spec in files.engines]
        speed = _speed(files, onnx.batches[1])
    kernels = find_runtime(files.provider).kernels(files.quantized)
    gates = [
        *(_layer_gates(files.quantized, reference.weights, layers) if reference and layers else []),
        *synthetic_gates(found.synthetic, limits),
        *([at_most("onnx_against_torch_kl", parity.kl_interval[1], limits["max_kl"])] if parity else []),
        *(real_gates(found.real, limits) if found.real else []),
        at_least("integer_coverage", kernels.share, limits["min_integer_coverage"]),
        *(
            at_least(f"integer_coverage_{engine['arch']}", engine["kernels"]["share"], limits["min_integer_coverage"])
            for engine in engines
        ),
        *(at_most("latency_ratio", row["ratio"], limits["max_latency_ratio"]) for row in speed["latency"]),
    ]
    gates = [gate for gate in gates if gate["limit"] is not None]
    return {
        "passed": all(gate["passed"] for gate in gates),
        "gates": gates,
        "warnings": [*(val_data.left_out if val_data else ()), *found.warnings()],
        **found.of(ONNX),
        "runtimes": {ONNX: {**about, **speed, "kernels": kernels.to_dict()}, "tensorrt": engines or None},
        "float": found.of(FLOAT),
        "engine_graph": found.of(GRAPH) if files.engine_graph else None,
        "onnx_against_torch": parity.to_dict() if parity else None,
        "layers": _describe_layers(layers) if layers else None,
    }


@dataclass(frozen=True)
class _Found:
    """Every model against the teacher, by name: on all `synthetic` pictures together, on each of their `kinds`, and on
    `real` ones where there are some, of which `mistaken` says whose labels look wrong."""

    synthetic: dict[str, Comparison]
    kinds: dict[str, dict[str, Comparison]]
    real: dict[str, Comparison] | None
    mistaken: list[str]

    def of(self, name: str) -> dict[str, Any]:
        """One model's part of a manifest."""
        kinds = {kind: one[name].to_dict() for kind, one in self.kinds.items()}
        real = self.real[name].to_dict() if self.real else None
        return {"synthetic": {**self.synthetic[name].to_dict(), "kinds": kinds}, "real": real}

    def warnings(self) -> list[str]:
        kinds = {kind: one[ONNX] for kind, one in self.kinds.items()}
        real = self.real[ONNX] if self.real else None
        return [*warnings(kinds, real, self.synthetic[ONNX].n), *self.mistaken]


def _compared(
    teacher: Teacher,
    runtimes: Mapping[str, Runtime],
    synthetic: Sequence[Pictures],
    val_data: ValData | None,
    advance: Advance,
) -> _Found:
    done, answers = 0, []

    def on_picture(now: int) -> None:
        advance(done + now, "")

    for pictures in (*synthetic, *([labelled(val_data)] if val_data else [])):
        answers.append(judge(teacher, runtimes, pictures, on_picture))
        done += pictures.count
    of_real = answers.pop() if val_data else None
    return _Found(
        together(answers).comparisons(),
        {pictures.kind: one.comparisons() for pictures, one in zip(synthetic, answers, strict=True)},
        of_real.comparisons() if of_real else None,
        mistaken(of_real) if of_real else [],
    )


def _is_here(spec: Mapping[str, Any]) -> bool:
    """Whether the engine's backend and its GPU are those of this machine."""
    return local_arch() == spec["arch"] and available(spec["backend"]) is not None


def _describe_engine(
    path: Path,
    spec: dict[str, Any],
    engine: Runtime | None,
    found: _Found,
) -> dict[str, Any]:
    """The engine's spec; where it was executed, with its fidelity, and its kernels from its own inspector."""
    if engine is None:
        return spec
    kernels = find_engine_backend(spec["backend"]).kernels(path)
    return {**spec, "executed": True, "kernels": kernels.to_dict(), **found.of(path.name)}


def _layer_gates(path: Path, weights: QuantizedWeights, layers: Sequence[LayerParity]) -> list[Gate]:
    exact = sum(layer.exact for layer in layers)
    return [
        at_least("integer_layers", _fitting_layers(path, weights), len(weights.layers)),
        at_least("exact_layers", exact, len(layers)),
    ]


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


def _speed(files: Files, only: int | None) -> dict[str, Any]:
    """Size, peak memory and latency; the two models are timed in turn, at each of `LATENCY_BATCHES` or, of a model that
    takes no other, at batch `only`."""
    models = {"float": files.float32, "quantized": files.quantized}
    rows: dict[str, dict[str, Any]] = {
        name: {"bytes": path.stat().st_size, "peak_bytes": peak_bytes(path)} for name, path in models.items()
    }
    latency = []
    for batch in (only,) if only else LATENCY_BATCHES:
        found = measure_latency(models, batch, provider=files.provider, budget_s=LATENCY_SECONDS)
        times = {name: {"median_ms": one.median_ms, "p95_ms": one.p95_ms} for name, one in found.items()}
        ratio = times["quantized"]["median_ms"] / times["float"]["median_ms"]
        latency.append({"batch": batch, **times, "ratio": ratio})
    return {**rows, "latency": latency, "latency_ratio": latency[0]["ratio"]}
