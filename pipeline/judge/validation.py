"""Are the files faithful? Every runtime that is here against the PyTorch teacher, layers against torch's, and gates."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import nn

from calib.scheme import integer_range
from calib.weights import QuantizedWeights
from export.edge.compare import Comparison
from export.edge.gpu import local_arch
from export.edge.registry import OPENVINO, available, find_engine_backend, find_runtime
from export.edge.runtime import Runtime, open_engine, open_runtime
from export.graph import integer_weights
from export.parity import LayerParity, layer_parity
from inversion.leaves import dead_leaves
from inversion.progress import Progress
from inversion.teacher import Teacher
from pipeline.judge.answers import (
    AT_ONCE,
    Judge,
    Model,
    Pictures,
    disputed,
    first,
    mistaken,
    most_disputed,
    of_runtime,
    together,
)
from pipeline.judge.speed import Placed, Speed, engine_rows, onnx_speed, runtime_of
from pipeline.pictures.valdata import ValData
from pipeline.record.gates import FLOAT, GRAPH, ONNX, ORT_FILE, Limits, Measured, gates_of, warnings
from pipeline.record.proof import (
    Answered,
    Disputed,
    Engine,
    EngineLatencyRow,
    ExecutedEngine,
    Fidelity,
    Kernels,
    Layers,
    OnCpu,
    OnKinds,
    Runtimes,
    Verdict,
)

OWN_FLOAT = "float on openvino"
PARITY_PICTURES, MODULE_PICTURES = 2, 50
"""Synthetic pictures on which single layers, and the whole file, are held against the torch module."""
LEAVES = "leaves"


@dataclass(frozen=True)
class Files:
    """What is judged: the quantized and the float ONNX, the file that only ONNX Runtime reads, the graph of the engines
    where ONNX Runtime can run it, and the engines, each with its record; `provider` is ONNX Runtime's."""

    quantized: Path
    float32: Path
    for_onnxruntime: Path | None = None
    engine_graph: Path | None = None
    engines: Sequence[tuple[Path, Engine]] = ()
    provider: str = "cpu"

    def others(self) -> dict[str, Placed]:
        """By name: what runs the quantized model on this machine's CPU, beside its ONNX file on ONNX Runtime."""
        if self.provider != "cpu":
            return {}
        ways = {ORT_FILE: Placed(self.for_onnxruntime)} if self.for_onnxruntime else {}
        return ways | ({OPENVINO: Placed(self.quantized, OPENVINO)} if available(OPENVINO) else {})

    def timed(self) -> dict[str, Placed]:
        """All that is timed beside the float model; of OpenVINO its own float model too."""
        others = self.others()
        own = {OWN_FLOAT: Placed(self.float32, OPENVINO)} if OPENVINO in others else {}
        mine = {FLOAT: Placed(self.float32, self.provider), ONNX: Placed(self.quantized, self.provider)}
        return mine | others | own


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

    return Pictures(LEAVES, count, batches, numbers=range(first_number, first_number + count))


def validate(
    teacher: Teacher,
    files: Files,
    reference: Reference | None,
    synthetic: Sequence[Pictures],
    val_data: ValData | None,
    limits: Limits,
    progress: Progress,
) -> Verdict:
    """All files against the teacher, and the gates.

    `synthetic` are pictures that neither calibration nor training has seen, kind by kind. The quantized and the float
    file, the engines' graph and the engines that run here all answer for every picture. Without `reference` nothing is
    said of single layers.
    """
    with ExitStack() as stack:
        onnx = stack.enter_context(open_runtime(files.quantized, files.provider))
        runtimes: dict[str, Runtime] = {ONNX: onnx, FLOAT: stack.enter_context(open_runtime(files.float32))}
        others = files.others()
        for name, way in others.items():
            runtimes[name] = stack.enter_context(open_runtime(way.path, way.provider))
        if files.engine_graph:
            runtimes[GRAPH] = stack.enter_context(open_runtime(files.engine_graph))
        here = [(path, engine) for path, engine in files.engines if _is_here(engine)]
        executed = {path: stack.enter_context(open_engine(path)) for path, _ in here}
        runtimes |= {path.name: session for path, session in executed.items()}
        models = {name: of_runtime(runtime, teacher.spec) for name, runtime in runtimes.items()}
        kinds = [*synthetic, *([Pictures.real(val_data)] if val_data else [])]
        if np.uint8 in onnx.dtypes.values():  # all files of a run take the same kind of input, and so does the teacher
            kinds = [pictures.in_bytes(teacher.spec) for pictures in kinds]
        found = _compared(teacher, models, kinds, progress)
        parity, layers = None, None
        if reference:
            parity = Judge(reference.module, first(kinds, MODULE_PICTURES))(models[ONNX])
            shown = torch.cat([images for images, _ in first(synthetic, PARITY_PICTURES).batches()])
            layers = layer_parity(files.quantized, reference.module, shown)
        beside = {path: engine_rows(executed[path], engine, files.float32) for path, engine in here}
        engines = tuple(
            _executed_engine(path, engine, beside[path].rows, found) if path in beside else engine
            for path, engine in files.engines
        )
        only = onnx.batches[1]
    timed = files.timed()
    speed = onnx_speed(timed, only)
    kernels = find_runtime(files.provider).kernels(files.quantized)
    beside_onnx = {name: _describe_other(name, way, found.of(name), speed) for name, way in others.items()}
    own = runtime_of(onnx, timed, speed, Kernels.of(kernels))
    measured = Measured(
        synthetic=found.synthetic,
        real=found.real or {},
        against_torch=parity,
        integer_layers=_fitting_layers(files.quantized, reference.weights) if reference else None,
        exact_layers=(sum(layer.exact for layer in layers), len(layers)) if layers else None,
        coverage={"": kernels.share}
        | {f"_{name}": other.kernels.share for name, other in beside_onnx.items()}
        | {f"_{engine.arch}": engine.kernels.share for engine in engines},
        latency_ratios={"": [row.ratio for row in own.latency]}
        | {f"_{name}": [row.ratio for row in other.latency] for name, other in beside_onnx.items()},
        engine_ratios=_engine_ratios(engines),
    )
    gates, answered = gates_of(measured, limits), found.of(ONNX)
    return Verdict(
        passed=all(gates),
        gates=gates,
        warnings=(
            *(val_data.left_out if val_data else ()),
            *found.warnings(),
            *(one.warning for one in beside.values() if one.warning),
        ),
        synthetic=answered.synthetic,
        real=answered.real,
        runtimes=Runtimes(own, engines or None, beside_onnx.get(ORT_FILE), beside_onnx.get(OPENVINO)),
        float32=found.of(FLOAT),
        engine_graph=found.of(GRAPH) if files.engine_graph else None,
        onnx_against_torch=Fidelity.of(parity) if parity else None,
        layers=_describe_layers(layers) if layers else None,
        disputed=found.disputed,
    )


@dataclass(frozen=True)
class _Found:
    """Every model against the teacher, by name: on all `synthetic` pictures together, on each of their `kinds`, and on
    `real` ones where there are some, of which `mistaken` says whose labels look wrong. `disputed` are synthetic."""

    synthetic: dict[str, Comparison]
    kinds: dict[str, dict[str, Comparison]]
    real: dict[str, Comparison] | None
    mistaken: list[str]
    disputed: tuple[Disputed, ...]

    def of(self, name: str) -> Answered:
        """One model's part of a manifest."""
        kinds = {kind: one[name] for kind, one in self.kinds.items()}
        real = Fidelity.of(self.real[name]) if self.real else None
        return Answered(OnKinds.all_of(self.synthetic[name], kinds), real)

    def warnings(self) -> list[str]:
        kinds = {kind: one[ONNX] for kind, one in self.kinds.items()}
        real = self.real[ONNX] if self.real else None
        return [*warnings(kinds, real, self.synthetic[ONNX].n), *self.mistaken]


def _compared(teacher: Teacher, models: Mapping[str, Model], kinds: Sequence[Pictures], progress: Progress) -> _Found:
    """All `models` on all pictures; those with labels are the real ones."""
    done, total, answers = 0, sum(pictures.count for pictures in kinds), {}

    def of_all(_kind: str, now: int, _count: int, value: float) -> None:
        progress("validation", done + now, total, value)

    for pictures in kinds:
        answers[pictures.kind] = Judge(teacher.logits, pictures).answers(models, of_all)
        done += pictures.count
    real = next((answers.pop(pictures.kind) for pictures in kinds if pictures.labelled), None)
    far = [disputed(each, answers[each.kind], ONNX) for each in kinds if each.kind in answers]
    return _Found(
        together(list(answers.values())).comparisons(),
        {kind: one.comparisons() for kind, one in answers.items()},
        real.comparisons() if real else None,
        mistaken(real) if real else [],
        most_disputed(one for part in far for one in part),
    )


def _is_here(engine: Engine) -> bool:
    """Whether the engine's backend and its GPU are those of this machine."""
    return local_arch() == engine.arch and available(engine.backend) is not None


def _executed_engine(
    path: Path, engine: Engine, latency: tuple[EngineLatencyRow, ...], found: _Found
) -> ExecutedEngine:
    """`engine` with its fidelity and times, and its kernels from its own inspector."""
    kernels = find_engine_backend(engine.backend).kernels(path)
    return ExecutedEngine.of(engine, Kernels.of(kernels), found.of(path.name), latency)


def _engine_ratios(engines: Sequence[Engine]) -> dict[str, float]:
    """By `_sm89` and the like, of engines that were timed beside FP16's."""
    ratios = {f"_{each.arch}": each.surely_of_float16 for each in engines if isinstance(each, ExecutedEngine)}
    return {suffix: ratio for suffix, ratio in ratios.items() if ratio is not None}


def _fitting_layers(path: Path, weights: QuantizedWeights) -> tuple[int, int]:
    """How many layers' weights stand in the ONNX file as integers within their bits, of how many."""
    found = integer_weights(path)
    fitting = 0
    for name, bits in weights.layers.items():
        low, high = integer_range(bits.weight)
        smallest, largest = found.get(f"{name}.weight", (low - 1, high + 1))
        fitting += low <= smallest and largest <= high
    return fitting, len(weights.layers)


def _describe_layers(layers: Sequence[LayerParity]) -> Layers:
    return Layers(
        layers=len(layers),
        exact=sum(layer.exact for layer in layers),
        flipped_integers=max(layer.flipped for layer in layers),
        largest_step=max(layer.largest_step for layer in layers),
        largest_error=max(layer.error for layer in layers),
    )


def _describe_other(name: str, way: Placed, answered: Answered, speed: Speed) -> OnCpu:
    """One of `Files.others`."""
    backend = find_runtime(way.provider)
    kernels = Kernels.of(backend.kernels(way.path))
    if way.provider != OPENVINO:  # two files on one runtime
        kernels = replace(kernels, runtime=f"{kernels.runtime}, {way.path.name}")
    return OnCpu(
        file=way.path.name,
        runtime=backend.name,
        version=backend.version,
        floats=backend.floats(),
        model=speed.model_file(name, way.path),
        synthetic=answered.synthetic,
        real=answered.real,
        latency=speed.rows(name, FLOAT),
        own_latency=speed.rows(name, OWN_FLOAT) if way.provider == OPENVINO else (),
        kernels=kernels,
    )
