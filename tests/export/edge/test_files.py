"""ONNX files that keep weights elsewhere: beside them they are read, outside their folder never."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnxruntime.quantization import quantize_dynamic

from export.edge.files import read_onnx, require_own_data, write_onnx
from export.edge.kernels import require_quantized
from export.edge.runtime import open_runtime
from inversion.errors import InputError


@pytest.fixture
def outside(float_path: Path, tmp_path: Path) -> Path:
    """A model whose weights lie in weights.bin beside it; tests move the name elsewhere."""
    folder = tmp_path / "model"
    folder.mkdir()
    onnx.save(onnx.load(float_path), folder / "m.onnx", save_as_external_data=True, location="weights.bin",
              size_threshold=0)  # fmt: skip
    return folder / "m.onnx"


def point_to(path: Path, location: str) -> None:
    model = onnx.load(path, load_external_data=False)
    for tensor in model.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = location
    path.write_bytes(model.SerializeToString())


def test_weights_beside_a_model_are_read(outside: Path, float_path: Path) -> None:
    """As if they stood in the file."""
    assert (outside.parent / "weights.bin").stat().st_size > 100_000
    for one, other in zip(read_onnx(outside).graph.initializer, onnx.load(float_path).graph.initializer, strict=True):
        np.testing.assert_array_equal(onnx.numpy_helper.to_array(one), onnx.numpy_helper.to_array(other))


@pytest.mark.parametrize("location", ["../weights.bin", "sub/../../weights.bin", "ABSOLUTE"])
def test_weights_outside_the_folder_are_not_read(outside: Path, location: str, tmp_path: Path) -> None:
    """Up, around or absolute: refused by name, by the reader and by the runtime, though the file is there."""
    target = tmp_path / "weights.bin"
    (outside.parent / "weights.bin").rename(target)
    point_to(outside, str(target) if location == "ABSOLUTE" else location)
    for use in (read_onnx, require_own_data, lambda path: open_runtime(path).__enter__()):
        with pytest.raises(InputError, match=r"keeps the weight '.*' in '.*weights\.bin', outside its folder"):
            use(outside)


def test_a_link_out_of_the_folder_is_not_followed(outside: Path, tmp_path: Path) -> None:
    """The name is inside, what it leads to is not."""
    inside = outside.parent / "weights.bin"
    inside.rename(tmp_path / "weights.bin")
    inside.symlink_to(tmp_path / "weights.bin")
    with pytest.raises(InputError, match="outside its folder"):
        read_onnx(outside)


def test_missing_weights_are_named(outside: Path) -> None:
    """The mend is to put them back."""
    (outside.parent / "weights.bin").unlink()
    with pytest.raises(InputError, match=r"the weights of '.*m\.onnx' cannot be read: put its data file beside it"):
        read_onnx(outside)


def test_what_is_written_was_checked(float_path: Path, tmp_path: Path) -> None:
    """A graph whose shapes do not fit is not published."""
    model = onnx.load(float_path)
    model.graph.output[0].type.tensor_type.shape.dim[1].dim_value = 11
    with pytest.raises(onnx.shape_inference.InferenceError):
        write_onnx(model, tmp_path / "m.onnx")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("kind", ["MatMul", "QuantizeLinear", "DequantizeLinear"])
@pytest.mark.parametrize("part", ["input", "output"])
def test_a_node_that_lacks_an_end_is_named(float_path: Path, tmp_path: Path, kind: str, part: str) -> None:
    """Readers look into these nodes: one without its inputs or output is refused before."""
    model = onnx.load(float_path)
    node = next(node for node in model.graph.node if node.op_type == "MatMul")
    node.op_type = kind
    del getattr(node, part)[part == "input" :]
    (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(
        InputError, match=rf"is broken: its node '.*' \({kind}\) lacks an input or output; make it again"
    ):
        read_onnx(tmp_path / "m.onnx")


@pytest.mark.parametrize("name", ["float", "w8a8"])
def test_constants_are_typed_once(name: str, quantized, float_path: Path, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    """A second type would be left behind by a tool that transposes one: ONNX Runtime's own quantizer does so."""
    path = float_path if name == "float" else quantized(name).path
    graph = onnx.load(path).graph
    assert not {tensor.name for tensor in graph.initializer} & {value.name for value in graph.value_info}
    quantize_dynamic(path, tmp_path / "dynamic.onnx")
    with open_runtime(tmp_path / "dynamic.onnx") as runtime:
        assert runtime.run({"input": np.zeros((2, 1, 32, 32), np.float32)})["logits"].shape == (2, 10)


def test_integer_operators_are_called_what_they_are(float_path: Path, tmp_path: Path) -> None:
    """A file that ONNX Runtime quantized is no float model, and not the form that is taken here."""
    quantize_dynamic(float_path, tmp_path / "dynamic.onnx")
    with pytest.raises(InputError, match=r"is quantized, but by integer operators \((Conv|MatMul)Integer\)"):
        require_quantized(tmp_path / "dynamic.onnx")
