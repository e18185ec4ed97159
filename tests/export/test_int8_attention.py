"""INT8 attention in torch's reference, in the ONNX graph, in ONNX Runtime and in TensorRT."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import numpy_helper
from torch import Tensor, nn

from calib.attention import QuantAttention, attention_layers, attention_quantizers
from calib.scheme import QuantScheme
from export.edge.registry import find_engine_backend
from export.edge.runtime import open_runtime
from export.graph import export_quantized, integer_weights
from export.qdq import QDQTensor, qdq_module
from inversion.errors import InputError
from tests.small import SPEC, Quantized, grey_images, quantize_by_max, small_vit

Make = Callable[..., Quantized]
INTEGER_PRODUCTS = ("MatMulIntegerToFloat", "QLinearMatMul", "MatMulInteger")


def attention_products(path: Path) -> list[tuple[str, list[str]]]:
    """Name of every MatMul that no linear owns, and the operators that make its inputs."""
    graph = onnx.load(path).graph
    made_by = {name: node.op_type for node in graph.node for name in node.output}
    products = [node for node in graph.node if node.op_type == "MatMul" and ".attn/" in node.name]
    return [(node.name, [made_by.get(name, "") for name in node.input]) for node in products]


@pytest.mark.parametrize("bits", ["w8a8", "w4a4", "w8a16"])
def test_both_products_take_dequantized_tensors(quantized: Make, bits: str) -> None:
    """With int8, each of a block's two products has DequantizeLinear on both inputs; with float, on neither."""
    names = [f"blocks.{block}.attn/{name}" for block in (0, 1) for name in ("MatMul", "MatMul_1")]
    found = attention_products(quantized(bits, "int8").path)
    assert found == [(name, ["DequantizeLinear", "DequantizeLinear"]) for name in names]
    assert [name for name, _ in attention_products(quantized(bits).path)] == names
    assert all("DequantizeLinear" not in inputs for _, inputs in attention_products(quantized(bits).path))


def test_softmax_is_quantized_directly_and_the_scale_comes_before(quantized: Make) -> None:
    """QuantizeLinear takes softmax's output as it is; nothing stands between a product and what it dequantizes."""
    graph = onnx.load(quantized("w8a8", "int8").path).graph
    nodes = {node.name: node for node in graph.node}
    for block in (0, 1):
        name = f"blocks.{block}.attn"
        assert nodes[f"{name}.softmax_quantizer/QuantizeLinear"].input[0] == f"{name}/Softmax"
        assert nodes[f"{name}/Softmax"].input[0] == f"{name}/MatMul"
        assert nodes[f"{name}.q_bmm_quantizer/QuantizeLinear"].input[0] == f"{name}/Mul"


def test_steps_in_the_file_are_those_of_the_weights(quantized: Make) -> None:
    """Under their own names, bit for bit; weights and their integers are not touched by int8 attention."""
    made = quantized("w4a8", "int8")
    stored = {value.name: numpy_helper.to_array(value) for value in onnx.load(made.path).graph.initializer}
    for block in (0, 1):
        for part in ("q", "k", "softmax", "v"):
            name = f"blocks.{block}.attn.{part}_step"
            assert stored[name] == made.weights.tensors[name].numpy()
    assert integer_weights(made.path) == integer_weights(quantized("w4a8").path)


def test_each_quantizer_rounds_to_eight_bits(quantized: Make) -> None:
    """Every one of the module's eight, with its own step, gives integers in [-128, 127] times the step."""
    made = quantized("w4a4", "int8")
    quantizers = attention_quantizers(made.module)
    assert len(quantizers) == 8
    for name, quantizer in quantizers.items():
        step = made.weights.tensors[f"{name}_step"]
        x = torch.tensor([-1000, -127.6, -2.3, 0, 0.4, 126.7, 1000]) * step
        want = torch.tensor([-128, -128, -2, 0, 0, 127, 127]) * step
        assert isinstance(quantizer, QDQTensor)
        assert torch.equal(quantizer(x), want)


def fake(step: Tensor, _: nn.Module, args: tuple[Tensor], __: object) -> Tensor:
    return (args[0] / step).round().clamp(-128, 127) * step


def test_module_equals_timm_with_hooks() -> None:
    """The module is timm's own forward with rounded weights and rounded inputs of both products."""
    model, images = small_vit(), grey_images(8)
    weights = quantize_by_max(model, QuantScheme.parse("w4a16", attention="int8"), images)
    teacher, logits = model(images), qdq_module(model, weights)(images)
    for name in weights.layers:
        model.get_submodule(name).weight.copy_(weights.float_weight(name))
    for attention in attention_layers(model).values():
        QuantAttention.take_over(attention, lambda _: nn.Identity())
    for name, quantizer in attention_quantizers(model).items():
        quantizer.register_forward_hook(partial(fake, weights.tensors[f"{name}_step"]))
    # a number halfway between two steps may go either way, which stays within the noise
    assert (logits - model(images)).norm() < 0.05 * (logits - teacher).norm()


@pytest.mark.parametrize("optimised", [False, True])
def test_attention_equals_torch_on_the_same_input(quantized: Make, optimised: bool, tmp_path: Path) -> None:
    """A block's attention by itself, as the file stands and as the runtime optimises it, is torch's own."""
    made, path = quantized("w8a8", "int8"), tmp_path / "attention.onnx"
    model = onnx.load(made.path)
    start, end = "blocks.1.norm1/LayerNormalization", "blocks.1.attn.proj/Add"
    onnx.save(onnx.utils.Extractor(model).extract_model([start], [end]), path)
    attention = made.module.blocks[1].attn
    x = attention.qkv.fake_quantize(torch.randn(4, 65, 96, generator=torch.Generator().manual_seed(0)))
    want = attention(x).numpy()
    if optimised:
        with open_runtime(path) as session:
            got = session.run({start: x.numpy()})[end]
    else:
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        got = session.run([end], {start: x.numpy()})[0]
    # float sums in another order flip a number in a thousand by one step of its quantizer
    assert np.linalg.norm(got - want) < 0.01 * np.linalg.norm(want)


@pytest.mark.parametrize("bits", ["w8a8", "w4a8", "w8a16"])
def test_logits_agree_with_torch_end_to_end(quantized: Make, bits: str) -> None:
    """Through ONNX Runtime the file differs from torch by less than a quarter of the quantization noise itself."""
    made = quantized(bits, "int8")
    want = made.module(made.images).numpy()
    noise = np.linalg.norm(want - made.model(made.images).numpy())
    assert noise > 0
    with open_runtime(made.path) as session:
        for batch in (1, 16):
            got = session.run({"input": made.images[:batch].numpy()})["logits"]
            assert np.linalg.norm(got - want[:batch]) < 0.25 * noise


@pytest.mark.parametrize("batch", [None, 1])
def test_every_product_is_an_integer_product_in_onnx_runtime(
    quantized: Make, batch: int | None, tmp_path: Path
) -> None:
    """All linears and both products of each block fuse: no float product is left."""
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    options.log_severity_level = 3
    if batch is not None:
        options.add_free_dimension_override_by_name("batch", batch)
    made = quantized("w8a8", "int8")
    onnxruntime.InferenceSession(str(made.path), options, providers=["CPUExecutionProvider"])
    found = Counter(node.op_type for node in onnx.load(tmp_path / "optimised.onnx").graph.node)
    assert sum(found[op] for op in INTEGER_PRODUCTS) == len(made.weights.layers) + 2 * len(made.model.blocks)
    assert sum(found[op] for op in ("MatMul", "FusedMatMul", "Gemm", "DequantizeLinear")) == 0


def test_largest_queries_and_keys_do_not_saturate(quantized: Make, tmp_path: Path) -> None:
    """Queries and keys at the end of their range give torch's product: no 16-bit sum of two products overflows."""
    made, path = quantized("w8a8", "int8"), tmp_path / "product.onnx"
    inputs = ["blocks.0.attn/Mul", "blocks.0.attn/Transpose_1"]
    onnx.save(onnx.utils.Extractor(onnx.load(made.path)).extract_model(inputs, ["blocks.0.attn/MatMul"]), path)
    tensors = made.weights.tensors
    q, k = (torch.full(shape, 127.0) * tensors[f"blocks.0.attn.{part}_step"]
            for part, shape in (("q", (2, 3, 65, 32)), ("k", (2, 3, 32, 65))))  # fmt: skip
    q[:, :, 1::2] *= -1
    with open_runtime(path) as session:
        (got,) = session.run(dict(zip(inputs, (q.numpy(), k.numpy()), strict=True))).values()
    np.testing.assert_allclose(got, (q @ k).numpy(), rtol=1e-5)


def test_tensorrt_builds_it(quantized: Make, tmp_path: Path) -> None:
    """A real engine for sm89 comes out of the graph, which is not that of float attention."""
    made = quantized("w8a8", "int8")
    spec = find_engine_backend("tensorrt_rtx").build(made.path, tmp_path / "e.plan", "sm89")
    assert spec.bytes == (tmp_path / "e.plan").stat().st_size > 10_000


def test_attention_that_has_no_int8_form_is_refused() -> None:
    """Weights with int8 attention do not go into a model whose attention is another one."""
    model = small_vit()
    weights = quantize_by_max(model, QuantScheme.parse("w8a8", attention="int8"), grey_images(2))
    model.blocks[1].attn.__class__ = type("Strange", (type(model.blocks[1].attn),), {})
    with pytest.raises(InputError, match=r"^blocks\.1\.attn is Strange, which has no INT8 form"):
        qdq_module(model, weights)


def test_file_is_the_same_in_every_export(quantized: Make, tmp_path: Path) -> None:
    """Exported twice, the bytes are equal."""
    made = quantized("w8a8", "int8")
    module = qdq_module(small_vit(), made.weights)
    export_quantized(module, SPEC, tmp_path / "m.onnx", {"teacher": "small", "scheme": "w8a8"})
    assert (tmp_path / "m.onnx").read_bytes() == made.path.read_bytes()
