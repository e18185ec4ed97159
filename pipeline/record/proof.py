"""The proof of a run, as the `validation` of manifest.json: what its files answer beside the teacher, and the gates.

Types of what lies on disk: what was added since the first version has a default, so that older proofs can be read.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

if TYPE_CHECKING:
    from export.edge.compare import Comparison
    from export.edge.kernels import Coverage

Size = Annotated[int, Field(ge=0, lt=2**63)]
Number = int | float
Interval = tuple[float, float]
OpenInterval = tuple[float, float | None]
"""Its end is None where nothing bounds it: of one picture alone."""
Shape = tuple[int, ...]


@dataclass(frozen=True)
class Gate:
    """What must hold of a run, and whether it does: true or false."""

    name: str
    value: Number
    limit: Number
    passed: bool

    def __bool__(self) -> bool:
        return self.passed


@dataclass(frozen=True)
class Fidelity:
    """A `Comparison` on disk: what is infinite there, or needs labels and had none, is None."""

    n: Size
    agreement: float
    agreement_interval: Interval
    kl: float
    kl_interval: OpenInterval
    sqnr_db: float | None
    cosine: float
    teacher_confidence: float | None = None
    teacher_top1: float | None = None
    teacher_top1_interval: Interval | None = None
    chance: float | None = None
    top1: float | None = None
    top5: float | None = None
    top1_drop: float | None = None
    top1_drop_interval: Interval | None = None

    @classmethod
    def of(cls, found: Comparison) -> Fidelity:
        return cls(**_values(found))


@dataclass(frozen=True)
class OnKinds(Fidelity):
    """On all synthetic pictures together, and on each of their kinds."""

    kinds: dict[str, Fidelity] = field(default_factory=dict)

    @classmethod
    def all_of(cls, found: Comparison, kinds: Mapping[str, Comparison]) -> OnKinds:
        return cls(**_values(found), kinds={kind: Fidelity.of(one) for kind, one in kinds.items()})


def _values(found: Comparison) -> dict[str, Any]:
    return {key: tuple(value) if isinstance(value, list) else value for key, value in found.to_dict().items()}


@dataclass(frozen=True)
class Answered:
    """One model against the teacher; `real` is None where no real picture judged."""

    synthetic: OnKinds
    real: Fidelity | None


@dataclass(frozen=True)
class Counts:
    """Products that run on integers, of all."""

    integer: Size
    all: Size


@dataclass(frozen=True)
class FloatProduct:
    """A MatMul that runs on floats, and why: an `export.edge.kernels.Product` on disk."""

    name: str
    linear: bool
    quantized: bool
    kernel: str
    integer: bool
    reason: str


@dataclass(frozen=True)
class Kernels:
    """How a runtime computes a model's products: an `export.edge.kernels.Coverage` on disk."""

    runtime: str
    source: str
    share: float
    layer_types: dict[str, int]
    linears: Counts
    attention: Counts
    as_floats: tuple[FloatProduct, ...]

    @classmethod
    def of(cls, found: Coverage) -> Kernels:
        told = found.to_dict()
        counts = {part: Counts(**told[part]) for part in ("linears", "attention")}
        return cls(**{**told, **counts, "as_floats": tuple(FloatProduct(**each) for each in told["as_floats"])})


@dataclass(frozen=True)
class ModelFile:
    """A file's size, and the memory that running it takes at most."""

    bytes: Size
    peak_bytes: Size


@dataclass(frozen=True)
class Times:
    """Of one model at one batch."""

    median_ms: float
    p95_ms: float


@dataclass(frozen=True)
class LatencyRow:
    """Both models at one batch, timed in turn, each in a process of its own on `threads` of the CPU; `ratio` is
    quantized to float, by medians.

    `threads` are None on what is no CPU. Earlier versions took all that there were, and one process for both.
    """

    batch: Size
    float32: Annotated[Times, Field(alias="float")]
    quantized: Times
    ratio: float
    threads: Size | None = None

    @property
    def where(self) -> str:
        """As "batch 1, 2 threads"."""
        threads = "" if self.threads is None else f", {self.threads} thread{'s' if self.threads > 1 else ''}"
        return f"batch {self.batch}{threads}"


@dataclass(frozen=True)
class EngineLatencyRow:
    """An engine and the FP16 engine of the float model at one batch, timed in turn on the GPU; `ratio` is the median of
    quantized to FP16, with its 95% interval."""

    batch: Size
    float16: Times
    quantized: Times
    ratio: float
    ratio_interval: tuple[float, float]


@dataclass(frozen=True)
class OnnxRuntime:
    """The runtime that judges, and both models in it."""

    version: str
    provider: str
    executed: bool
    float32: Annotated[ModelFile, Field(alias="float")]
    quantized: ModelFile
    latency: tuple[LatencyRow, ...]
    latency_ratio: float
    kernels: Kernels


@dataclass(frozen=True)
class OnCpu:
    """Another way to run the quantized model on a CPU, judged as model.onnx on ONNX Runtime is: its `file` and runtime.

    - `floats`       type of what is not quantized
    - `latency`      beside the float model on ONNX Runtime
    - `own_latency`  beside the float model on this runtime; none where that is ONNX Runtime
    """

    file: str
    runtime: str
    version: str
    floats: str
    model: ModelFile
    synthetic: OnKinds
    real: Fidelity | None
    latency: tuple[LatencyRow, ...]
    own_latency: tuple[LatencyRow, ...]
    kernels: Kernels

    @property
    def in_words(self) -> str:
        """What runs which file."""
        if self.runtime == "openvino":
            return f"OpenVINO {self.version}, {self.floats} beside the integers"
        return f"ONNX Runtime, {self.file}"


@dataclass(frozen=True)
class TensorRange:
    """An engine's input or output, and its shapes at the smallest, optimal and largest batch."""

    name: str
    dtype: str
    min: Shape
    opt: Shape
    max: Shape


@dataclass(frozen=True)
class Engine:
    """An engine in the run folder: its file name and its `export.edge.engine_spec.EngineSpec`."""

    path: str
    backend: str
    version: str
    arch: str
    compute_capability: str
    inputs: tuple[TensorRange, ...]
    outputs: tuple[TensorRange, ...]
    onnx_sha256: str
    sha256: str
    bytes: Size
    build_seconds: float
    kernels: Kernels
    build_command: str
    time_command: str
    timing_cache: dict[str, str] | None
    executed: bool


@dataclass(frozen=True)
class ExecutedEngine(Engine):
    """One that ran on this machine's GPU, with its answers, its times, and kernels as its own inspector tells them.
    `latency` is empty where no FP16 engine could be built beside it."""

    synthetic: OnKinds
    real: Fidelity | None
    latency: tuple[EngineLatencyRow, ...] = ()

    @classmethod
    def of(
        cls, engine: Engine, kernels: Kernels, answered: Answered, latency: tuple[EngineLatencyRow, ...] = ()
    ) -> ExecutedEngine:
        values = {**vars(engine), "executed": True, "kernels": kernels}
        return cls(**values, synthetic=answered.synthetic, real=answered.real, latency=latency)

    @property
    def surely_of_float16(self) -> float | None:
        """Share of the FP16 engine's time that this one surely takes, at the batch where that is most: above 1 it is
        the slower one."""
        return max((row.ratio_interval[0] for row in self.latency), default=None)


@dataclass(frozen=True)
class Runtimes:
    """`tensorrt` is None where no engine was built, `openvino` where it is not installed, `onnxruntime_file` (the file
    that only ONNX Runtime reads) where there is none."""

    onnxruntime: OnnxRuntime
    tensorrt: tuple[ExecutedEngine | Engine, ...] | None
    onnxruntime_file: OnCpu | None = None
    openvino: OnCpu | None = None

    @property
    def engines(self) -> tuple[Engine, ...]:
        return self.tensorrt or ()

    @property
    def others(self) -> tuple[OnCpu, ...]:
        """Other ways on a CPU than model.onnx on ONNX Runtime."""
        return tuple(way for way in (self.onnxruntime_file, self.openvino) if way)

    @property
    def kernels(self) -> list[Kernels]:
        """Of each runtime and engine."""
        others = [way.kernels for way in self.others]
        return [self.onnxruntime.kernels, *others, *(engine.kernels for engine in self.engines)]


@dataclass(frozen=True)
class Layers:
    """Every linear alone against torch's, on the same inputs: how many there are, and how many are `exact`."""

    layers: Size
    exact: Size
    flipped_integers: float
    largest_step: int
    largest_error: float


@dataclass(frozen=True)
class Disputed:
    """A synthetic picture by its kind and number: of mosaics that of the trajectory, of leaves that of their drawing;
    `kl` there, in nats, and the classes that the teacher and model.onnx give, each with its own probability."""

    kind: str
    number: Size
    kl: float
    teacher: Size
    teacher_confidence: float
    quantized: Size
    quantized_confidence: float


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """Whether a run passed and why: its gates, then model.onnx on `synthetic` and `real` pictures, its runtimes, the
    float file, the graph of its engines, the file against the torch module that it was made from, its layers, and the
    synthetic pictures on which it is furthest from the teacher.

    A single ONNX file has neither `onnx_against_torch` nor `layers`. Earlier versions told less of `engine_graph`.
    """

    passed: bool
    gates: tuple[Gate, ...]
    warnings: tuple[str, ...] = ()
    synthetic: OnKinds
    real: Fidelity | None
    runtimes: Runtimes
    float32: Annotated[Answered | None, Field(alias="float")] = None
    engine_graph: Answered | Fidelity | None
    onnx_against_torch: Fidelity | None
    layers: Layers | None
    disputed: tuple[Disputed, ...] = ()

    @property
    def kinds(self) -> dict[str, Fidelity]:
        """On synthetic pictures, kind by kind; earlier versions told of no kinds."""
        return self.synthetic.kinds or {"synthetic": self.synthetic}
