"""Is the ONNX file faithful? ONNX Runtime against the PyTorch teacher, on synthetic and on real pictures, and gates."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from calib.quantized import QuantizedWeights
from calib.scheme import integer_range
from export.compare import Comparison, compare
from export.graph import integer_weights
from export.runtime import measure_latency, open_runtime
from inversion.teacher import Teacher
from pipeline.display import Advance
from pipeline.valdata import ValData

BATCH = 25


def validate(
    teacher: Teacher,
    weights: QuantizedWeights,
    reference: nn.Module,
    folder: Path,
    held_out: Tensor,
    val_data: ValData | None,
    limits: dict[str, float],
    advance: Advance,
) -> dict[str, Any]:
    """The `validation` part of the manifest for `folder`/model.onnx, made from `weights`.

    `held_out` [M, C, H, W] are synthetic images that neither calibration nor training has seen; `reference` is the
    quantized model in torch.
    """
    path = folder / "model.onnx"
    blank = torch.zeros(len(held_out), dtype=torch.long)
    synthetic_teacher, synthetic_onnx, _ = _answers(teacher, path, [(held_out, blank)], 0, advance)
    synthetic = compare(synthetic_teacher, synthetic_onnx)
    with torch.inference_mode():
        parity = compare(reference(held_out).numpy(), synthetic_onnx)
    real = None
    if val_data:
        real = compare(*_answers(teacher, path, val_data.batches(BATCH), len(held_out), advance))
    gates = _gates(limits, synthetic, real, parity, _fitting_layers(path, weights), len(weights.layers))
    return {
        "passed": all(gate["passed"] for gate in gates),
        "gates": gates,
        "synthetic": synthetic.to_dict(),
        "real": real.to_dict() if real else None,
        "runtimes": {"onnxruntime": _onnxruntime(folder), "tensorrt": None},
        "onnx_against_torch": parity.to_dict(),
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
def _answers(
    teacher: Teacher, path: Path, batches: Iterable[tuple[Tensor, Tensor]], done: int, advance: Advance
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Logits of the teacher and of ONNX Runtime [M, num_classes], and labels [M]."""
    theirs, ours, labels = [], [], []
    with open_runtime(path) as runtime:
        for images, target in batches:
            theirs.append(teacher.model(images.to(teacher.device)).float().cpu().numpy())
            ours.append(runtime.run({"input": images.numpy()})["logits"])
            labels.append(target.numpy())
            done += len(target)
            advance(done, "")
    return np.concatenate(theirs), np.concatenate(ours), np.concatenate(labels)


def _fitting_layers(path: Path, weights: QuantizedWeights) -> int:
    """How many layers' weights stand in the ONNX file as integers within their bits."""
    found = integer_weights(path)
    fitting = 0
    for name, bits in weights.layers.items():
        low, high = integer_range(bits.weight)
        smallest, largest = found.get(f"{name}.weight", (low - 1, high + 1))
        fitting += low <= smallest and largest <= high
    return fitting


def _gates(
    limits: dict[str, float],
    synthetic: Comparison,
    real: Comparison | None,
    parity: Comparison,
    fitting: int,
    layers: int,
) -> list[dict[str, Any]]:
    gates = [
        _at_least("integer_layers", fitting, layers),
        _at_most("onnx_against_torch_kl", parity.kl, limits["max_kl"]),
        _at_most("synthetic_kl", synthetic.kl, limits["max_kl"]),
    ]
    if real:
        assert real.top1_drop is not None  # labels were given
        gates.append(_at_least("real_agreement", real.agreement, limits["min_agreement"]))
        gates.append(_at_most("real_top1_drop", 100 * real.top1_drop, limits["max_drop"]))
    return gates


def _at_least(name: str, value: float, limit: float) -> dict[str, Any]:
    return {"name": name, "value": value, "limit": limit, "passed": value >= limit}


def _at_most(name: str, value: float, limit: float) -> dict[str, Any]:
    return {"name": name, "value": value, "limit": limit, "passed": value <= limit}


def _onnxruntime(folder: Path) -> dict[str, Any]:
    """Version, size and latency; the two models are timed in turn."""
    models = {"float": folder / "model.fp32.onnx", "quantized": folder / "model.onnx"}
    with open_runtime(models["quantized"]) as runtime:
        about = {"version": runtime.version, "provider": runtime.provider, "executed": True}
    latency = measure_latency(models, batch=1)
    rows = {
        key: {"bytes": path.stat().st_size, "median_ms": latency[key].median_ms, "p95_ms": latency[key].p95_ms}
        for key, path in models.items()
    }
    return {**about, **rows, "latency_ratio": rows["quantized"]["median_ms"] / rows["float"]["median_ms"]}
