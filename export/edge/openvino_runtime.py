"""OpenVINO on CPUs. Runs without torch: an edge device infers with it.

What the scheme leaves float it computes as it finds best here: in bfloat16 where the CPU multiplies that.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnx

from export.edge.backend import Array, Backend, Runtime
from export.edge.files import require_own_data
from export.edge.kernels import Coverage, openvino_kernels
from export.edge.products import with_names
from inversion.errors import InputError, MachineError

CPU = "CPU"
TYPES = ("float32", "float16", "uint8")


class Compiled(Runtime):
    """A `Runtime` of OpenVINO."""

    def __init__(self, openvino: ModuleType, model: Any) -> None:
        self._openvino, self._request = openvino, model.create_infer_request()
        self.provider, self.version = "OpenVINO", _version(openvino)
        given = {value.get_any_name(): value for value in model.inputs}
        self.inputs = {name: _sizes(value.get_partial_shape()) for name, value in given.items()}
        self.dtypes = {name: np.dtype(value.get_element_type().to_dtype()) for name, value in given.items()}
        for name, dtype in self.dtypes.items():
            if dtype.name not in TYPES:
                raise InputError(f"input {name!r} is {dtype}: give a model that takes {', '.join(TYPES)}.")
        self.outputs = tuple(value.get_any_name() for value in model.outputs)
        fixed = next((shape[0] for shape in self.inputs.values() if shape and shape[0]), None)
        self.batches = (fixed or 1, fixed)

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Every output by name. Raises `InputError` where `feeds` do not fit the model's inputs, or it is closed."""
        with self.ready(feeds) as execute:
            execute()
        return {name: self._request.get_tensor(name).data.copy() for name in self.outputs}

    @contextmanager
    def ready(self, feeds: Mapping[str, Array]) -> Iterator[Callable[[], object]]:
        request = self._request
        if request is None:
            raise InputError("the model was closed: open it again.")
        if not self._fit(feeds):
            given = {name: f"{value.dtype} {list(value.shape)}" for name, value in feeds.items()}
            raise InputError(f"the model takes {self.inputs} and was given {given}: give arrays that fit.")
        for name, value in feeds.items():
            request.set_tensor(name, self._openvino.Tensor(np.ascontiguousarray(value)))
        yield request.infer

    def _fit(self, feeds: Mapping[str, Array]) -> bool:
        """OpenVINO itself takes other types, and converts them."""
        return feeds.keys() == self.inputs.keys() and all(
            value.dtype == self.dtypes[name]
            and value.ndim == len(shape := self.inputs[name])
            and all(size in (None, found) for size, found in zip(shape, value.shape, strict=True))
            for name, value in feeds.items()
        )

    def close(self) -> None:
        self._request = None  # its threads and its memory end with it


class OpenVino(Backend):
    """OpenVINO's CPU plugin, as it is by default."""

    name = "openvino"

    def __init__(self, openvino: ModuleType) -> None:
        """`openvino`: the module."""
        self._openvino, self.version = openvino, _version(openvino)

    def check(self) -> None:
        if CPU not in self._openvino.Core().available_devices:
            raise MachineError("OpenVINO has no CPU plugin here: install its package again, or use cpu.")

    def floats(self) -> str:
        name: str = self._openvino.Core().get_property(CPU, "INFERENCE_PRECISION_HINT").get_type_name()
        return {"f32": "float32", "f16": "float16", "bf16": "bfloat16"}.get(name, name)

    def open(self, path: Path, threads: int | None = None) -> Compiled:
        require_own_data(path)
        return Compiled(self._openvino, self._compile(str(path), path, threads))

    def kernels(self, path: Path) -> Coverage:
        """Read from the compiled model, whose layers name what they were made of."""
        require_own_data(path)
        model = with_names(onnx.load(path, format="protobuf", load_external_data=False))
        beside = any(tensor.external_data for tensor in model.graph.initializer)
        compiled = self._compile(str(path) if beside else model.SerializeToString(), path)
        layers = [
            {key: str(value.astype(str)) for key, value in layer.get_rt_info().items()}
            for layer in compiled.get_runtime_model().get_ordered_ops()
        ]
        about = f"OpenVINO {self.version}, {self.floats()} beside the integers"
        return openvino_kernels(model, layers, about)

    def _compile(self, model: str | bytes, path: Path, threads: int | None = None) -> Any:
        settings = {} if threads is None else {"INFERENCE_NUM_THREADS": threads}
        # OpenVINO raises the same class for every way a file can be wrong
        try:
            core = self._openvino.Core()
            return core.compile_model(core.read_model(model), CPU, settings)
        except Exception as error:
            why = " ".join(str(error).split()).rstrip(". ")[:300]
            raise InputError(
                f"{str(path)!r} is not a model that OpenVINO can compile ({why}): make one with `pipeline export`."
            ) from error


def _version(openvino: ModuleType) -> str:
    return str(openvino.__version__).split("-")[0]


def _sizes(shape: Any) -> tuple[int | None, ...]:
    return tuple(size.get_length() if size.is_static else None for size in shape)
