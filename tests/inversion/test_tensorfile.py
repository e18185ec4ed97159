"""Files of tensors: bytes that depend on content alone, and no half-written file."""

import os
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from inversion.errors import InputError
from inversion.tensorfile import read_tensors, write_tensors

OTHER_PROCESS = "import runpy, sys; runpy.run_path(sys.argv[1])['write_in_order'](range(8, -1, -1), sys.argv[2])"


def write_in_order(order: Iterable[int], path: str) -> None:
    """Nine tensors and nine strings, inserted in this order."""
    tensors = {f"t{i}": torch.full((i + 1, 3), float(i)) for i in order}
    write_tensors(Path(path), tensors, {f"key{i}": "v" * i for i in order} | {"format": "test/1"})


def test_same_content_gives_the_same_bytes_in_another_process(tmp_path: Path) -> None:
    """Neither the hash seed of a process nor the order of insertion shows in the file."""
    here, there = str(tmp_path / "here"), str(tmp_path / "there")
    write_in_order(range(9), here)
    environment = {**os.environ, "PYTHONHASHSEED": "7", "OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, "-c", OTHER_PROCESS, __file__, there], check=True, env=environment)
    assert Path(here).read_bytes() == Path(there).read_bytes()


def test_tensors_and_metadata_come_back(tmp_path: Path) -> None:
    """Values, types and shapes are exact, strings too; any safetensors reader can read the file."""
    path = tmp_path / "a.safetensors"
    tensors = {
        "half": torch.tensor([[0.1, -65504.0]], dtype=torch.float16),
        "strided": torch.arange(6).view(2, 3).T,
        "scalar": torch.tensor(-3, dtype=torch.int8),
        "none": torch.zeros(0, 4),
    }
    write_tensors(path, tensors, {"format": "test/1", "name": "ü\n\"x\" '1'"})
    found, metadata = read_tensors(path, "test/1", "")
    assert metadata == {"format": "test/1", "name": "ü\n\"x\" '1'"}
    assert found.keys() == tensors.keys()
    for key, value in load_file(path).items():
        assert value.dtype == tensors[key].dtype == found[key].dtype
        assert torch.equal(value, tensors[key])
        assert torch.equal(found[key], tensors[key])


def test_a_failed_write_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """When the disk fails, what was at the path stays as it was, and no partial file remains."""

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    old = tmp_path / "old.safetensors"
    write_tensors(old, {"a": torch.zeros(1)}, {"format": "test/1"})
    before = old.read_bytes()
    monkeypatch.setattr(os, "fsync", full)
    for path in (old, tmp_path / "new.safetensors"):
        with pytest.raises(OSError, match="No space left"):
            write_tensors(path, {"a": torch.ones(5)}, {"format": "test/1"})
    assert [path.name for path in tmp_path.iterdir()] == ["old.safetensors"]
    assert old.read_bytes() == before


def test_other_files_are_refused(tmp_path: Path) -> None:
    """A missing, truncated or foreign file is an `InputError` that names the file and ends with the way out."""
    good = tmp_path / "good.safetensors"
    write_tensors(good, {"a": torch.ones(100)}, {"format": "test/1"})
    data = good.read_bytes()
    cases = {
        "missing": None,
        "empty": b"",
        "short": data[:-1],
        "long": data + b"\0",
        "header": data[:40],
        "noise": b"\xff" * 200,
        "pickle": b"\x80\x04]",
    }
    for name, content in cases.items():
        path = tmp_path / name
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(InputError, match=rf"{name}' is not a whole safetensors file .*: make it again\.$"):
            read_tensors(path, "test/1", "make it again.")
    with pytest.raises(InputError, match=r"good.safetensors' is not of the format test/2: make it again\.$"):
        read_tensors(good, "test/2", "make it again.")
