"""Quantized weights in, ONNX files out."""

from __future__ import annotations

import json
import math

from calib.scheme import FLOAT_BITS
from calib.weights import QuantizedWeights
from export.edge.exactness import ALWAYS, WHERE_PRODUCTS_SATURATE
from export.edge.ort_graph import ORT_GRAPH, write_ort_graph
from export.graph import export_float, export_quantized, write_int4
from export.qdq import qdq_module
from inversion.publish import publish
from pipeline.pictures.preprocess import preprocess_steps
from pipeline.record.manifest import Facts
from pipeline.run import reads
from pipeline.run.folder import file_sha256
from pipeline.run.job import Job
from pipeline.run.pace import Pace
from pipeline.run.preflight import require_same_teacher
from pipeline.run.stage import Stage, StageResult

OUTPUT = {"name": "logits", "dtype": "float32", "rule": "a number a class, in class order; softmax is not applied"}


EXPORT, EXPORT_BLOCK = 1e6, 3.7e5
"""What the exporter takes, and what more for a block, in calls of torch (`Pace.call`)."""


class Export(Stage):
    """`quantized.safetensors` -> model.onnx, model.ort.onnx of the same for ONNX Runtime alone, model.int4.onnx where
    weights have 4 bits, model.fp32.onnx to compare with, preprocess.json. All carry what is known of teacher, scheme,
    labels and preprocessing."""

    name = "export"
    version = 5
    libraries = ("torch", "timm", "onnx", "onnxscript", "onnx_ir")

    def reads(self, job: Job) -> Facts:
        return {
            "teacher": reads.of_teacher(job.teacher),
            "name": job.teacher.name,
            "picture": reads.of_pictures(job.teacher),
            "labels": job.labels,
            **reads.settings(job.recipe, "export"),
        }

    def cost(self, job: Job, pace: Pace) -> float:
        """Tracing both models, block by block: Python's work, whatever their widths; and writing them."""
        return (EXPORT + EXPORT_BLOCK * len(job.teacher.model.blocks)) * pace.call

    def run(self, job: Job) -> StageResult:
        quantized, folder, uint8_input = job.places.quantized, job.places.folder, job.recipe.export.uint8_input
        weights, spec = QuantizedWeights.load(quantized), job.teacher.spec
        require_same_teacher(job.teacher, weights.teacher_sha256, quantized)
        folder.mkdir(parents=True, exist_ok=True)
        preprocess = preprocess_steps(spec, uint8_input)
        about = {
            "teacher": weights.teacher,
            "teacher_sha256": weights.teacher_sha256,
            "quantized_sha256": file_sha256(quantized),
            "preprocess": json.dumps(preprocess),
            **({"labels": json.dumps(list(job.labels))} if job.labels else {}),
        }
        names = ("model.onnx", "model.fp32.onnx", "model.int4.onnx", ORT_GRAPH)
        model, baseline, packed, fast = (folder / name for name in names)
        with job.display.progress() as progress:
            module = qdq_module(job.teacher.model, weights)
            export_quantized(module, spec, model, {**about, "scheme": str(weights.scheme)}, uint8_input)
            progress(self.name, 1, 3, math.nan)
            export_float(job.teacher.model, spec, baseline, {**about, "scheme": "float32"}, uint8_input)
            progress(self.name, 2, 3, math.nan)
            for each in (packed, fast):
                each.unlink(missing_ok=True)
            integer = any(bits.activation < FLOAT_BITS for bits in weights.layers.values())
            if integer:
                write_ort_graph(model, fast)
            if four_bits := [name for name, bits in weights.layers.items() if bits.weight <= 4]:
                write_int4(model, packed, four_bits)
            steps = folder / "preprocess.json"
            session = {"session_config": ALWAYS, "session_config_on_x86_without_vnni": WHERE_PRODUCTS_SATURATE}
            told = {**preprocess, "output": OUTPUT, **({"labels": list(job.labels)} if job.labels else {})}
            publish(steps, json.dumps({**told, "onnxruntime": session}, indent=1).encode())
            progress(self.name, 3, 3, math.nan)
        others = [*([packed] if four_bits else []), *([fast] if integer else [])]
        return StageResult([model, baseline, *others, steps])
