from __future__ import annotations

import dataclasses
import hashlib
import importlib.util
import json
import sys
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
import tensorrt_rtx

from export.edge.engine_spec import EngineSpec, sidecar
from export.edge.registry import available_backend, choose_backend, find_engine_backend
from inversion.errors import InputError, MachineError
from tests.small import Quantized

Make = Callable[[str], Quantized]


def build_engine(model: Path, out: Path, arch: str, batches: tuple[int, int, int] = (1, 8, 32)) -> EngineSpec:
    """The graph as it is."""
    return find_engine_backend("tensorrt_rtx").build(model, out, arch, batches)


@pytest.mark.parametrize("arch", ["sm89", "sm120"])
def test_engine_builds_ahead_of_time(quantized: Make, arch: str, tmp_path: Path) -> None:
    """With no GPU, a real engine is built for the architecture named; the spec and its sidecar say what it is."""
    source, path = quantized("w8a8").path, tmp_path / "engine.plan"
    spec = build_engine(source, path, arch)
    assert (spec.backend, spec.version, spec.arch) == ("tensorrt_rtx", tensorrt_rtx.__version__, arch)
    assert spec.compute_capability == {"sm89": "8.9", "sm120": "12.0"}[arch]
    assert spec.executed is False
    assert spec.bytes == path.stat().st_size > 10_000
    assert spec.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert spec.onnx_sha256 == hashlib.sha256(source.read_bytes()).hexdigest()
    (given,), (answer,) = spec.inputs, spec.outputs
    assert (given.name, given.dtype, given.min, given.opt, given.max) == (
        *("input", "float32"),
        *((batch, 1, 32, 32) for batch in (1, 8, 32)),
    )
    assert (answer.name, answer.min, answer.max) == ("logits", (1, 10), (32, 10))
    assert spec.time_command == "tensorrt_rtx --loadEngine=engine.plan --shapes=input:8x1x32x32"
    assert spec.build_command == (
        f"tensorrt_rtx --onnx=w8a8.onnx --computeCapabilities={arch[2:]} --minShapes=input:1x1x32x32 "
        "--optShapes=input:8x1x32x32 --maxShapes=input:32x1x32x32 --saveEngine=engine.plan --skipInference"
    )
    assert spec.kernels["linears"]["all"] == 10
    stored = json.loads(sidecar(path).read_text())
    assert sidecar(path).name == "engine.plan.json"
    assert stored == json.loads(json.dumps(dataclasses.asdict(spec)))


def test_unknown_architecture_is_refused(quantized: Make, tmp_path: Path) -> None:
    """The message lists the architectures that the backend knows."""
    assert find_engine_backend("tensorrt_rtx").archs() == ("sm75", "sm80", "sm86", "sm89", "sm120", "sm121")
    with pytest.raises(InputError, match=r"unknown architecture 'sm42': tensorrt_rtx .* builds for sm75, .*, sm121\."):
        build_engine(quantized("w8a8").path, tmp_path / "e.plan", "sm42")
    for name in ("current", "none", "SM89", ""):
        with pytest.raises(InputError, match=f"unknown architecture '{name}'"):
            choose_backend("tensorrt_rtx", ["sm89", name])
    assert not list(tmp_path.iterdir())


def test_backend_is_chosen_before_building() -> None:
    """The default is `tensorrt` where it is installed, else `tensorrt_rtx`; with nothing to build there is none."""
    installed = importlib.util.find_spec("tensorrt") is not None
    assert available_backend() == ("tensorrt" if installed else "tensorrt_rtx")
    assert choose_backend("tensorrt_rtx", ["sm86", "sm89"]) == "tensorrt_rtx"
    assert choose_backend(None, []) is None


def test_unknown_backend_is_refused() -> None:
    """The message names the backends there are."""
    with pytest.raises(InputError, match="unknown backend 'openvino': take tensorrt or tensorrt_rtx"):
        choose_backend("openvino", ["sm89"])


def test_missing_backend_is_a_matter_of_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the backend asked for, or every backend, is not installed, the message says so."""
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(MachineError, match="the backend 'tensorrt' is not installed"):
        choose_backend("tensorrt", ["sm89"])
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", None)
    assert available_backend() is None
    with pytest.raises(MachineError, match="neither tensorrt nor tensorrt_rtx is installed"):
        choose_backend(None, ["sm89"])


@pytest.mark.parametrize("content", [b"", b"not a model" * 9])
def test_what_is_no_onnx_file_is_refused(content: bytes, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Another file, or none, is refused in one sentence; TensorRT prints nothing and no engine appears."""
    source, path = tmp_path / "m.onnx", tmp_path / "e.plan"
    with pytest.raises(InputError, match="does not exist"):
        build_engine(source, path, "sm89")
    source.write_bytes(content)
    with pytest.raises(InputError, match=r"m.onnx' is not an ONNX file: make one with"):
        build_engine(source, path, "sm89")
    assert not path.exists()
    assert capfd.readouterr() == ("", "")


def write_model(path: Path, op: str, shape: list[int | str]) -> None:
    tensor = onnx.helper.make_tensor_value_info
    node = onnx.helper.make_node(op, ["input"], ["logits"], name="blocks.0/odd", domain="odd" if op == "Odd" else "")
    graph = onnx.helper.make_graph(
        [node], "g", [tensor("input", onnx.TensorProto.FLOAT, shape)], [tensor("logits", onnx.TensorProto.FLOAT, shape)]
    )
    opsets = [onnx.helper.make_opsetid("", 21), onnx.helper.make_opsetid("odd", 1)]
    path.write_bytes(onnx.helper.make_model(graph, opset_imports=opsets, ir_version=10).SerializeToString())


def test_operator_that_does_not_parse_is_named(tmp_path: Path) -> None:
    """The parser's errors come in one sentence with the node's name."""
    write_model(tmp_path / "m.onnx", "Odd", ["batch", 4])
    with pytest.raises(InputError, match=r"cannot take .*m\.onnx' \(.*blocks\.0/odd: .*\): export it again"):
        build_engine(tmp_path / "m.onnx", tmp_path / "e.plan", "sm89")


def test_only_the_batch_may_vary(tmp_path: Path) -> None:
    """A graph with a dynamic side is refused by its input's name."""
    write_model(tmp_path / "m.onnx", "Relu", ["batch", 3, "height", 32])
    with pytest.raises(InputError, match=r"input 'input' has the shape \(-1, 3, -1, 32\): only its first size"):
        build_engine(tmp_path / "m.onnx", tmp_path / "e.plan", "sm89")


def test_one_batch_of_a_graph_that_leaves_it_open_is_in_the_commands(quantized: Make, tmp_path: Path) -> None:
    """A profile of one batch still is a profile: without shapes the builder elsewhere would take batch 1."""
    spec = build_engine(quantized("w8a8").path, tmp_path / "e.plan", "sm89", (4, 4, 4))
    for which in ("min", "opt", "max"):
        assert f" --{which}Shapes=input:4x1x32x32 " in spec.build_command
    assert spec.time_command.endswith(" --shapes=input:4x1x32x32")
    assert spec.inputs[0].min == spec.inputs[0].max == (4, 1, 32, 32)


def test_fixed_batch_needs_no_profile(tmp_path: Path) -> None:
    """A graph with a fixed batch builds, and its spec gives that batch three times."""
    write_model(tmp_path / "m.onnx", "Relu", [4, 8])
    spec = build_engine(tmp_path / "m.onnx", tmp_path / "e.plan", "sm89")
    assert {spec.inputs[0].min, spec.inputs[0].opt, spec.inputs[0].max} == {(4, 8)}
    assert spec.time_command == "tensorrt_rtx --loadEngine=e.plan"
    assert "Shapes" not in spec.build_command
