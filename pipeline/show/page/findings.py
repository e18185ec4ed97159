"""What a run found, in one sentence and a few large figures. Nothing is said that was not measured."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from pipeline.record.manifest import Manifest
from pipeline.record.proof import Fidelity, Gate, LatencyRow, OnCpu

RUNTIMES = {"openvino": "OpenVINO"}
"""Of CPUs, other than ONNX Runtime."""
LEVEL = 0.03
"""Of a ratio around 1: less is no difference worth a word."""

MEANS = {
    "integer_layers": "layers whose weights are integers of their bits",
    "exact_layers": "layers that compute what torch's do, on the same inputs",
    "synthetic_kl": "KL to the teacher on synthetic pictures, nats",
    "engine_graph_kl": "the same of the graph that engines are built from",
    "float_onnx_kl": "the same of the float ONNX",
    "onnx_against_torch_kl": "KL of model.onnx to the torch module that it was made from, nats",
    "real_agreement": "agreement with the teacher on real pictures, %",
    "real_top1_drop": "points of top-1 lost on real pictures",
    "teacher_top1_above_chance": "the teacher's own top-1 on real pictures, %, against chance",
    "teacher_top1_for_its_confidence": "the teacher's own top-1, %, against its confidence",
    "integer_coverage": "share of quantized products that run on integers",
    "latency_ratio": "time of model.onnx, of the float ONNX's",
    "engine_ratio": "time of the engine, of the FP16 engine's",
}
"""By what a gate's name begins with."""
WAYS = {"_ort_file": ", model.ort.onnx", "_openvino": ", OpenVINO"}
"""By what it ends with."""


class Words(NamedTuple):
    """What less, more and the same of something is called."""

    less: str
    more: str
    level: str


SIZE = Words("smaller", "larger", "as large")
TIME = Words("faster", "slower", "as fast")


@dataclass(frozen=True)
class Tile:
    """A large figure, what it is, and what it is against."""

    figure: str
    what: str
    against: str
    kind: str = ""


def meaning(gate: Gate) -> str:
    """What a gate holds, in words."""
    names = [name for name in MEANS if gate.name.startswith(name)]
    of = next((way for ending, way in WAYS.items() if gate.name.endswith(ending)), "")
    return MEANS[max(names, key=len)] + of if names else ""


def judge_of(manifest: Manifest) -> tuple[Fidelity, str]:
    """The pictures that a reader asks about first, and what they are: real ones where there are some."""
    verdict = manifest.verdict
    found = verdict.real or verdict.synthetic
    return found, f"{found.n} {'real' if verdict.real else 'synthetic'} pictures"


def sentence(manifest: Manifest) -> str:
    """The verdict for whoever reads one sentence."""
    runtime, (found, pictures) = manifest.verdict.runtimes.onnxruntime, judge_of(manifest)
    parts = [_compared(runtime.quantized.bytes, runtime.float32.bytes, SIZE)]
    if ways := _ways(manifest):
        row, _ = ways["ONNX Runtime"]
        each = (
            f"{_compared(one.quantized.median_ms, one.float32.median_ms, TIME)} on {name}"
            for name, (one, _) in ways.items()
        )
        parts.append(f"{' and '.join(each)} ({where(manifest)}, {row.where})")
    return (
        "Against the float ONNX of the same teacher on ONNX Runtime, "
        f"the {manifest.bits or 'quantized'} model is {', '.join(parts)}, and it gives the teacher's answer to "
        f"{100 * found.agreement:.1f}% of {pictures}."
    )


def tiles(manifest: Manifest) -> list[Tile]:
    """Size, speed, answers, gates."""
    verdict, runtime = manifest.verdict, manifest.verdict.runtimes.onnxruntime
    large, small = runtime.float32.bytes, runtime.quantized.bytes
    found = [_tile(small, large, SIZE, f"{small / 1e6:.2f} MB, float {large / 1e6:.2f} MB")]
    if ways := _ways(manifest):
        name, (row, file) = min(ways.items(), key=lambda way: way[1][0].quantized.median_ms)
        quick, slow = row.quantized.median_ms, row.float32.median_ms
        times = f"{quick:.2f} ms ({file} on {name}), float {slow:.2f} ms on ONNX Runtime, {row.where}"
        found.append(_tile(quick, slow, TIME, times))
    fidelity, pictures = judge_of(manifest)
    low, high = fidelity.agreement_interval
    between = f"{100 * low:.1f}% to {100 * high:.1f}% at 95%, {pictures}"
    found.append(Tile(f"{100 * fidelity.agreement:.1f}%", "same answers as the teacher", between))
    held = sum(map(bool, verdict.gates))
    kind = "good" if verdict.passed else "bad"
    found.append(Tile(f"{held} of {len(verdict.gates)}", "gates passed", "what must hold of every run", kind))
    return found


def _ways(manifest: Manifest) -> dict[str, tuple[LatencyRow, str]]:
    """By runtime, at the smallest batch: the quickest file there beside the float one on ONNX Runtime, and its name."""
    found: dict[str, tuple[LatencyRow, str]] = {}
    runtimes = manifest.verdict.runtimes
    files = [("ONNX Runtime", "model.onnx", runtimes.onnxruntime.latency)]
    files += [(RUNTIMES.get(way.runtime, "ONNX Runtime"), way.file, way.latency) for way in runtimes.others]
    for name, file, rows in files:
        if (row := _first(rows)) and (
            name not in found or row.quantized.median_ms < found[name][0].quantized.median_ms
        ):
            found[name] = row, file
    return found if "ONNX Runtime" in found else {}


def way_of(way: OnCpu) -> str:
    """What runs there: a runtime where it is another one, or else a file."""
    return RUNTIMES.get(way.runtime, way.file)


def _tile(ours: float, theirs: float, words: Words, against: str) -> Tile:
    figure, word = _ratio(ours, theirs, words)
    return Tile(f"{figure}×", word, against)


def where(manifest: Manifest) -> str:
    """What ONNX Runtime ran on: `CPU` and the like."""
    return manifest.verdict.runtimes.onnxruntime.provider.removesuffix("ExecutionProvider").upper()


def failed(gates: Sequence[Gate]) -> list[Gate]:
    return [gate for gate in gates if not gate]


def _first(rows: Sequence[LatencyRow]) -> LatencyRow | None:
    """At the smallest batch, with all threads."""
    return min(rows, key=lambda row: (row.batch, -(row.threads or 0)), default=None)


def _compared(ours: float, theirs: float, words: Words) -> str:
    """As part of a sentence."""
    figure, word = _ratio(ours, theirs, words)
    return word if word == words.level else f"{figure} times {word}"


def _ratio(ours: float, theirs: float, words: Words) -> tuple[str, str]:
    """How many times, and its word."""
    times = theirs / ours if ours > 0 and theirs > 0 else 1.0
    if abs(times - 1) <= LEVEL:
        return "1.0", words.level
    return (f"{times:.1f}", words.less) if times > 1 else (f"{1 / times:.1f}", words.more)
