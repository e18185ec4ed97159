"""Session settings under which ONNX Runtime's integer products on this CPU are the model's. Runs without torch."""

from __future__ import annotations

import functools

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

ALWAYS = {
    # 1 is float32: by default, inputs that the scheme leaves float would be rounded to 8 bits for integer weights
    "session.qdq_matmulnbits_accuracy_level": "1",
}
WHERE_PRODUCTS_SATURATE = {
    # weights become unsigned: slower, and exact on x86 without VNNI, which adds two 8-bit products in 16 bits
    "session.x64quantprecision": "1",
}
SIDE = 64
STEP = 1 / 128


def exact_settings() -> dict[str, str]:
    """`session_config` entries that a session on this machine's CPU needs."""
    return ALWAYS | (WHERE_PRODUCTS_SATURATE if products_saturate() else {})


@functools.cache
def products_saturate() -> bool:
    """Whether ONNX Runtime's default product of 8-bit matrices is wrong on this CPU: tried once, in milliseconds."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # ONNX Runtime names a missing GPU otherwise
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(largest_products(), options, providers=["CPUExecutionProvider"])
    largest = 127 * STEP
    (found,) = session.run(None, {"x": np.full((1, SIDE, SIDE), largest, np.float32)})
    return not np.allclose(found, SIDE * largest**2, rtol=1e-3)


def largest_products() -> bytes:
    """A model whose integers are all 127: two such products, of unsigned by signed numbers, do not fit 16 bits."""
    step = numpy_helper.from_array(np.array(STEP, np.float32), "step")
    weight = numpy_helper.from_array(np.full((SIDE, SIDE), 127, np.int8), "weight")
    zero = numpy_helper.from_array(np.array(0, np.int8), "zero")
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "step", "zero"], ["x8"]),
        helper.make_node("DequantizeLinear", ["x8", "step", "zero"], ["x_"]),
        helper.make_node("DequantizeLinear", ["weight", "step", "zero"], ["w_"]),
        helper.make_node("MatMul", ["x_", "w_"], ["y"]),
    ]
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", SIDE, SIDE]) for name in ("x", "y")]
    graph = helper.make_graph(nodes, "largest_products", values[:1], values[1:], [step, weight, zero])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    serialized: bytes = model.SerializeToString()
    onnx.checker.check_model(model)
    return serialized
