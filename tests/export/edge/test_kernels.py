"""Which products run on integers: read from ONNX Runtime's optimised graph, and from TensorRT's layer lines."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import onnx
import pytest

from export.edge.kernels import Coverage, engine_kernels, require_quantized, sentences
from export.edge.registry import find_runtime
from export.graph import write_int4
from inversion.errors import InputError
from tests.small import Quantized

Make = Callable[..., Quantized]


def onnxruntime_kernels(path: Path) -> Coverage:
    return find_runtime("cpu").kernels(path)


@pytest.mark.parametrize("bits", ["w8a8", "w4a8", "w4a4"])
def test_every_linear_runs_on_integers(quantized: Make, bits: str) -> None:
    """All ten linears of two blocks, patch embedding and head; attention's products are float, as the scheme says."""
    found = onnxruntime_kernels(quantized(bits).path).to_dict()
    assert found["share"] == 1
    assert found["linears"] == {"integer": 10, "all": 10}
    assert found["attention"] == {"integer": 0, "all": 4}
    assert {product["reason"] for product in found["as_floats"]} == {"its inputs are float: nothing quantizes them"}
    assert found["layer_types"]["MatMulIntegerToFloat"] == 10


def test_attention_on_integers(quantized: Make) -> None:
    """With INT8 attention its four products count as well, and run on integers too."""
    found = onnxruntime_kernels(quantized("w8a8", "int8").path)
    assert (found.share, len(found.products)) == (1, 14)
    assert all(product.integer for product in found.products)


def test_float_inputs_are_not_held_against_the_runtime(quantized: Make) -> None:
    """w8a16 asks for no integer product, so none is missed, and none is claimed."""
    found = onnxruntime_kernels(quantized("w8a16").path)
    assert found.share == 1
    assert not any(product.integer or product.quantized for product in found.products)


def test_packed_weights_say_why_they_run_on_floats(quantized: Make, tmp_path: Path) -> None:
    """The file with INT4 weights is found out, with the reason."""
    made = quantized("w4a8")
    packed_layers = [name for name, layer in made.weights.layers.items() if layer.weight <= 4]
    write_int4(made.path, tmp_path / "m.onnx", packed_layers)
    found = onnxruntime_kernels(tmp_path / "m.onnx")
    packed = [product for product in found.products if product.quantized and not product.integer]
    assert found.share < 0.5
    assert {product.reason for product in packed} == {
        "ONNX Runtime has no product of INT4 weights and INT8 activations"
    }


def test_a_linear_that_does_not_fuse_is_found(quantized: Make, tmp_path: Path) -> None:
    """A dequantized input that is an output as well keeps its product from fusing; layer and reason are named."""
    model = onnx.load(quantized("w8a8").path)
    user = next(node for node in model.graph.node if node.name == "blocks.1.mlp.fc1/MatMul")
    extra = onnx.helper.make_node("Identity", [user.input[0]], ["tap"], name="tap")
    model.graph.node.append(extra)
    shape: list[str | int | None] = ["batch", 65, 96]
    model.graph.output.append(onnx.helper.make_tensor_value_info("tap", onnx.TensorProto.FLOAT, shape))
    onnx.save(model, tmp_path / "m.onnx")
    found = onnxruntime_kernels(tmp_path / "m.onnx")
    (lost,) = [product for product in found.products if product.quantized and not product.integer]
    assert lost.name == "blocks.1.mlp.fc1/MatMul"
    assert lost.reason.startswith("ONNX Runtime did not fuse its DequantizeLinear nodes")
    assert found.share == pytest.approx(9 / 10)


def line(kind: str, node: str, types: tuple[str, ...], extra: str = "") -> str:
    given = ", ".join(f"{{ Name: x, Dimensions: [8,65,96], Format/Datatype: {kind} }}" for kind in types)
    return f"Name: l, LayerType: {kind}, Inputs: [{given}{extra}], Outputs: [], Metadata: [ONNX Layer: {node}]"


def test_layer_lines_are_read(quantized: Make) -> None:
    """INT8 by INT8 is an integer kernel; INT8 by Half is not, nor is a product that no line names."""
    path = quantized("w8a8").path
    half, whole = "blocks.0.attn.qkv/MatMul", "blocks.0.mlp.fc1/MatMul"
    alpha = ", { Name: alpha, Dimensions: [1], Format/Datatype: Float }"
    text = "\n".join(
        [
            "a line of something else",
            line("kgen", whole, ("Half",)),
            line("gemm", whole, ("Int8", "Int8"), alpha),
            line("gemm", half, ("Int8", "Half")),
            line("shuffle", "blocks.1.mlp.fc1/MatMul", ("Int8", "Int8")),
        ]
    )
    found = engine_kernels(path, text, "TensorRT", "a test")
    by_name = {product.name: product for product in found.products}
    assert (by_name[whole].kernel, by_name[whole].integer) == ("gemm", True)
    assert (by_name[half].integer, by_name[half].reason) == (False, "TensorRT multiplies Int8 by Half")
    assert by_name["blocks.1.mlp.fc1/MatMul"].reason == "no layer of the engine names it"
    assert found.share == pytest.approx(1 / 10)
    assert found.layer_types == {"gemm": 2, "kgen": 1, "shuffle": 1}


def test_words_give_counts_and_reasons(quantized: Make) -> None:
    """One line in all, then one for each reason with the first layer that has it."""
    first, *rest = sentences(onnxruntime_kernels(quantized("w8a8").path).to_dict())
    assert first.endswith("cpu: integer kernels: 10 of 10 linears, 0 of 4 in attention")
    assert rest == ["  blocks.0.attn/MatMul and 3 more: its inputs are float: nothing quantizes them"]


def test_a_float_model_is_told_from_a_quantized_one(quantized: Make, float_path: Path) -> None:
    """Only a graph with dequantized weights passes."""
    require_quantized(quantized("w8a16").path)
    with pytest.raises(InputError, match=r"float.onnx' has no quantized weights: give the model.onnx of a run"):
        require_quantized(float_path)
