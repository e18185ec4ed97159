"""Lines for the device itself, where no engine can be built here."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from export.edge.build import build_engine, build_engines
from export.edge.engine_spec import read_spec, sidecar
from export.edge.registry import choose_backend
from inversion.errors import InputError, MachineError
from pipeline.verbs.options import parse_archs
from tests.shell import run
from tests.small import Quantized

Make = Callable[..., Quantized]
SHAPES = "--minShapes=input:1x1x32x32 --optShapes=input:2x1x32x32 --maxShapes=input:4x1x32x32"
LINE = (
    f"trtexec --onnx=model.tensorrt.onnx --stronglyTyped {SHAPES} --timingCacheFile=timing.tensorrt.sm87.cache "
    "--saveEngine=engine.tensorrt.sm87.plan --skipInference"
)


def test_names_of_devices() -> None:
    """People say orin, not sm87."""
    assert parse_archs("orin,sm89,sm87") == ("sm87", "sm89")


def test_a_jetson_gets_a_script(quantized: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Beside the graph that it builds from: the whole line, strongly typed, with shapes and timings; an engine that can
    be built is built in the same command."""
    model = quantized("w8a8").path
    assert run(f"engine {model} --arch orin,sm89 --batch 1,2,4 --out {tmp_path}") == 0
    script = tmp_path / "engine.tensorrt.sm87.sh"
    assert LINE in script.read_text().splitlines()
    assert (tmp_path / "model.tensorrt.onnx").is_file()
    told = capsys.readouterr().out
    assert LINE in told
    assert "engine.tensorrt_rtx.sm89.plan" in told
    assert LINE.replace("sm87", "sm89") in told


def test_a_script_of_bytes_names_their_shapes(tmp_path: Path, quantized: Make) -> None:
    """Where the batch is fixed there are no shapes to give."""
    import onnx

    model = onnx.load(quantized("w8a8").path)
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 2
    onnx.save(model, tmp_path / "fixed.onnx")
    ((path, spec),) = build_engines(tmp_path / "fixed.onnx", tmp_path, ["sm90"], "tensorrt_rtx")
    assert spec is None
    assert "Shapes" not in path.read_text()


def test_a_script_needs_no_tensorrt(quantized: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of architectures that only their own device builds for, whatever is named; any other one needs a backend."""
    for name in ("tensorrt", "tensorrt_rtx"):
        monkeypatch.setitem(sys.modules, name, None)
    assert run(f"engine {quantized('w8a8').path} --arch orin,hopper --out {tmp_path}") == 0
    assert {path.name for path in tmp_path.glob("engine*")} == {"engine.tensorrt.sm87.sh", "engine.tensorrt.sm90.sh"}
    assert choose_backend("tensorrt_rtx", ["sm87"]) == "tensorrt_rtx"
    with pytest.raises(MachineError, match="pip install tensorrt-rtx-cu13"):
        choose_backend(None, ["sm87", "sm89"])


def test_what_no_tensorrt_builds_for_is_refused(quantized: Make, tmp_path: Path) -> None:
    """A number that is no architecture, and a single engine of one that is built elsewhere."""
    with pytest.raises(InputError, match="unknown architecture 'sm42'"):
        choose_backend("tensorrt_rtx", ["sm87", "sm42"])
    with pytest.raises(InputError, match="unknown architecture 'sm87'"):
        build_engine(quantized("w8a8").path, tmp_path / "e.plan", "sm87")


def test_a_sidecar_says_what_its_holder_has_to_know(quantized: Make, tmp_path: Path) -> None:
    """Which runtime it needs, that softmax is not applied, what its bytes are; labels where the graph has some."""
    ((path, spec),) = build_engines(quantized("w8a8").path, tmp_path, ["sm89"], "tensorrt_rtx", batches=(1, 2, 4))
    assert spec is not None
    needs, output, size = spec.notes
    assert needs == f"It needs TensorRT for RTX {spec.version} and a GPU of sm89: build it again for any other."
    assert output == "Its output is a number a class: softmax is not applied."
    assert f"Of its {spec.bytes / 1e6:.1f} MB, " in size
    assert spec.trtexec_command == LINE.replace("sm87", "sm89")
    assert read_spec(path) == spec
    older = {
        key: value for key, value in json.loads(sidecar(path).read_text()).items() if key not in ("notes", "labels")
    }
    sidecar(path).write_text(json.dumps(older))
    assert read_spec(path).notes == ()
