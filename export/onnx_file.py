"""From a teacher and its quantized weights to an ONNX file, in one call."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from calib.weights import QuantizedWeights
from export.graph import export_quantized
from export.qdq import qdq_module
from inversion.errors import InputError
from inversion.teacher import Teacher

if TYPE_CHECKING:
    from calib.quantization import Quantized  # ModelOpt comes with it, and nothing here needs that


def export_onnx(
    teacher: Teacher,
    quantized: Quantized | QuantizedWeights | Path | str,
    path: Path | str,
    uint8_input: bool = False,
) -> None:
    """Write `quantized`, or what the file of that name holds, as a Q/DQ graph with INT8 weights and dynamic batch.

    `input` is float32 [batch, C, H, W], normalised, or with `uint8_input` uint8 [batch, H, W, C], pixels 0 to 255;
    `logits` is float32 [batch, num_classes]. The file names teacher, scheme and, where they are known, labels in its
    metadata. The teacher may lie on a GPU, and stays there. Raises `InputError` for weights of another teacher, or a
    model of more than 2 GB.

        export_onnx(teacher, "quantized.safetensors", "model.onnx")
    """
    weights = _weights(quantized)
    if weights.teacher_sha256 != teacher.sha256:
        raise InputError(
            f"the quantized weights were made from another teacher than {teacher.name!r}: give that of "
            f"{weights.teacher!r}, with its own checkpoint."
        )
    about = {"teacher": weights.teacher, "teacher_sha256": weights.teacher_sha256, "scheme": str(weights.scheme)}
    if teacher.labels:
        about["labels"] = json.dumps(list(teacher.labels))
    export_quantized(qdq_module(teacher.model, weights), teacher.spec, Path(path), about, uint8_input)


def _weights(quantized: Quantized | QuantizedWeights | Path | str) -> QuantizedWeights:
    if isinstance(quantized, QuantizedWeights):
        return quantized
    if isinstance(quantized, Path | str):
        return QuantizedWeights.load(quantized)
    return quantized.weights
