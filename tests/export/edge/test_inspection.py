"""What is said of anyone's ONNX files: onnx.helper and ONNX Runtime's own quantizer make them here."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_dynamic, quantize_static

from export.edge.build import build_engines
from export.edge.engine_inspection import EngineInspection
from export.edge.engine_spec import sidecar
from export.edge.inspection import Inspection, inspect_file
from export.edge.kernels import Product, layer_products
from inversion.errors import InputError
from tests.shell import run

RANDOM = np.random.default_rng(0)


def constant(name: str, *shape: int) -> TensorProto:
    return numpy_helper.from_array(RANDOM.standard_normal(shape).astype(np.float32), name)


def saved(path: Path, nodes: list[onnx.NodeProto], tensors: list[TensorProto], opset: int = 21, **kinds: Any) -> Path:
    """A model of `x` [b, 32] to `y` [b, 8]; `kinds` may give another type, shape or domain."""
    kind, shape = kinds.get("kind", TensorProto.FLOAT), kinds.get("shape", ["b", 32])
    value = helper.make_tensor_value_info
    graph = helper.make_graph(nodes, "g", [value("x", kind, shape)], [value("y", kind, kinds.get("answer"))], tensors)
    opsets = [helper.make_opsetid("", opset), *(helper.make_opsetid(name, 1) for name in kinds.get("domains", ()))]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=kinds.get("ir", 10)), path)
    return path


def products(path: Path) -> list[Product]:
    found = inspect_file(path)
    assert isinstance(found, Inspection)
    assert found.kernels is not None, found.refused
    return list(found.kernels.products)


def inspected(path: Path) -> Inspection:
    found = inspect_file(path)
    assert isinstance(found, Inspection)
    return found


def qdq(
    path: Path, weight: int = TensorProto.INT8, activation: int = TensorProto.INT8, zero: int = 0, between: str = "",
    step: int = TensorProto.FLOAT, block: int = 0, opset: int = 21,
) -> Path:  # fmt: skip
    """x -> Q -> DQ -> MatMul with a dequantized weight [32, 8], per channel, or in blocks along its first axis."""
    shape = [32 // block, 8] if block else [8]
    count = int(np.prod(shape))
    tensors = [
        helper.make_tensor("w", weight, [32, 8], RANDOM.integers(0, 7, 256).tolist()),
        helper.make_tensor("ws", step, shape, [0.1] * count),
        helper.make_tensor("wz", weight, shape, [0] * count),
        helper.make_tensor("s", step, [], [0.1]),
        helper.make_tensor("z", activation, [], [zero]),
    ]
    axes: dict[str, Any] = {"axis": 0, "block_size": block} if block else {"axis": 1}
    given = "moved" if between else "dw"
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"], "Q"),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["d"], "D"),
        helper.make_node("DequantizeLinear", ["w", "ws", "wz"], ["dw"], "W", **axes),
        *([helper.make_node(between, ["dw"], ["moved"], "move")] if between else []),
        helper.make_node("MatMul", ["d", given], ["y"], "mm"),
    ]
    return saved(path, nodes, tensors, opset, kind=step, shape=["b", 8 if between else 32], answer=["b", None])


class Samples(CalibrationDataReader):
    def __init__(self) -> None:
        self.left: Iterator[dict[str, Any]] = iter([{"x": RANDOM.standard_normal((2, 3, 8, 8)).astype(np.float32)}] * 2)

    def get_next(self) -> dict[str, Any] | None:
        return next(self.left, None)


@pytest.fixture(scope="module")
def convolutional(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Conv, Gemm and MatMul, none of which has a name, as many exporters leave them."""
    nodes = [
        helper.make_node("Conv", ["x", "w0", "b0"], ["c"]),
        helper.make_node("Flatten", ["c"], ["f"]),
        helper.make_node("Gemm", ["f", "w1", "b1"], ["g"]),
        helper.make_node("MatMul", ["g", "w2"], ["y"]),
    ]
    tensors = [
        constant("w0", 4, 3, 3, 3), constant("b0", 4), constant("w1", 144, 16), constant("b1", 16),
        constant("w2", 16, 8),
    ]  # fmt: skip
    path = tmp_path_factory.mktemp("convolutional") / "float.onnx"
    return saved(path, nodes, tensors, 17, shape=["b", 3, 8, 8], ir=8)


def test_a_float_model(convolutional: Path) -> None:
    """Every product is listed under a name, float, with the reason; sizes, opset, inputs and outputs are told."""
    found = inspected(convolutional)
    assert [(each.operator, each.integer) for each in products(convolutional)] == [
        ("Conv", False), ("Gemm", False), ("MatMul", False),
    ]  # fmt: skip
    assert {each.reason for each in products(convolutional)} == {"its inputs are float: nothing quantizes them"}
    assert (found.opsets, found.ir_version) == ({"ai.onnx": 17}, 8)
    assert found.inputs == {"x": "float32 [b, 3, 8, 8]"}
    assert (found.quantizers, found.rules) == ({}, ())
    (weights,) = found.weights
    assert (weights.type, weights.numbers, weights.bytes) == ("FLOAT", 2560, 4 * 2560)


def test_static_qdq(convolutional: Path, tmp_path: Path) -> None:
    """ONNX Runtime's own Q/DQ: all on integers, also the convolution; TensorRT takes neither its zero points nor its
    INT32 biases."""
    path = tmp_path / "qdq.onnx"
    quantize_static(convolutional, path, Samples(), quant_format=QuantFormat.QDQ, activation_type=QuantType.QUInt8)
    assert [(each.operator, each.kernel, each.integer) for each in products(path)] == [
        ("Conv", "QLinearConv", True), ("Gemm", "QGemm", True), ("MatMul", "QLinearMatMul", True),
    ]  # fmt: skip
    found = inspected(path)
    assert any("activations: UINT8, asymmetric, per tensor" in words for words in found.quantizers)
    assert found.quantizers["weights: INT8, symmetric (zero point 0), per tensor, steps FLOAT"] == 3
    reasons = {each.reason: each.count for each in found.rules}
    assert reasons["a bias of INT32 behind DequantizeLinear: leave it a float"] == 2
    assert any(reason.startswith("a zero point that is not 0") for reason in reasons)
    assert all(said for said in found.parsers.values())


def test_qoperator_format(convolutional: Path, tmp_path: Path) -> None:
    """Operators that are integer themselves count as such; for TensorRT each is named."""
    path = tmp_path / "qoperator.onnx"
    quantize_static(convolutional, path, Samples(), quant_format=QuantFormat.QOperator)
    assert [(each.operator, each.integer) for each in products(path)] == [
        ("QLinearConv", True), ("QGemm", True), ("QLinearMatMul", True),
    ]  # fmt: skip
    found = inspected(path)
    assert found.quantizers["weights: INT8, symmetric (zero point 0), per tensor, steps FLOAT"] == 3
    assert {"QLinearConv", "QGemm", "QLinearMatMul"} <= {word for each in found.rules for word in words(each.reason)}


def words(text: str) -> list[str]:
    return text.replace(":", " ").split()


def test_dynamic_quantization(convolutional: Path, tmp_path: Path) -> None:
    """Integer products whose activations are quantized at run time; weights are found behind the operators."""
    path = tmp_path / "dynamic.onnx"
    quantize_dynamic(convolutional, path)
    assert [(each.operator, each.integer) for each in products(path)] == [
        ("ConvInteger", True), ("MatMulInteger", True), ("MatMulInteger", True),
    ]  # fmt: skip
    found = inspected(path)
    assert found.quantizers["activations: UINT8, zero point found at run time, dynamic, steps FLOAT"] == 3
    assert any(each.reason.startswith("it has no operator DynamicQuantizeLinear") for each in found.rules)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"weight": TensorProto.INT4}, "ONNX Runtime has no product of INT4 weights and INT8 activations"),
        ({"weight": TensorProto.INT4, "block": 16}, "ONNX Runtime has no product of INT4 weights and INT8 activations"),
        ({"activation": TensorProto.INT16}, "ONNX Runtime has no integer product of INT16 and INT8"),
        ({"block": 16}, "its steps go by blocks"),
        ({"step": TensorProto.FLOAT16}, "its steps have 16 bits"),
        ({"between": "Transpose"}, "a Transpose stands between DequantizeLinear and the product"),
    ],
)
def test_why_a_quantized_product_is_float(tmp_path: Path, options: dict[str, Any], reason: str) -> None:
    """Each convention that ONNX Runtime's fusions do not know is named."""
    (product,) = products(qdq(tmp_path / "m.onnx", **options))
    assert not product.integer
    assert product.reason.startswith(reason)


def test_the_convention_that_fuses(tmp_path: Path) -> None:
    """INT8 by INT8 and UINT8 by either are on integers: the reasons above are not said of every file."""
    for weight, activation in (("INT8", "INT8"), ("INT8", "UINT8"), ("UINT8", "UINT8"), ("UINT8", "INT8")):
        kinds = {"weight": getattr(TensorProto, weight), "activation": getattr(TensorProto, activation)}
        (product,) = products(qdq(tmp_path / "m.onnx", **kinds))
        assert (product.integer, product.reason) == (True, ""), (weight, activation)


def test_few_bits_in_int8_are_seen(tmp_path: Path) -> None:
    """4-bit integers that an INT8 tensor carries are told as what they are, 8-bit ones are not."""
    path = qdq(tmp_path / "m.onnx")
    words = "weights: {}, symmetric (zero point 0), per channel (axis 1), steps FLOAT"
    assert inspected(path).quantizers[words.format("4-bit integers in INT8")] == 1
    model = onnx.load(path)
    weight = next(tensor for tensor in model.graph.initializer if tensor.name == "w")
    weight.CopyFrom(helper.make_tensor("w", TensorProto.INT8, [32, 8], [100] * 256))
    onnx.save(model, path)
    assert inspected(path).quantizers[words.format("INT8")] == 1


@pytest.mark.parametrize(
    ("options", "refused"),
    [
        ({}, None),
        ({"zero": 3}, "a zero point that is not 0"),
        ({"weight": TensorProto.UINT8}, "weights of UINT8"),
        ({"activation": TensorProto.INT16}, "activations of INT16"),
        ({"weight": TensorProto.UINT4}, "weights of UINT4"),
    ],
)
def test_rules_are_what_tensorrt_says(tmp_path: Path, options: dict[str, Any], refused: str | None) -> None:
    """A rule refuses what the parser that is installed refuses, and nothing that it takes."""
    found = inspected(qdq(tmp_path / "m.onnx", **options))
    (said,) = found.parsers.values()
    assert bool(said) == bool(refused) == bool(found.rules)
    assert refused is None or found.rules[0].reason.startswith(refused)


def test_half_precision(tmp_path: Path) -> None:
    """A float16 model is a float model, and its input's type is told."""
    weight = numpy_helper.from_array(np.ones((32, 8), np.float16), "w")
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"], "mm")]
    path = saved(tmp_path / "m.onnx", nodes, [weight], kind=TensorProto.FLOAT16)
    (product,) = products(path)
    assert not product.integer
    assert inspected(path).inputs == {"x": "float16 [b, 32]"}


def test_operators_that_hold_products(tmp_path: Path) -> None:
    """Attention as one operator, and packed 4-bit weights of ONNX Runtime's own format, say why they are float."""
    packed = [
        numpy_helper.from_array(RANDOM.integers(0, 255, (8, 1, 16), np.uint8), "w"), constant("s", 8),
    ]  # fmt: skip
    attributes: dict[str, Any] = {"K": 32, "N": 8, "bits": 4, "block_size": 32}
    nodes = [helper.make_node("MatMulNBits", ["x", "w", "s"], ["y"], "mm", domain="com.microsoft", **attributes)]
    path = saved(tmp_path / "m.onnx", nodes, packed, domains=("com.microsoft",))
    (product,) = products(path)
    assert product.reason == "its packed weights are multiplied by float activations"
    nodes = [helper.make_node("MultiHeadAttention", ["x", "x", "x"], ["y"], "a", domain="com.microsoft", num_heads=2)]
    path = saved(tmp_path / "a.onnx", nodes, [], domains=("com.microsoft",), shape=["b", 4, 32])
    (product,) = products(path)
    assert product.reason == "MultiHeadAttention multiplies floats, of any quantizer"


def test_products_within_branches_and_functions(tmp_path: Path) -> None:
    """Also what stands in a branch of If, or in a local function, is counted."""
    then = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["t"])], "then", [],
        [helper.make_tensor_value_info("t", TensorProto.FLOAT, None)],
    )  # fmt: skip
    other = helper.make_graph(
        [helper.make_node("Gemm", ["x", "w"], ["o"])], "other", [],
        [helper.make_tensor_value_info("o", TensorProto.FLOAT, None)],
    )  # fmt: skip
    nodes = [
        helper.make_node("ReduceSum", ["x"], ["sum"], keepdims=0),
        helper.make_node("Cast", ["sum"], ["if"], to=TensorProto.BOOL),
        helper.make_node("If", ["if"], ["y"], then_branch=then, else_branch=other),
    ]
    path = saved(tmp_path / "m.onnx", nodes, [constant("w", 32, 8)])
    assert {each.operator for each in products(path)} == {"MatMul", "Gemm"}
    model = onnx.load(
        saved(
            tmp_path / "f.onnx",
            [helper.make_node("F", ["x", "w"], ["y"], domain="own")],
            [constant("w", 32, 8)],
            domains=("own",),
        )
    )
    inside = [helper.make_node("MatMul", ["a", "b"], ["c"])]
    opset = [helper.make_opsetid("", 21)]
    model.functions.append(helper.make_function("own", "F", ["a", "b"], ["c"], inside, opset))
    onnx.save(model, tmp_path / "f.onnx")
    assert [each.operator for each in products(tmp_path / "f.onnx")] == ["MatMul"]


def test_weights_in_a_file_of_their_own(tmp_path: Path) -> None:
    """Such weights are read, and counted in the size; without their file the model is refused with the mend."""
    model = onnx.load(qdq(tmp_path / "m.onnx"))
    for tensor in model.graph.initializer:
        tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor), tensor.name))  # as raw bytes
    onnx.save(model, tmp_path / "e.onnx", save_as_external_data=True, location="e.data", size_threshold=0)
    found = inspected(tmp_path / "e.onnx")
    assert found.external_bytes == (tmp_path / "e.data").stat().st_size
    assert [each.integer for each in products(tmp_path / "e.onnx")] == [True]
    (tmp_path / "e.data").unlink()
    with pytest.raises(InputError, match=r"e.onnx' has a weight that cannot be read .*put its data file beside it"):
        inspect_file(tmp_path / "e.onnx")


def test_what_the_runtime_does_not_take(tmp_path: Path) -> None:
    """A file of an opset or with an operator that this ONNX Runtime does not know is described all the same."""
    nodes = [
        helper.make_node("Strange", ["x"], ["h"], "s", domain="own"),
        helper.make_node("MatMul", ["h", "w"], ["y"]),
    ]
    found = inspected(saved(tmp_path / "m.onnx", nodes, [constant("w", 32, 8)], domains=("own",)))
    assert found.kernels is None
    assert "Strange" in found.refused
    assert f"the runtime does not take it: {found.refused}" in found.lines()
    old = saved(tmp_path / "old.onnx", [helper.make_node("MatMul", ["x", "w"], ["y"])], [constant("w", 32, 8)], 7, ir=3)
    assert inspected(old).opsets == {"ai.onnx": 7}
    assert len(products(old)) == 1


@pytest.mark.parametrize("content", [b"", b"no model", b"\x08\x0a\x3a\x05ab"])
def test_what_is_no_model_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "m.onnx").write_bytes(content)
    with pytest.raises(InputError, match=r"m.onnx' is not an ONNX file"):
        inspect_file(tmp_path / "m.onnx")


def test_names_that_are_no_text_are_refused(tmp_path: Path) -> None:
    """Of a damaged file; protobuf gives such a name as bytes."""
    path = qdq(tmp_path / "m.onnx")
    path.write_bytes(path.read_bytes().replace(b"\x02mm", b"\x02m\xff"))
    with pytest.raises(InputError, match=r"m.onnx' is broken"):
        inspect_file(path)


def test_an_engine_tells_by_its_sidecar(tmp_path: Path) -> None:
    """Shapes and integer kernels of the builder's log, and why its own inspector was not asked; a sidecar of another
    engine is refused, and one without is said to have none."""
    ((path, spec),) = build_engines(qdq(tmp_path / "m.onnx"), tmp_path, ["sm89"], "tensorrt_rtx")
    found = inspect_file(path)
    assert isinstance(found, EngineInspection)
    assert found.spec == spec
    assert any("1 of 1 linears" in line for line in found.lines())
    assert found.kernels is not None or found.unasked
    sidecar(path).unlink()
    assert "no sidecar beside it" in inspect_file(path).lines()[0]
    sidecar(path).write_text("{}")
    with pytest.raises(InputError, match="build it again"):
        inspect_file(path)


def test_layers_of_an_engine_without_its_graph() -> None:
    """Of an engine of others the layers alone are read: which multiply, and of what types."""
    given = "{ Name: x, Dimensions: [8,65,96], Format/Datatype: %s }"
    line = "Name: %s, LayerType: %s, Inputs: [%s], Outputs: []"
    text = "\n".join(
        [
            line % ("one", "gemm", ", ".join([given % "Int8"] * 2)),
            line % ("two", "gemm", ", ".join([given % "Half", given % "Half"])),
            line % ("three", "shuffle", given % "Half"),
        ]
    )
    found = layer_products(text, "TensorRT")
    assert [(each.name, each.integer, each.reason) for each in found.products] == [
        ("one", True, ""), ("two", False, "TensorRT multiplies Half by Half"),
    ]  # fmt: skip
    assert found.layer_types == {"gemm": 2, "shuffle": 1}


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Words, and with `--json -` the same as JSON alone, or into a file beside the words."""
    path, out = qdq(tmp_path / "m.onnx", weight=TensorProto.INT4), tmp_path / "found.json"
    assert run(f"inspect {path} --json {out}") == 0
    assert "mm: ONNX Runtime has no product of INT4 weights and INT8 activations" in capsys.readouterr().out
    assert run(f"inspect {path} --json -") == 0
    told = json.loads(capsys.readouterr().out)
    assert told["kernels"]["products"][0]["kernel"] == "MatMul"
    assert told == json.loads(out.read_text())
    assert run(f"inspect {tmp_path / 'none.onnx'}") == 2
    assert run(f"inspect {path} --provider nowhere") == 2
