"""From a teacher to the ONNX file: quantizers inserted, ranges set, steps trained, saved, loaded, exported."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from timm.models.vision_transformer import VisionTransformer

from calib.freeze import freeze
from calib.layers import layer_bits, quantized_layers
from calib.lsq import keep_positive, learn_steps
from calib.quantization import change_basis
from calib.ranges import calibrate, input_quantizers, insert_quantizers
from calib.scheme import QuantScheme, integer_range
from calib.settings import Basis, Calibration
from calib.views import Views
from calib.weights import QuantizedWeights
from export.edge.runtime import open_runtime
from export.graph import export_quantized
from export.qdq import qdq_module
from inversion.sparse import patchify
from inversion.teacher import Teacher
from tests.small import SPEC, grey_images, small_vit

SCHEMES = {
    "plain": QuantScheme.parse("w4a8"),
    "overrides": QuantScheme.parse("w4a8", "w8a16", layers={"blocks.0.*": "w6a6", "*.fc2": "w3a16", "head": "w5a5"}),
    "int8 attention": QuantScheme.parse("w4a8", attention="int8"),
    "all": QuantScheme.parse("w4a4", attention="int8", layers={"blocks.*.attn.*": "w8a8", "blocks.1.mlp.*": "w2a16"}),
}


@dataclass(frozen=True)
class Way:
    """The trained module, what was frozen of it, what its file gives back, and the ONNX file."""

    student: VisionTransformer
    frozen: QuantizedWeights
    loaded: QuantizedWeights
    path: Path


@pytest.fixture(scope="module")
def teacher() -> Teacher:
    return Teacher(small_vit(), SPEC, "small", "0" * 64)


@pytest.fixture(scope="module", params=SCHEMES)
def way(request: pytest.FixtureRequest, teacher: Teacher, tmp_path_factory: pytest.TempPathFactory) -> Way:
    scheme, folder = SCHEMES[request.param], tmp_path_factory.mktemp("way")
    patches = patchify(grey_images(12), (4, 4))
    views = Views(((patches, torch.arange(patches.shape[1]).expand(len(patches), -1)),))
    student = insert_quantizers(teacher.model, scheme)
    calibrate(student, teacher.model, views, views.first(4), Calibration(method="max"))
    _train(student, teacher)
    frozen = freeze(student, teacher, scheme)
    frozen.save(folder / "quantized.safetensors")
    loaded = QuantizedWeights.load(folder / "quantized.safetensors")
    export_quantized(qdq_module(teacher.model, loaded), SPEC, folder / "model.onnx", {})
    return Way(student, frozen, loaded, folder / "model.onnx")


def _train(student: VisionTransformer, teacher: Teacher) -> None:
    """A few updates of all weights and steps; each step moves."""
    steps = learn_steps(student)
    before = [step.detach().clone() for step in steps]
    optimizer = torch.optim.Adam(student.requires_grad_(True).parameters(), lr=1e-4)
    for _ in range(4):
        loss = (student(grey_images(12)) - teacher.model(grey_images(12))).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        keep_positive(steps)
    assert not any(torch.equal(step, old) for step, old in zip(steps, before, strict=True))


def test_scheme_and_bits_survive(way: Way) -> None:
    """The file's scheme is equal, and gives each layer the bits that its quantizers had."""
    assert way.loaded.scheme == way.frozen.scheme
    assert way.loaded.layers == layer_bits(way.student, way.frozen.scheme)
    for name, layer in quantized_layers(way.student).items():
        assert layer.weight_quantizer.num_bits == way.loaded.layers[name].weight


def test_every_integer_survives(way: Way) -> None:
    """The integers that the trained module computes with are those of the ONNX file, within each layer's bits."""
    stored = {value.name: numpy_helper.to_array(value) for value in onnx.load(way.path).graph.initializer}
    for name, layer in quantized_layers(way.student).items():
        quantizer = layer.weight_quantizer
        low, high = integer_range(quantizer.num_bits)
        want = (quantizer(layer.weight) / quantizer.step).round().detach().flatten(1).t().numpy()
        assert stored[f"{name}.weight"].dtype == np.int8
        assert np.array_equal(stored[f"{name}.weight"], want), name
        assert low <= want.min() < want.max() <= high
        assert np.array_equal(stored[f"{name}.weight_step"], quantizer.step.detach().flatten().numpy())


def test_every_input_step_survives(way: Way) -> None:
    """Each learned input step stands in the ONNX file under its name, bit for bit, and there is no other."""
    stored = {value.name: numpy_helper.to_array(value) for value in onnx.load(way.path).graph.initializer}
    quantizers = input_quantizers(way.student)
    linears = quantized_layers(way.student)
    names = {f"{name}.input_step" if name in linears else f"{name}_step": part for name, part in quantizers.items()}
    for name, quantizer in names.items():
        assert stored[name] == quantizer.step.detach().numpy(), name
    steps = {name for name in stored if name.endswith("_step") and not name.endswith("weight_step")}
    assert steps == names.keys()


def test_module_torch_reference_and_runtime_answer_alike(way: Way, teacher: Teacher) -> None:
    """The trained module, the Q/DQ module and ONNX Runtime part by less than a quarter of the quantization noise."""
    images = grey_images(12)
    with torch.no_grad():
        ours, reference, float_ = (
            way.student(images),
            qdq_module(teacher.model, way.loaded)(images),
            teacher.model(images),
        )
    with open_runtime(way.path) as session:
        runtime = torch.from_numpy(session.run({"input": images.numpy()})["logits"])
    noise = (ours - float_).norm()
    # a number halfway between two steps may go either way in each of them
    assert (reference - ours).norm() < 0.25 * noise
    assert (runtime - reference).norm() < 0.25 * noise


@pytest.mark.parametrize("options", [{}, {"init_values": 0.1, "no_embed_class": True}, {"qkv_bias": False}])
def test_another_basis_costs_no_node_and_no_byte(tmp_path: Path, options: dict[str, Any]) -> None:
    """The graph is that of the weights as they come, node for node; but for LayerScale's products, which are gone."""
    model = small_vit(depth=1, **options)
    patches = patchify(grey_images(12), (4, 4))
    views = Views(((patches, torch.arange(patches.shape[1]).expand(len(patches), -1)),))
    counts, sizes, scheme = [], [], QuantScheme.parse("w4a8")
    for basis in (Basis(method="none"), Basis(updates=5)):
        rebased, *_ = change_basis(model, scheme, basis)
        student = insert_quantizers(rebased, scheme)
        calibrate(student, rebased, views, views.first(4), Calibration(method="max"))
        learn_steps(student)
        weights = freeze(student, Teacher(model, SPEC, "small", "0" * 64), scheme)
        export_quantized(qdq_module(model, weights), SPEC, tmp_path / "model.onnx", {})
        counts.append(Counter(node.op_type for node in onnx.load(tmp_path / "model.onnx").graph.node))
        sizes.append((tmp_path / "model.onnx").stat().st_size)
    scaled = 2 * len(model.blocks) if options.get("init_values") else 0
    assert counts[0] - counts[1] == (Counter(Mul=scaled) if scaled else Counter())
    assert not counts[1] - counts[0]
    assert sizes[1] <= sizes[0]
