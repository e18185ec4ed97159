"""Engines that are loaded: what is refused, and how a run moves its data; TensorRT and CUDA are stand-ins here."""

from __future__ import annotations

import ctypes
import json
import sys
import weakref
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import export.edge.registry as registry
import export.edge.tensorrt_backend as tensorrt_backend
from export.edge.build import build_engines
from export.edge.engine_spec import sidecar
from export.edge.runtime import open_engine
from inversion.errors import InputError, MachineError
from tests.small import Quantized

Make = Callable[..., Quantized]
BATCHES = (1, 2, 4)


@pytest.fixture(scope="module")
def built(quantized: Make, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("session")
    ((path, _),) = build_engines(quantized("w8a8").path, folder, ["sm89"], "tensorrt_rtx", batches=BATCHES)
    return path


@pytest.fixture
def engine(built: Path, tmp_path: Path) -> Path:
    """A copy of an engine and its sidecar, to be spoilt."""
    for path in (built, sidecar(built)):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    return tmp_path / built.name


def describe(engine: Path, **changes: object) -> None:
    sidecar(engine).write_text(json.dumps(json.loads(sidecar(engine).read_text()) | changes))


class Memory:
    """CUDA's calls on ordinary memory: copies are real, what is not freed shows."""

    cudaMemcpyKind = SimpleNamespace(cudaMemcpyHostToDevice=1, cudaMemcpyDeviceToHost=2)

    def __init__(self) -> None:
        self.held: dict[int, object] = {}
        self.streams = 0

    def cudaMalloc(self, size: int) -> tuple[int, int]:
        block = ctypes.create_string_buffer(size)
        self.held[ctypes.addressof(block)] = block
        return 0, ctypes.addressof(block)

    def cudaFree(self, pointer: int) -> tuple[int]:
        del self.held[pointer]
        return (0,)

    def cudaMemcpy(self, to: int, source: int, size: int, _: int) -> tuple[int]:
        ctypes.memmove(to, source, size)
        return (0,)

    def cudaStreamCreate(self) -> tuple[int, int]:
        self.streams += 1
        return 0, 7

    def cudaStreamDestroy(self, _: int) -> tuple[int]:
        self.streams -= 1
        return (0,)

    def cudaStreamSynchronize(self, _: int) -> tuple[int]:
        return (0,)


class Context:
    """Answers with the mean of each picture, repeated for every class; `works` is what a run reports."""

    works = True

    def __init__(self) -> None:
        self.begin()

    def begin(self) -> None:
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.pointers: dict[str, int] = {}

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> None:
        self.shapes[name] = shape

    def set_tensor_address(self, name: str, pointer: int) -> None:
        self.pointers[name] = pointer

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        assert name == "logits"
        return self.shapes["input"][0], 10

    def execute_async_v3(self, stream: int) -> bool:
        assert stream == 7
        given = at(self.pointers["input"], self.shapes["input"])
        at(self.pointers["logits"], self.get_tensor_shape("logits"))[:] = given.mean((1, 2, 3))[:, None]
        return self.works


def at(pointer: int, shape: tuple[int, ...]) -> np.ndarray:
    return np.ctypeslib.as_array((ctypes.c_float * int(np.prod(shape))).from_address(pointer)).reshape(shape)


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Memory:
    """A GPU of sm89 with TensorRT-RTX, of which only memory is real."""
    memory = Memory()
    loaded = SimpleNamespace(create_execution_context=Context)
    runtime = SimpleNamespace(deserialize_cuda_engine=lambda data: loaded if data else None)
    real = registry.available

    def available(name: str) -> object:
        trt = real(name)
        return trt and SimpleNamespace(__name__=name, __version__=trt.__version__, Runtime=lambda _: runtime)

    monkeypatch.setattr(registry, "available", available)
    monkeypatch.setattr(tensorrt_backend, "logger", lambda _: None)
    monkeypatch.setattr(tensorrt_backend, "local_arch", lambda: "sm89")
    monkeypatch.setitem(sys.modules, "cuda", SimpleNamespace())
    monkeypatch.setitem(sys.modules, "cuda.bindings", SimpleNamespace())
    monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", memory)
    return memory


@pytest.mark.parametrize("batch", [1, 3, 4])
def test_a_run_moves_its_data_and_frees_it(engine: Path, gpu: Memory, batch: int) -> None:
    """Inputs arrive whole, also where they were not contiguous; outputs have the batch's shape; all is given back."""
    pictures = np.random.default_rng(0).normal(size=(32, 32, 1, batch)).astype(np.float32).transpose(3, 2, 0, 1)
    with open_engine(engine) as session:
        assert session.inputs == {"input": (None, 1, 32, 32)}
        assert session.dtypes == {"input": np.float32}
        found = session.run({"input": pictures})["logits"]
    np.testing.assert_allclose(found, np.repeat(pictures.mean((1, 2, 3))[:, None], 10, 1), rtol=1e-5)
    assert (gpu.held, gpu.streams) == ({}, 0)


def test_what_is_timed_copies_nothing(engine: Path, gpu: Memory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Inputs are on the GPU before the first run, and what was taken for it is given back after the last."""
    pictures = np.ones((2, 1, 32, 32), np.float32)
    with open_engine(engine) as session, session.ready({"input": pictures}) as execute:
        held = dict(gpu.held)
        monkeypatch.setattr(gpu, "cudaMemcpy", None)
        monkeypatch.setattr(gpu, "cudaMalloc", None)
        for _ in range(3):
            execute()
        assert gpu.held.keys() == held.keys()
    assert (gpu.held, gpu.streams) == ({}, 0)


def test_what_is_opened_is_closed(engine: Path, gpu: Memory, monkeypatch: pytest.MonkeyPatch) -> None:
    """At the end of `with`, and at an error in it, context and engine are let go, which is how TensorRT frees them."""
    alive = weakref.WeakSet()

    def watched(self: Context) -> None:
        alive.add(self)
        Context.begin(self)

    monkeypatch.setattr(Context, "__init__", watched)
    for wrong in (False, True):
        with suppress(ZeroDivisionError), open_engine(engine) as session:
            assert len(alive) == 1
            _ = 1 / (not wrong)
        assert not alive
        with pytest.raises(InputError, match="the engine was closed: open it again"):
            session.run({"input": np.zeros((1, 1, 32, 32), np.float32)})
    assert not gpu.held


def test_a_run_that_fails_says_so_and_frees_its_memory(
    engine: Path, gpu: Memory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """TensorRT's refusal is the machine's matter; nothing stays on the GPU."""
    monkeypatch.setattr(Context, "works", False)
    with open_engine(engine) as session, pytest.raises(MachineError, match="could not run the engine"):
        session.run({"input": np.zeros((1, 1, 32, 32), np.float32)})
    assert (gpu.held, gpu.streams) == ({}, 0)


def test_a_full_gpu_is_named(engine: Path, gpu: Memory, monkeypatch: pytest.MonkeyPatch) -> None:
    """CUDA's status comes through."""
    monkeypatch.setattr(gpu, "cudaMalloc", lambda _: (2, 0), raising=False)
    with open_engine(engine) as session, pytest.raises(MachineError, match="the GPU answered 2: look at its memory"):
        session.run({"input": np.zeros((1, 1, 32, 32), np.float32)})


@pytest.mark.parametrize("feeds", [
    {}, {"input": np.zeros((5, 1, 32, 32), np.float32)}, {"input": np.zeros((1, 1, 32, 32))},
    {"input": np.zeros((1, 1, 16, 32), np.float32)}, {"input": np.zeros((32, 32), np.float32)},
])  # fmt: skip
def test_what_is_outside_the_profile_is_refused(engine: Path, gpu: Memory, feeds: dict[str, np.ndarray]) -> None:
    """Nothing given, too large a batch, another type or shape: before anything is copied."""
    with open_engine(engine) as session, pytest.raises(InputError, match=r"takes float32 from \[1, 1, 32, 32\] to"):
        session.run(feeds)
    assert not gpu.held


def opened(engine: Path) -> None:
    with open_engine(engine):
        pytest.fail("it was opened")


def test_an_engine_that_is_not_there_is_refused(tmp_path: Path) -> None:
    """With what to give instead."""
    with pytest.raises(InputError, match=r"no.plan' does not exist: give an engine"):
        opened(tmp_path / "no.plan")


@pytest.mark.parametrize("spoil", [
    lambda engine: sidecar(engine).unlink(),
    lambda engine: sidecar(engine).write_text("{"),
    lambda engine: sidecar(engine).write_text("[]"),
    lambda engine: describe(engine, strange=1),
    lambda engine: describe(engine, inputs=[{"name": "input"}]),
])  # fmt: skip
def test_an_engine_without_its_sidecar_is_refused(engine: Path, spoil: Callable[[Path], None]) -> None:
    """Missing, cut off, or of another version of this product."""
    spoil(engine)
    with pytest.raises(InputError, match=r"no sidecar 'engine.tensorrt_rtx.sm89.plan.json' of this version"):
        opened(engine)


def test_a_damaged_engine_is_refused(engine: Path) -> None:
    """One byte is enough."""
    content = bytearray(engine.read_bytes())
    content[1000] ^= 1
    engine.write_bytes(content)
    with pytest.raises(InputError, match="is not the engine that its sidecar describes: build it again"):
        opened(engine)


def test_an_engine_of_another_version_is_refused(engine: Path) -> None:
    """TensorRT would not load it; both versions are named."""
    describe(engine, version="0.9.1")
    with pytest.raises(InputError, match=r"was made by tensorrt_rtx 0\.9\.1, this is .*: build it again here"):
        opened(engine)


@pytest.mark.parametrize("here", [None, "sm120"])
def test_an_engine_for_another_gpu_is_refused(engine: Path, here: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """What it is for, and what there is."""
    monkeypatch.setattr(tensorrt_backend, "local_arch", lambda: here)
    with pytest.raises(MachineError, match=f"is for a GPU of sm89, this machine has {here or 'none'}: build it with"):
        opened(engine)


def test_an_engine_whose_backend_is_missing_is_refused(engine: Path) -> None:
    """The package is named."""
    describe(engine, backend="tensorrt")
    with pytest.raises(MachineError, match="needs tensorrt, which is not installed: pip install"):
        opened(engine)


@pytest.mark.usefixtures("gpu")
def test_without_cuda_bindings_it_is_said_what_to_install(engine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything else is here."""
    monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", None)
    with pytest.raises(MachineError, match="through cuda-bindings: pip install cuda-bindings"):
        opened(engine)


def test_a_sidecar_cannot_name_any_module(engine: Path) -> None:
    """A backend is one of those there are: nothing else is imported on a file's word."""
    describe(engine, backend="this")
    with pytest.raises(InputError, match="unknown backend 'this': take tensorrt or tensorrt_rtx"):
        opened(engine)
    assert "this" not in sys.modules
