"""The backends there are, and what each of them offers."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import get_args

import onnxruntime
import pytest

from export.edge.backend import Backend, Runtime
from export.edge.registry import (
    ENGINES,
    OPENVINO,
    RUNTIMES,
    BackendName,
    Provider,
    available,
    find_engine_backend,
    find_runtime,
)
from inversion.errors import InputError, MachineError
from tests.small import Quantized

Make = Callable[..., Quantized]


def test_names_are_what_scripts_rely_on() -> None:
    """What `validation.provider` and `engine.backend` take; the default engine is the first that is installed."""
    assert list(get_args(Provider)) == ["cpu", "cuda", "tensorrt", "tensorrt_rtx"]
    assert list(RUNTIMES) == [*get_args(Provider), OPENVINO]
    assert list(ENGINES) == list(get_args(BackendName)) == ["tensorrt", "tensorrt_rtx"]


HERE = [find for name, find in RUNTIMES.items() if name != OPENVINO or available(OPENVINO)]


@pytest.mark.parametrize("find", [*HERE, *(ENGINES[name] for name in ENGINES if available(name))])
def test_every_backend_offers_the_same(find: Callable[[], Backend]) -> None:
    """A name, a version, and methods that take what the base class says, so that one can stand for another."""
    backend = find()
    assert isinstance(backend, Backend)
    assert backend.name
    assert backend.version[0].isdigit()
    for method in ("check", "floats", "archs", "build", "open", "kernels"):
        base, own = (inspect.signature(getattr(cls, method)).parameters for cls in (Backend, type(backend)))
        assert list(own) == list(base), method


def test_a_runtime_says_who_it_is() -> None:
    """ONNX Runtime has one name and version whatever its provider."""
    assert {(find_runtime(name).name, find_runtime(name).version) for name in get_args(Provider)} == {
        ("onnxruntime", onnxruntime.__version__)
    }


def test_what_runs_onnx_files_builds_nothing(quantized: Make, tmp_path: Path) -> None:
    """It says so, and names no architecture."""
    backend = find_runtime("cpu")
    assert backend.archs() == ()
    with pytest.raises(InputError, match=r"onnxruntime runs '.*w8a8.onnx' as it is: there is no e.plan to build"):
        backend.build(quantized("w8a8").path, tmp_path / "e.plan", "sm89")
    assert not list(tmp_path.iterdir())


def test_every_opened_model_is_a_runtime(quantized: Make) -> None:
    """Open and closed by `with`."""
    with find_runtime("cpu").open(quantized("w8a8").path, threads=1) as runtime:
        assert isinstance(runtime, Runtime)


def test_a_backend_that_is_not_installed_is_the_machines_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    """An unknown one is the command's."""
    monkeypatch.setattr("export.edge.registry.available", lambda _: None)
    with pytest.raises(MachineError, match="the backend 'tensorrt' is not installed or does not load: pip install"):
        find_engine_backend("tensorrt")
    with pytest.raises(InputError, match="unknown backend 'openvino': take tensorrt or tensorrt_rtx"):
        find_engine_backend("openvino")
