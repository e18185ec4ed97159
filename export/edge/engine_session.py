"""A TensorRT engine, loaded on its GPU. Runs without torch: an edge device infers with it."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping
from types import ModuleType
from typing import Any

import numpy as np

from export.edge.backend import Array, Runtime
from export.edge.engine_spec import EngineSpec, TensorSpec
from inversion.errors import InputError, MachineError


class EngineSession(Runtime):
    """A `Runtime` of TensorRT or TensorRT-RTX; copies inputs to the GPU and outputs back at every run."""

    def __init__(self, spec: EngineSpec, engine: Any, trt: ModuleType, cuda: Any) -> None:
        self.provider = spec.backend
        self.version = spec.version
        self.inputs = {tensor.name: _free_shape(tensor) for tensor in spec.inputs}
        self.dtypes = {tensor.name: np.dtype(tensor.dtype) for tensor in spec.inputs}
        self.outputs = tuple(tensor.name for tensor in spec.outputs)
        self.batches = (
            max(tensor.min[0] for tensor in spec.inputs),
            min(tensor.max[0] for tensor in spec.inputs),
        )
        self.arch = spec.arch
        self._spec = spec
        self._trt, self._engine = trt, engine
        self._context = engine.create_execution_context()
        self._cuda = cuda

    def close(self) -> None:
        """Free the context, then the engine that it belongs to: TensorRT does so with the last reference to each."""
        self._context = self._engine = None

    def layers(self) -> str:
        """What the engine's inspector tells of its layers, a line each, for `export.edge.kernels.engine_kernels`."""
        oneline = self._trt.LayerInformationFormat.ONELINE
        return str(self._engine.create_engine_inspector().get_engine_information(oneline))

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Every output by name. Raises `InputError` where `feeds` do not fit the profile, or the engine is closed."""
        with self._loaded(feeds) as (execute, pointers):
            answers: dict[str, Array] = {}
            execute()
            for tensor in self._spec.outputs:
                answer = np.empty(tuple(self._context.get_tensor_shape(tensor.name)), tensor.dtype)
                self._copy(answer.ctypes.data, pointers[tensor.name], answer.nbytes, "cudaMemcpyDeviceToHost")
                answers[tensor.name] = answer
        return answers

    @contextlib.contextmanager
    def ready(self, feeds: Mapping[str, Array]) -> Iterator[Callable[[], object]]:
        """`feeds` on the GPU: a run copies nothing. Raises what `run` raises."""
        with self._loaded(feeds) as (execute, _):
            yield execute

    @contextlib.contextmanager
    def _loaded(self, feeds: Mapping[str, Array]) -> Iterator[tuple[Callable[[], None], dict[str, int]]]:
        """What runs the engine on `feeds`, which were copied to the GPU, and where it writes each output."""
        if self._context is None:
            raise InputError("the engine was closed: open it again.")
        for tensor in self._spec.inputs:
            _require_fit(tensor, feeds.get(tensor.name))
        with contextlib.ExitStack() as stack:
            for tensor in self._spec.inputs:
                value = np.ascontiguousarray(feeds[tensor.name])
                self._context.set_input_shape(tensor.name, value.shape)
                pointer = self._allocate(stack, tensor.name, value.nbytes)
                self._copy(pointer, value.ctypes.data, value.nbytes, "cudaMemcpyHostToDevice")
            pointers = {}
            for tensor in self._spec.outputs:
                numbers = math.prod(self._context.get_tensor_shape(tensor.name))
                pointers[tensor.name] = self._allocate(stack, tensor.name, numbers * np.dtype(tensor.dtype).itemsize)
            stream = _checked(self._cuda.cudaStreamCreate())
            stack.callback(lambda: _checked(self._cuda.cudaStreamDestroy(stream)))

            def execute() -> None:
                if not self._context.execute_async_v3(int(stream)):
                    raise MachineError(f"{self.provider} could not run the engine: look at the GPU's memory.")
                _checked(self._cuda.cudaStreamSynchronize(stream))

            yield execute, pointers

    def _allocate(self, stack: contextlib.ExitStack, name: str, size: int) -> int:
        """Memory for the tensor `name`, until `stack` ends."""
        pointer = int(_checked(self._cuda.cudaMalloc(size)))
        stack.callback(lambda: _checked(self._cuda.cudaFree(pointer)))
        self._context.set_tensor_address(name, pointer)
        return pointer

    def _copy(self, to: int, source: int, size: int, kind: str) -> None:
        _checked(self._cuda.cudaMemcpy(to, source, size, getattr(self._cuda.cudaMemcpyKind, kind)))


def _free_shape(tensor: TensorSpec) -> tuple[int | None, ...]:
    return tuple(low if low == high else None for low, high in zip(tensor.min, tensor.max, strict=True))


def _require_fit(tensor: TensorSpec, value: Array | None) -> None:
    given = "nothing" if value is None else f"{value.dtype} {list(value.shape)}"
    fits = (
        value is not None
        and value.dtype == tensor.dtype
        and value.ndim == len(tensor.min)
        and all(low <= size <= high for low, size, high in zip(tensor.min, value.shape, tensor.max, strict=True))
    )
    if not fits:
        raise InputError(
            f"the engine's {tensor.name!r} takes {tensor.dtype} from {list(tensor.min)} to {list(tensor.max)} "
            f"and was given {given}."
        )


def _checked(answer: tuple[Any, ...]) -> Any:
    """What a CUDA call returned, without its status."""
    status, *values = answer
    if int(status):
        raise MachineError(f"the GPU answered {status!r}: look at its memory and its driver.")
    return values[0] if values else None
