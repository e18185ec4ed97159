"""Engines on their GPU. Skipped, and so not passed, on a machine without one."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from calib.freeze import freeze
from calib.lsq import learn_steps
from calib.ranges import calibrate, insert_quantizers
from calib.scheme import QuantScheme
from calib.settings import Calibration
from calib.views import dense_views
from export.edge.build import build_engines, build_float_engine
from export.edge.compare import compare
from export.edge.gpu import local_arch
from export.edge.latency import time_in_turn
from export.edge.registry import available_backend, find_engine_backend
from export.edge.runtime import answer, open_engine, open_runtime
from export.graph import export_float, export_quantized
from export.onnx_file import export_onnx
from export.qdq import qdq_module
from inversion.errors import InputError
from inversion.leaves import dead_leaves
from inversion.teacher import load_teacher
from tests.small import grey_images, quantize_by_max

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


def test_an_engine_answers_as_onnxruntime_does(tmp_path: Path) -> None:
    """On batches 1 to the profile's largest; its inspector says that every linear runs on INT8."""
    backend, arch = available_backend(), local_arch()
    assert backend is not None
    assert arch is not None
    teacher, scheme = load_teacher("digits_vit"), QuantScheme.parse("w8a8")
    pictures = dead_leaves(teacher.spec, 16, 0)
    views = dense_views(pictures, teacher.patch_size)
    student = insert_quantizers(teacher.model, scheme)
    calibrate(student, teacher.model, views, views, Calibration(method="max"))
    learn_steps(student)
    model = tmp_path / "model.onnx"
    export_quantized(qdq_module(teacher.model, freeze(student, teacher, scheme)), teacher.spec, model, {})
    ((path, _),) = build_engines(model, tmp_path, [arch], backend)
    with open_runtime(model) as runtime, open_engine(path) as engine:
        expected = runtime.run({"input": pictures.numpy()})["logits"]
        for batch in (1, 8, 16):
            found = engine.run({"input": pictures[:batch].numpy()})["logits"]
            assert compare(expected[:batch], found).kl < 0.01
        kernels = find_engine_backend(backend).kernels(path)
        assert (kernels.share, kernels.source) == (1, "the engine's inspector")
        with pytest.raises(InputError, match="takes float32"):
            engine.run({"input": np.zeros((64, 1, 32, 32), np.float32)})


def test_a_teacher_on_the_gpu_gives_the_same_file(tmp_path: Path) -> None:
    """Copies go to the CPU: the bytes are those of the teacher on the CPU, and the teacher stays where it is."""
    teacher, there = load_teacher("digits_vit"), load_teacher("digits_vit", device="cuda")
    weights = quantize_by_max(teacher.model, "w4a8", grey_images(4))
    weights = dataclasses.replace(weights, teacher_sha256=teacher.sha256)
    export_onnx(teacher, weights, tmp_path / "cpu.onnx")
    export_onnx(there, weights, tmp_path / "gpu.onnx")
    export_float(there.model, there.spec, tmp_path / "float.onnx", {})
    assert (tmp_path / "gpu.onnx").read_bytes() == (tmp_path / "cpu.onnx").read_bytes()
    assert there.device.type == "cuda"


def test_an_engine_is_timed_beside_fp16(tmp_path: Path) -> None:
    """FP16's engine is built and run; both answer at every batch of the profile. Which is faster, benchmarks tell."""
    backend, arch = available_backend(), local_arch()
    assert backend is not None
    assert arch is not None
    teacher = load_teacher("digits_vit")
    float32, model = tmp_path / "float.onnx", tmp_path / "model.onnx"
    export_float(teacher.model, teacher.spec, float32, {})
    weights = quantize_by_max(teacher.model, "w8a8", grey_images(16))
    export_quantized(qdq_module(teacher.model, weights), teacher.spec, model, {})
    ((path, _),) = build_engines(model, tmp_path, [arch], backend, batches=(1, 2, 4))
    plain = build_float_engine(float32, tmp_path, arch, backend, (1, 2, 4))
    with open_engine(path) as quantized, open_engine(plain) as session:
        for batch in (1, 2, 4):
            found = time_in_turn({"int8": quantized, "float16": session}, batch, runs=10, warmup=2)
            assert all(latency.median_ms > 0 for latency in found.values())
        pictures = dead_leaves(teacher.spec, 8, 0)
        expected = teacher.logits(pictures).numpy()
        assert compare(expected, answer(session, pictures.numpy())).kl < 1e-3
