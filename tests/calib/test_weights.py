"""The quantized file: every integer comes back, and nothing inconsistent gets in."""

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from calib.scheme import LayerBits, QuantScheme
from calib.weights import FORMAT, QuantizedWeights
from inversion.errors import InputError


def weights() -> QuantizedWeights:
    """Two layers, of 4 and of 8 bits, which use all integers of their range."""
    four = torch.arange(-8, 8, dtype=torch.int8).view(4, 4)
    eight = torch.arange(-128, 128).to(torch.int8).view(2, 2, 8, 8)
    return QuantizedWeights(
        scheme=QuantScheme(4, 8),
        teacher="small",
        teacher_sha256="a" * 64,
        layers={"fc": LayerBits(4, 8), "proj": LayerBits(8, 8)},
        tensors={
            "fc.weight": four,
            "fc.weight_step": torch.tensor([0.1, 1e-8, 3.0, 0.7]),
            "fc.input_step": torch.tensor(0.03),
            "fc.bias": torch.tensor([0.1, -0.2, 0.3, 1e-30]),
            "proj.weight": eight,
            "proj.weight_step": torch.tensor([0.5, 0.25]),
            "proj.input_step": torch.tensor(2.0),
        },
    )


def with_tensor(key: str, value: torch.Tensor) -> QuantizedWeights:
    return replace(weights(), tensors={**weights().tensors, key: value})


def test_a_file_keeps_every_number(tmp_path: Path) -> None:
    """Integers, steps, floats, bits, scheme and teacher come back exactly; equal weights give equal bytes."""
    weights().save(tmp_path / "a.safetensors")
    found = QuantizedWeights.load(tmp_path / "a.safetensors")
    assert (found.scheme, found.teacher, found.teacher_sha256) == (QuantScheme(4, 8), "small", "a" * 64)
    assert found.layers == weights().layers
    assert found.tensors.keys() == weights().tensors.keys()
    for key, value in weights().tensors.items():
        assert found.tensors[key].dtype == value.dtype
        assert torch.equal(found.tensors[key], value)
    found.save(tmp_path / "b.safetensors")
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()


@pytest.mark.parametrize(
    "scheme",
    [
        QuantScheme.parse("w4a4", edges="w4a8", layers={"fc": "w4a8", "*": "w8a16"}),
        QuantScheme.parse("w8a8", edges="w8a16"),
    ],
)
def test_a_file_keeps_a_scheme_with_overrides(scheme: QuantScheme, tmp_path: Path) -> None:
    """Edges and overrides come back in their order: the loaded scheme is equal."""
    replace(weights(), scheme=scheme).save(tmp_path / "a.safetensors")
    assert QuantizedWeights.load(tmp_path / "a.safetensors").scheme == scheme


def test_float_weight_is_integer_times_step() -> None:
    """Each output channel has its own step, whatever the weight's shape."""
    found = weights()
    assert torch.equal(found.float_weight("proj")[1], found.tensors["proj.weight"][1].float() * 0.25)
    assert torch.equal(found.float_weight("fc")[2], torch.tensor([0.0, 3.0, 6.0, 9.0]))


@pytest.mark.parametrize("outside", [-9, 8])
def test_integers_out_of_range_are_refused(outside: int) -> None:
    """A 4-bit weight is an integer in [-8, 7], and is stored as one."""
    message = "fc.weight is not made of integers in [-8, 7]: quantize again."
    integers = weights().tensors["fc.weight"].clone()
    integers[1, 2] = outside
    for value in (integers, weights().tensors["fc.weight"].float()):
        with pytest.raises(InputError, match=f"^{re.escape(message)}$"):
            with_tensor("fc.weight", value)


@pytest.mark.parametrize("bad", [0.0, -1e-3, float("nan"), float("inf")])
@pytest.mark.parametrize("key", ["fc.weight_step", "proj.input_step"])
def test_steps_that_are_not_positive_are_refused(key: str, bad: float) -> None:
    """A step is a positive number, in each channel."""
    step = weights().tensors[key].clone()
    step.view(-1)[-1] = bad
    name, step_name = key.split(".")
    message = f"{name} has a {step_name} that is not a positive number: quantize again."
    with pytest.raises(InputError, match=f"^{re.escape(message)}$"):
        with_tensor(key, step)


def changed(**metadata: str) -> Callable[[Path], None]:
    """Writes the weights' file with other metadata."""

    def write(path: Path) -> None:
        found = weights()
        layers = json.dumps({"fc": {"weight": 4, "activation": 8}})
        whole = {"format": FORMAT, "scheme": "w4a8", "teacher": "x", "teacher_sha256": "x", "layers": layers}
        save_file(found.tensors, path, {key: value for key, value in {**whole, **metadata}.items() if value})

    return write


def test_the_changed_file_is_otherwise_good(tmp_path: Path) -> None:
    """The file that the refusals below start from is accepted."""
    changed()(tmp_path / "q.safetensors")
    assert QuantizedWeights.load(tmp_path / "q.safetensors").teacher == "x"


@pytest.mark.parametrize(
    ("write", "why"),
    [
        (changed(format="patch-rebirth.quantized/2"), "is not of the format patch-rebirth.quantized/1"),
        (changed(format=""), "is not of the format"),
        (changed(layers=""), "is not consistent"),
        (changed(layers="{"), "is not consistent"),
        (changed(layers="[]"), "is not consistent"),
        (changed(layers='{"fc": {"weight": 4}}'), "is not consistent"),
        (changed(layers='{"other": {"weight": 4, "activation": 8}}'), "is not consistent"),
        (changed(layers='{"proj": {"weight": 4, "activation": 8}}'), "proj.weight is not made of integers"),
        (changed(scheme="w1a8"), "is not consistent .*1 bits"),
        (changed(overrides='{"attention": "int4"}'), "is not consistent .*'int4'"),
        (changed(overrides='{"edge": "w8a8"}'), "is not consistent"),
        (changed(overrides='{"layers": 3}'), "is not consistent"),
        (changed(overrides="[]"), "is not consistent"),
        (changed(teacher_sha256=""), "is not consistent"),
        (lambda path: path.write_bytes(b"\x00" * 30), "is not a whole safetensors file"),
        (lambda path: None, "is not a whole safetensors file"),  # noqa: ARG005 - writes nothing
    ],
)
def test_other_files_are_refused(tmp_path: Path, write: Callable[[Path], None], why: str) -> None:
    """A file that is no whole, consistent `quantized.safetensors` is an `InputError` that says how to mend it."""
    path = tmp_path / "quantized.safetensors"
    write(path)
    with pytest.raises(InputError, match=rf"quantized.safetensors' .*{why}.*: make it again with `pipeline quantize`"):
        QuantizedWeights.load(path)
