from __future__ import annotations

import hashlib
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import numpy_helper
from timm.models.deit import VisionTransformerDistilled
from torch import nn

from export.edge.runtime import open_runtime
from export.graph import export_float, export_quantized, integer_weights, write_int4
from export.qdq import QDQLinear, qdq_module
from inversion.errors import InputError
from tests.small import SPEC, Quantized, grey_images, quantize_by_max, small_vit

Make = Callable[[str], Quantized]
PRODUCTS = ("MatMul", "Gemm", "FusedMatMul", "MatMulIntegerToFloat", "QLinearMatMul", "MatMulNBits")


def plain_session(path: Path) -> onnxruntime.InferenceSession:
    """Every node as it stands in the file."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def write_layer(source: Path, layer: str, target: Path) -> None:
    """The nodes of one linear as a model of their own, from the linear's input to its output."""
    graph = onnx.load(source).graph
    nodes = [node for node in graph.node if node.name.startswith(f"{layer}/")]
    used = {name for node in nodes for name in node.input}
    inputs = used - {value.name for value in graph.initializer} - {name for node in nodes for name in node.output}
    tensor = onnx.helper.make_tensor_value_info
    part = onnx.helper.make_graph(
        nodes,
        layer,
        [tensor(name, onnx.TensorProto.FLOAT, None) for name in inputs],
        [tensor(nodes[-1].output[0], onnx.TensorProto.FLOAT, None)],
        [value for value in graph.initializer if value.name in used],
    )
    onnx.save(onnx.helper.make_model(part, opset_imports=[onnx.helper.make_opsetid("", 21)], ir_version=10), target)


def layer_inputs(quantized: Quantized) -> dict[str, np.ndarray]:
    """What each linear is given when the module sees its images."""
    found: dict[str, np.ndarray] = {}
    parts = {name: part for name, part in quantized.module.named_modules() if isinstance(part, QDQLinear)}
    hooks = [
        part.register_forward_pre_hook(lambda _, args, name=name: found.update({name: args[0].numpy()}))
        for name, part in parts.items()
    ]
    quantized.module(quantized.images)
    for hook in hooks:
        hook.remove()
    return found


@pytest.mark.parametrize("bits", ["w8a8", "w4a8", "w4a4", "w8a16"])
def test_each_layer_equals_torch(quantized: Make, bits: str, tmp_path: Path) -> None:
    """On the same input, every linear gives torch's output, as the file stands and as the runtime optimises it."""
    made = quantized(bits)
    given = layer_inputs(made)
    assert given.keys() == made.weights.layers.keys()
    for name, x in given.items():
        part = made.module.get_submodule(name)
        # on the grid both sides round alike: x / step and x * (1 / step) part where a number lies halfway
        on_grid = part.fake_quantize(torch.from_numpy(x))
        want = part(on_grid).numpy()
        write_layer(made.path, name, tmp_path / "layer.onnx")
        session = plain_session(tmp_path / "layer.onnx")
        feeds = {session.get_inputs()[0].name: on_grid.numpy()}
        with open_runtime(tmp_path / "layer.onnx") as runtime:
            optimised = next(iter(runtime.run(feeds).values()))
        # float32 sums in another order
        atol = 1e-5 * np.abs(want).max()
        np.testing.assert_allclose(session.run(None, feeds)[0], want, rtol=0, atol=atol, err_msg=name)
        np.testing.assert_allclose(optimised, want, rtol=0, atol=atol, err_msg=name)


@pytest.mark.parametrize("bits", ["w8a8", "w4a4"])
def test_each_input_is_quantized_as_in_torch(quantized: Make, bits: str, tmp_path: Path) -> None:
    """Off the grid and beyond the range, at most one number in a thousand is rounded to the neighbouring step."""
    made = quantized(bits)
    for name, x in layer_inputs(made).items():
        write_layer(made.path, name, tmp_path / "layer.onnx")
        model = onnx.load(tmp_path / "layer.onnx")
        model.graph.output[0].name = f"{name}/DequantizeLinear"
        onnx.save(model, tmp_path / "layer.onnx")
        session = plain_session(tmp_path / "layer.onnx")
        got = session.run(None, {session.get_inputs()[0].name: 2 * x})[0]
        part = made.module.get_submodule(name)
        want = part.fake_quantize(torch.from_numpy(2 * x)).numpy()
        steps = np.abs(got.reshape(want.shape) - want) / part.input_step
        assert steps.max() < 1.001
        assert (steps > 0.001).mean() < 1e-3


def test_runtime_does_not_saturate(quantized: Make, tmp_path: Path) -> None:
    """The largest inputs against the largest weights give torch's sum: no 16-bit sum of two products overflows."""
    made = quantized("w8a8")
    for name in made.weights.layers:
        part = made.module.get_submodule(name)
        x = part.input_step * 127 * torch.sign(part.float_weight()[:, 0]).reshape(1, 1, -1)
        write_layer(made.path, name, tmp_path / "layer.onnx")
        with open_runtime(tmp_path / "layer.onnx") as runtime:
            key, rank = next(iter(runtime.inputs)), 2 if name == "head" else 3
            (got,) = runtime.run({key: x.numpy().reshape((1,) * (rank - 1) + (-1,))}).values()
        want = part(x).numpy()
        np.testing.assert_allclose(got.reshape(want.shape), want, rtol=0, atol=1e-5 * np.abs(want).max())


@pytest.mark.parametrize("bits", ["w8a8", "w4a8"])
def test_logits_agree_with_torch_end_to_end(quantized: Make, bits: str) -> None:
    """End to end the file differs from torch by less than a quarter of the quantization noise itself."""
    made = quantized(bits)
    want = made.module(made.images).numpy()
    noise = np.linalg.norm(want - made.model(made.images).numpy())
    for batch in (1, 3, 16):
        got = plain_session(made.path).run(["logits"], {"input": made.images[:batch].numpy()})[0]
        assert got.shape == (batch, 10)
        assert np.linalg.norm(got - want[:batch]) < 0.25 * noise


@pytest.mark.parametrize("bits", ["w8a8", "w4a8", "w4a4", "w8a16"])
def test_integers_in_the_file_are_the_quantized_weights(quantized: Make, bits: str) -> None:
    """Weights, weight steps and input steps in the file equal those of `QuantizedWeights`, bit for bit."""
    made = quantized(bits)
    graph = onnx.load(made.path).graph
    stored = {value.name: numpy_helper.to_array(value) for value in graph.initializer}
    for name, layer in made.weights.layers.items():
        weight = made.weights.tensors[f"{name}.weight"].flatten(1).t().numpy()
        assert stored[f"{name}.weight"].dtype == np.int8
        assert np.array_equal(stored[f"{name}.weight"], weight)
        assert np.array_equal(stored[f"{name}.weight_step"], made.weights.tensors[f"{name}.weight_step"].numpy())
        if layer.activation < 16:
            assert stored[f"{name}.input_step"] == made.weights.tensors[f"{name}.input_step"].numpy()
        assert integer_weights(made.path)[f"{name}.weight"] == (weight.min(), weight.max())
    assert integer_weights(made.path).keys() == {f"{name}.weight" for name in made.weights.layers}


@pytest.mark.parametrize("bits", ["w8a8", "w4a4", "w8a16"])
def test_file_holds_standard_operators_and_no_float_copy(quantized: Make, bits: str) -> None:
    """Only ONNX's own operators of opset 21, only float tensors that are no linear's weight, and the metadata."""
    made = quantized(bits)
    model = onnx.load(made.path)
    assert {node.domain for node in model.graph.node} == {""}
    assert [(opset.domain, opset.version) for opset in model.opset_import] == [("", 21)]
    assert not model.functions
    integers = sum(value.numel() for value in made.weights.tensors.values() if value.dtype == torch.int8)
    others = sum(value.numel() for value in made.weights.tensors.values() if value.dtype != torch.int8)
    stored = Counter()
    for value in model.graph.initializer:
        stored[value.data_type] += int(np.prod(value.dims))
    assert stored[onnx.TensorProto.INT8] < 1.02 * integers  # and zero points
    assert stored[onnx.TensorProto.FLOAT] < others + 100  # and constants such as attention's scale
    assert {entry.key: entry.value for entry in model.metadata_props} == {"teacher": "small", "scheme": bits}


def test_batch_is_dynamic_and_named(quantized: Make, float_path: Path) -> None:
    """`input` is [batch, C, H, W] and `logits` [batch, classes] in both files."""
    for path in (quantized("w8a8").path, float_path):
        graph = onnx.load(path).graph
        shapes = {
            value.name: [size.dim_param or size.dim_value for size in value.type.tensor_type.shape.dim]
            for value in (*graph.input, *graph.output)
        }
        assert shapes == {"input": ["batch", 1, 32, 32], "logits": ["batch", 10]}


@pytest.mark.parametrize("batch", [None, 1, 4])
@pytest.mark.parametrize("bits", ["w8a8", "w4a4"])
def test_every_linear_fuses_in_onnx_runtime(quantized: Make, bits: str, batch: int | None, tmp_path: Path) -> None:
    """With dynamic and with static batch, each linear becomes one integer MatMul; attention's products stay float. What
    lies between is lean: one Split a block behind no five dimensions, and no SkipLayerNormalization."""
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    options.log_severity_level = 3
    if batch is not None:
        options.add_free_dimension_override_by_name("batch", batch)
    made = quantized(bits)
    onnxruntime.InferenceSession(str(made.path), options, providers=["CPUExecutionProvider"])
    found = Counter(node.op_type for node in onnx.load(tmp_path / "optimised.onnx").graph.node)
    assert found["MatMulIntegerToFloat"] == len(made.weights.layers) == 10
    assert sum(found[op] for op in PRODUCTS) == len(made.weights.layers) + 2 * len(made.model.blocks)
    assert found["DequantizeLinear"] == found["SkipLayerNormalization"] == 0
    assert (found["Split"], found["Squeeze"], found["Sum"]) == (len(made.model.blocks), 1, 1)


def test_names_are_the_modules(quantized: Make, float_path: Path) -> None:
    """Nodes, values and constants are named after the modules, none after a counter; no trace of the exporter."""
    for path in (quantized("w4a4").path, float_path):
        graph = onnx.load(path).graph
        names = [node.name for node in graph.node] + [value.name for value in graph.initializer]
        names += [name for node in graph.node for name in node.output]
        assert {"blocks.1.mlp.fc1/MatMul", "blocks.1.mlp.fc1.weight", "blocks.1.mlp.fc1.bias"} <= set(names)
        assert not [name for name in names if name.startswith(("val_", "node_", "_", "/"))]
        assert len({node.name for node in graph.node}) == len(graph.node)
        for part in (graph, *graph.node, *graph.value_info, *graph.input, *graph.output, *graph.initializer):
            assert not part.doc_string
            assert not part.metadata_props


def test_float_file_equals_the_teacher(float_path: Path) -> None:
    """The float file computes the teacher's logits to float32 rounding."""
    images = grey_images(3)
    got = plain_session(float_path).run(["logits"], {"input": images.numpy()})[0]
    np.testing.assert_allclose(got, small_vit()(images).numpy(), rtol=1e-4, atol=1e-4)


def test_two_heads_are_averaged(tmp_path: Path) -> None:
    """A distilled teacher's file gives the mean of both heads, each quantized."""
    model = small_vit(VisionTransformerDistilled, depth=1)
    images = grey_images(4)
    module = qdq_module(model, quantize_by_max(model, "w8a16", images))
    export_quantized(module, SPEC, tmp_path / "m.onnx", {})
    assert {"head.weight", "head_dist.weight"} <= integer_weights(tmp_path / "m.onnx").keys()
    got = plain_session(tmp_path / "m.onnx").run(["logits"], {"input": images.numpy()})[0]
    np.testing.assert_allclose(got, module(images).numpy(), rtol=1e-4, atol=1e-4)


def test_int4_file_holds_the_same_numbers(quantized: Make, tmp_path: Path) -> None:
    """Packed, the integers are those of the INT8 file, and the logits are equal."""
    made, path = quantized("w4a8"), tmp_path / "int4.onnx"
    layers = [name for name, bits in made.weights.layers.items() if bits.weight == 4]
    write_int4(made.path, path, layers)
    onnx.checker.check_model(onnx.load(path), full_check=True)
    stored = {value.name: value for value in onnx.load(path).graph.initializer}
    for name in made.weights.layers:
        value = stored[f"{name}.weight"]
        assert value.data_type == (onnx.TensorProto.INT4 if name in layers else onnx.TensorProto.INT8)
        integers = numpy_helper.to_array(value).astype(np.int8)
        assert np.array_equal(integers, made.weights.tensors[f"{name}.weight"].flatten(1).t().numpy())
    assert integer_weights(path) == integer_weights(made.path)
    feeds = {"input": made.images.numpy()}
    assert np.array_equal(plain_session(path).run(None, feeds)[0], plain_session(made.path).run(None, feeds)[0])
    packed = sum(made.weights.tensors[f"{name}.weight"].numel() for name in layers) // 2
    assert made.path.stat().st_size - path.stat().st_size == pytest.approx(packed, rel=0.05)


def test_int4_refuses_what_does_not_fit(quantized: Make, tmp_path: Path) -> None:
    """A layer with larger integers, or that is not there, is refused by name, and no file appears."""
    path = tmp_path / "int4.onnx"
    with pytest.raises(InputError, match=r"'head.weight' does not fit 4 bits, \[-8, 7\]"):
        write_int4(quantized("w4a8").path, path, ["blocks.0.attn.qkv", "head"])
    with pytest.raises(InputError, match=r"has no weight .blocks\.9\.attn\.qkv\.weight."):
        write_int4(quantized("w4a8").path, path, ["blocks.9.attn.qkv"])
    assert not path.exists()


def test_bytes_do_not_depend_on_the_process(quantized: Make, tmp_path: Path) -> None:
    """The same weights give the same file in another process with another hash seed, and the exporter is silent."""
    code = (
        "import sys; from pathlib import Path\n"
        "from export.graph import export_quantized; from export.qdq import qdq_module\n"
        "from tests.small import SPEC, grey_images, quantize_by_max, small_vit\n"
        "m, x = small_vit(), grey_images(16)\n"
        "module = qdq_module(m, quantize_by_max(m, 'w8a8', x))\n"
        "export_quantized(module, SPEC, Path(sys.argv[1]), {'scheme': 'w8a8', 'teacher': 'small'})\n"
    )
    root = Path(__file__).parents[2]
    path = tmp_path / "again.onnx"
    done = subprocess.run(
        [sys.executable, "-c", code, str(path)],
        cwd=root,
        env={"PYTHONHASHSEED": "7", "PYTHONPATH": str(root), "OMP_NUM_THREADS": str(torch.get_num_threads())},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    first, second = (hashlib.sha256(file.read_bytes()).hexdigest() for file in (quantized("w8a8").path, path))
    assert first == second


def test_a_model_that_no_file_can_hold_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Weights beyond protobuf's 2 GB are refused before anything is written."""
    monkeypatch.setattr("export.graph.MAX_BYTES", 1000)
    with pytest.raises(InputError, match=r"GB of weights, an ONNX file holds 2"):
        export_float(small_vit(depth=1), SPEC, tmp_path / "m.onnx", {})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("content", [b"", b"not a model" * 9])
def test_what_is_no_onnx_file_is_refused(content: bytes, tmp_path: Path) -> None:
    """Reading integers from another file says that it is not ONNX."""
    (tmp_path / "m.onnx").write_bytes(content)
    with pytest.raises(InputError, match=r"m.onnx' is not an ONNX file: make one with"):
        integer_weights(tmp_path / "m.onnx")
    with pytest.raises(InputError, match="does not exist"):
        integer_weights(tmp_path / "missing.onnx")


def test_fewer_bits_than_the_carrier_are_clamped_in_the_file(quantized: Make) -> None:
    """Below 8 bits a Clip stands before each QuantizeLinear, at the layer's own range."""
    made = quantized("w4a4")
    graph = onnx.load(made.path).graph
    stored = {value.name: numpy_helper.to_array(value) for value in graph.initializer}
    clips = {node.name: node for node in graph.node if node.op_type == "Clip"}
    inner = {name: bits for name, bits in made.weights.layers.items() if bits.activation < 8}
    assert clips.keys() == {f"{name}/Clip" for name in inner}
    assert made.weights.layers.keys() - inner.keys() == {"patch_embed.proj", "head"}
    for name, bits in inner.items():
        step = float(made.weights.tensors[f"{name}.input_step"])
        bounds = [stored[value] for value in clips[f"{name}/Clip"].input[1:]]
        assert bounds == [np.float32(limit * step) for limit in bits.input_range]


def test_module_is_an_nn_module_with_named_integers(quantized: Make) -> None:
    """The torch reference carries int8 buffers [in, out] under the layers' names."""
    made = quantized("w8a8")
    assert isinstance(made.module, nn.Module)
    buffers = dict(made.module.named_buffers())
    for name in made.weights.layers:
        weight = buffers[f"{name}.weight"]
        assert weight.dtype == torch.int8
        assert torch.equal(weight.t(), made.weights.tensors[f"{name}.weight"].flatten(1))
