"""What a Python program imports: the names of calib and export, and the way through both in a few lines."""

from __future__ import annotations

import importlib
import pkgutil
from pathlib import Path
from types import ModuleType

import pytest

import calib
import export
from calib import Quantized, QuantizedWeights, quantize
from export import answer, compare, export_onnx, open_runtime
from inversion.errors import InputError
from inversion.teacher import Teacher
from tests.small import small_teacher, sparse_images

OFFERED = {
    calib: "Basis Calibration LayerBits QuantScheme Quantized QuantizedWeights Rounding Training quantize",
    export: "Comparison EngineSpec Runtime answer build_engine compare export_onnx measure_latency open_engine "
    "open_runtime",
}


@pytest.mark.parametrize("package", OFFERED, ids=lambda package: package.__name__)
def test_the_offered_names_are_these(package: ModuleType) -> None:
    """Adding or dropping one is a change of what others rely on; each is there and says what it is."""
    assert package.__all__ == OFFERED[package].split() == dir(package)
    for name in package.__all__:
        assert getattr(package, name).__doc__, name
        assert getattr(package, name).__name__ == name


@pytest.mark.parametrize("package", OFFERED, ids=lambda package: package.__name__)
def test_no_module_hides_an_offered_name(package: ModuleType) -> None:
    """A module of the same name would take its place as soon as anybody imports it."""
    modules = {found.name for found in pkgutil.iter_modules(package.__path__)}
    assert not modules & set(package.__all__)
    for module in modules:
        importlib.import_module(f"{package.__name__}.{module}")
    assert all(not isinstance(getattr(package, name), ModuleType) for name in package.__all__)


@pytest.mark.parametrize("package", OFFERED, ids=lambda package: package.__name__)
def test_an_unknown_name_is_refused(package: ModuleType) -> None:
    """With those there are."""
    with pytest.raises(AttributeError, match=rf"module '{package.__name__}' has no attribute 'nothing': it offers "):
        _ = package.nothing


@pytest.fixture(scope="module")
def teacher() -> Teacher:
    return small_teacher()


@pytest.fixture(scope="module")
def quantized(teacher: Teacher) -> Quantized:
    return quantize(teacher, sparse_images(8), "w8a8")


@pytest.fixture(scope="module")
def model(teacher: Teacher, quantized: Quantized, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("front") / "model.onnx"
    export_onnx(teacher, quantized, path)
    return path


def test_from_pictures_to_a_comparison_in_a_few_lines(teacher: Teacher, model: Path) -> None:
    """Three positional arguments are enough for `quantize`; what comes out of ONNX Runtime agrees with the teacher."""
    pictures = sparse_images(8).mosaics()
    with open_runtime(model) as runtime:
        found = compare(teacher.logits(pictures), answer(runtime, pictures))
    assert found.n == 8
    assert found.kl < 0.05


def test_the_defaults_are_those_of_the_quick_effort(quantized: Quantized) -> None:
    """A learned basis and ranges by the teacher's gradients; nothing is trained."""
    assert (quantized.basis.method, quantized.method) == ("learned", "fisher")
    assert quantized.training.history == ((0, quantized.training.calibrated),)


def test_a_file_gives_the_graph_of_the_result(
    teacher: Teacher, quantized: Quantized, model: Path, tmp_path: Path
) -> None:
    """`export_onnx` takes either, and paths as text."""
    quantized.save(str(tmp_path / "quantized.safetensors"))
    assert QuantizedWeights.load(str(tmp_path / "quantized.safetensors")).layers == quantized.weights.layers
    export_onnx(teacher, str(tmp_path / "quantized.safetensors"), str(tmp_path / "model.onnx"))
    assert (tmp_path / "model.onnx").read_bytes() == model.read_bytes()


def test_weights_of_another_teacher_are_refused(teacher: Teacher, quantized: Quantized, tmp_path: Path) -> None:
    """Both teachers are named, and no file appears; weights without the rest of a result are taken as well."""
    other = Teacher(teacher.model, teacher.spec, "other", "1" * 64)
    with pytest.raises(InputError, match="made from another teacher than 'other': give that of 'small'"):
        export_onnx(other, quantized.weights, tmp_path / "model.onnx")
    assert not list(tmp_path.iterdir())
