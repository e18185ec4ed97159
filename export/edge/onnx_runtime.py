"""ONNX Runtime on one of its providers. Runs without torch: an edge device infers with it."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
import onnxruntime

from export.edge.backend import Array, Backend, Runtime
from export.edge.exactness import exact_settings, largest_products
from export.edge.files import require_own_data
from export.edge.kernels import Coverage, onnxruntime_kernels
from export.edge.products import with_names
from inversion.errors import InputError, MachineError

DTYPES = {"tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(uint8)": np.uint8}
WARNING, FATAL = 2, 4  # what ONNX Runtime prints by default; all it may print here, since errors are exceptions
CPU = "CPUExecutionProvider"
LAYOUTS = ("NhwcTransformer", "NchwcTransformer")
"""Rewrites that give convolutions another name, and the same kernel in another layout."""


class Session(Runtime):
    """A `Runtime` of ONNX Runtime."""

    _session: onnxruntime.InferenceSession | None

    def __init__(self, session: onnxruntime.InferenceSession) -> None:
        self._session = session
        self.provider = session.get_providers()[0]
        self.version = onnxruntime.__version__
        self.inputs = {
            value.name: tuple(size if isinstance(size, int) else None for size in value.shape)
            for value in session.get_inputs()
        }
        for value in session.get_inputs():
            if value.type not in DTYPES:
                raise InputError(f"input {value.name!r} is {value.type}: give a model that takes {', '.join(DTYPES)}.")
        self.dtypes = {value.name: np.dtype(DTYPES[value.type]) for value in session.get_inputs()}
        self.outputs = tuple(value.name for value in session.get_outputs())
        fixed = next((shape[0] for shape in self.inputs.values() if shape and shape[0]), None)
        self.batches = (fixed or 1, fixed)

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Every output by name. Raises `InputError` where `feeds` do not fit the model's inputs, or it is closed."""
        if self._session is None:
            raise InputError("the model was closed: open it again.")
        try:
            return dict(zip(self.outputs, self._session.run(list(self.outputs), dict(feeds)), strict=True))
        except (ValueError, onnxruntime.capi.onnxruntime_pybind11_state.InvalidArgument) as error:
            given = {name: f"{value.dtype} {list(value.shape)}" for name, value in feeds.items()}
            raise InputError(f"the model takes {self.inputs} and was given {given}: {_first_line(error)}.") from error

    def close(self) -> None:
        self._session = None  # its threads and its memory end with it


class OnnxRuntime(Backend):
    """ONNX Runtime on `provider`, its name for what is called `place` here ("cuda")."""

    name = "onnxruntime"
    version: str = onnxruntime.__version__

    def __init__(self, place: str, provider: str) -> None:
        self.place, self.provider = place, provider

    def check(self) -> None:
        """Also runs a small model on what is no CPU: a provider that is built in still lacks its GPU or its libraries
        on most machines."""
        if self.provider not in onnxruntime.get_available_providers():
            raise MachineError(
                f"this ONNX Runtime has no provider {self.place!r}: install one that has it, or use cpu."
            )
        if self.provider == CPU:
            return
        onnxruntime.preload_dlls()
        options = onnxruntime.SessionOptions()
        options.log_severity_level = FATAL
        # ONNX Runtime raises a different class for every way a provider can fail
        try:
            session = self._start(largest_products(), options)
        except Exception as error:
            raise self._did_not_start(f" ({_first_line(error)})") from error
        if session.get_providers()[0] != self.provider:
            raise self._did_not_start()

    def open(self, path: Path, threads: int | None = None) -> Session:
        self.check()
        return Session(self._load(path, _options(threads)))

    def kernels(self, path: Path) -> Coverage:
        """Read from the graph that ONNX Runtime makes of the file."""
        self.check()
        with tempfile.TemporaryDirectory() as folder:
            options, optimised = _options(None), Path(folder) / "optimised.onnx"
            options.optimized_model_filepath = str(optimised)
            for key, value in _beside(path).items():
                options.add_session_config_entry(key, value)
            require_own_data(path)
            model = with_names(onnx.load(path, format="protobuf", load_external_data=False))
            self._load(path, options, model.SerializeToString())
            made = onnx.load(optimised, load_external_data=False)
        return onnxruntime_kernels(model, made, f"ONNX Runtime {self.version} {self.place}")

    def _load(
        self, path: Path, options: onnxruntime.SessionOptions, content: bytes | None = None
    ) -> onnxruntime.InferenceSession:
        """A session of the file in `path`, or of `content`, which was made of it to look into."""
        require_own_data(path)
        # ONNX Runtime raises a different class for every way a file can be wrong
        try:
            session = self._start(content or str(path), options, LAYOUTS if content else ())
        except Exception as error:
            raise InputError(
                f"{str(path)!r} is not a model that ONNX Runtime can load ({_first_line(error)}): "
                "make one with `pipeline export`."
            ) from error
        if session.get_providers()[0] != self.provider:  # ONNX Runtime falls back to the CPU without a word
            raise self._did_not_start()
        return session

    def _start(
        self, model: str | bytes, options: onnxruntime.SessionOptions, without: Sequence[str] = ()
    ) -> onnxruntime.InferenceSession:
        """A session, without a word on what ONNX Runtime prints of a provider that fails."""
        onnxruntime.set_default_logger_severity(FATAL)
        try:
            return onnxruntime.InferenceSession(
                model, options, providers=[self.provider], enable_fallback=0, disabled_optimizers=list(without)
            )
        finally:
            onnxruntime.set_default_logger_severity(WARNING)

    def _did_not_start(self, why: str = "") -> MachineError:
        return MachineError(f"the provider {self.place!r} did not start here{why}: run `pipeline doctor`, or use cpu.")


def _options(threads: int | None) -> onnxruntime.SessionOptions:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = FATAL
    if threads is not None:
        options.intra_op_num_threads = threads
    for key, value in exact_settings().items():
        options.add_session_config_entry(key, value)
    return options


def _beside(path: Path) -> dict[str, str]:
    """Settings for a model that is given as bytes: where its weights lie, and that those of the optimised graph, which
    may pass protobuf's 2 GB, lie beside that."""
    return {
        "session.model_external_initializers_file_folder_path": str(path.resolve().parent),
        "session.optimized_model_external_initializers_file_name": "optimised.data",
        "session.optimized_model_external_initializers_min_size_in_bytes": "65536",
    }


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(". ")[:300]
