"""Engines of one graph for several architectures, and what is refused before one is built."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest

from export.edge.build import ENGINE_GRAPH, build_engines, build_float_engine
from export.edge.compare import compare
from export.edge.engine_spec import read_spec, sidecar
from export.edge.runtime import answer, open_runtime
from inversion.errors import InputError
from tests.small import Quantized, grey_images

Make = Callable[..., Quantized]


@pytest.fixture(scope="module")
def folder(quantized: Make, tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("engines")
    list(build_engines(quantized("w8a8").path, made, ["sm86", "sm120"], "tensorrt_rtx", batches=(2, 4, 6)))
    return made


def test_one_graph_makes_an_engine_for_each_architecture(folder: Path) -> None:
    """Both stand beside the graph that they name by digest, with sidecars; nothing else is left over."""
    plans = [folder / f"engine.tensorrt_rtx.{arch}.plan" for arch in ("sm86", "sm120")]
    assert {path.name for path in folder.iterdir()} == {
        ENGINE_GRAPH, *(path.name for path in plans), *(sidecar(path).name for path in plans),
    }  # fmt: skip
    digest = hashlib.sha256((folder / ENGINE_GRAPH).read_bytes()).hexdigest()
    specs = [json.loads(sidecar(path).read_text()) for path in plans]
    assert [spec["onnx_sha256"] for spec in specs] == [digest, digest]
    assert [spec["compute_capability"] for spec in specs] == ["8.6", "12.0"]
    assert plans[0].read_bytes() != plans[1].read_bytes()


def test_the_profile_is_the_one_asked_for(folder: Path) -> None:
    """Smallest, optimal and largest batch stand in the sidecar and in the lines that build and time it elsewhere."""
    spec = json.loads(sidecar(folder / "engine.tensorrt_rtx.sm86.plan").read_text())
    (given,) = spec["inputs"]
    assert [given[key][0] for key in ("min", "opt", "max")] == [2, 4, 6]
    assert f"--onnx={ENGINE_GRAPH} " in spec["build_command"]
    assert (
        "--minShapes=input:2x1x32x32 --optShapes=input:4x1x32x32 --maxShapes=input:6x1x32x32" in spec["build_command"]
    )
    assert spec["time_command"].endswith("--shapes=input:4x1x32x32")


def test_a_float_model_gives_an_engine_in_fp16(float_path: Path, tmp_path: Path) -> None:
    """What engines of integers are timed beside: every float of its graph has 16 bits but input and output, and it
    answers nearly as the float model does."""
    engine = build_float_engine(float_path, tmp_path, "sm89", "tensorrt_rtx", (1, 2, 4))
    spec = read_spec(engine)
    assert (spec.arch, spec.inputs[0].max, spec.inputs[0].dtype) == ("sm89", (4, 1, 32, 32), "float32")
    assert spec.kernels["share"] == 1  # nothing in it is quantized
    graph = onnx.load(tmp_path / "float16.onnx").graph
    kinds = {tensor.data_type for tensor in graph.initializer}
    assert onnx.TensorProto.FLOAT16 in kinds
    assert onnx.TensorProto.FLOAT not in kinds
    pictures = grey_images(4).numpy()
    with open_runtime(float_path) as plain, open_runtime(tmp_path / "float16.onnx") as half:
        assert compare(answer(plain, pictures), answer(half, pictures)).kl < 1e-3


def test_every_linear_of_an_engine_is_on_integers(folder: Path) -> None:
    """So the builder says in its log, q, k and v included, which the fence is for."""
    kernels = json.loads(sidecar(folder / "engine.tensorrt_rtx.sm120.plan").read_text())["kernels"]
    assert kernels["linears"] == {"integer": 10, "all": 10}
    assert kernels["source"] == "the builder's verbose log"


def test_a_float_model_is_refused(float_path: Path, tmp_path: Path) -> None:
    """Nothing is written."""
    with pytest.raises(InputError, match="has no quantized weights"):
        list(build_engines(float_path, tmp_path, ["sm89"], "tensorrt_rtx"))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("batches", [(8, 4, 32), (0, 1, 2), (1, 8), (1, 8, 4)])
def test_batches_that_are_no_profile_are_refused(quantized: Make, batches: tuple[int, ...], tmp_path: Path) -> None:
    """The message gives them and an example."""
    said = f"batches {','.join(map(str, batches))} are no profile: .* 1,8,32"
    with pytest.raises(InputError, match=said):
        list(build_engines(quantized("w8a8").path, tmp_path, ["sm89"], "tensorrt_rtx", batches=batches))
    assert not list(tmp_path.iterdir())
