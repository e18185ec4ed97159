"""`make gpu` on a machine without one: it says what it needs, and goes on behind a part that fails."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gpu
import gpu_parts
import pytest
import torch
from gpu_parts import PARTS, Place

from pipeline.reproduce import bench


@pytest.fixture(autouse=True)
def without_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


def test_without_a_gpu_it_says_what_it_needs(capsys: pytest.CaptureFixture[str]) -> None:
    """Exit code 3, one sentence, no part begun."""
    assert gpu.main([]) == 3
    out = capsys.readouterr().out
    assert out == (
        "error: torch sees no CUDA device: run this where there is an NVIDIA GPU, or rehearse it with --smoke.\n"
    )


def test_the_rest_goes_on_behind_a_part_that_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each in a process of its own. The record and the last lines say what came of which; exit code 1."""
    ended = {
        "tests": (77, "skipped: no GPU"), "inversion": (1, "RuntimeError: CUDA error"), "quantize": (-9, "Killed"),
    }  # fmt: skip

    def run(command: Sequence[str], timeout: float = 0, **_: Any) -> subprocess.CompletedProcess[str]:
        if "--part" not in command:  # the record asks git for the commit
            return subprocess.CompletedProcess(command, 0, "commit", "")
        part = command[command.index("--part") + 1]
        assert 0 < timeout <= 600
        assert "--smoke" in command
        if part == "engines":
            raise subprocess.TimeoutExpired(command, timeout)
        code, said = ended.get(part, (0, "done"))
        return subprocess.CompletedProcess(command, code, f"some lines\n{said}\n", "")

    monkeypatch.setattr(subprocess, "run", run)
    assert gpu.main(["--smoke", "--out", str(tmp_path)]) == 1
    (path,) = tmp_path.glob("*_gpu.json")
    parts = json.loads(path.read_text())["parts"]
    assert [part["part"] for part in parts] == list(PARTS)
    states = {part["part"]: (part["state"], part["said"]) for part in parts}
    assert states["tests"] == ("skipped", "skipped: no GPU")
    assert states["inversion"] == ("FAILED", "RuntimeError: CUDA error")
    assert states["quantize"][0] == states["engines"][0] == "FAILED"
    assert states["build_w8a8"] == ("done", "")
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[:2] for line in lines[-len(PARTS) :]] == [[part["part"], part["state"]] for part in parts]


def test_what_there_is_no_time_for_is_skipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And that is said; it is no failure."""
    monkeypatch.setattr(gpu, "in_own_process", lambda *_: pytest.fail("it was begun"))
    assert gpu.main(["--smoke", "--out", str(tmp_path), "--minutes", "0.1", "--only", "inversion"]) == 0
    (path,) = tmp_path.glob("*_gpu.json")
    (part,) = json.loads(path.read_text())["parts"]
    assert part["said"] == "no time is left: --only inversion runs it alone"


@pytest.mark.parametrize("part", ["tests", "engines"])
def test_parts_that_need_a_gpu_are_skipped(part: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With a code of its own, by which the script knows."""
    assert gpu.run_part(part, Place(True, None, tmp_path)) == gpu.SKIPS
    assert capsys.readouterr().out == "skipped: no GPU\n"
    assert not list(tmp_path.iterdir())


def test_a_part_is_rehearsed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The bench really runs, on the built-in teacher, and its record says what of."""
    monkeypatch.setattr(bench, "METHODS", {"dmi": bench.METHODS["dmi"], "pri_v7": bench.METHODS["pri_v7"]})
    assert gpu.run_part("inversion", Place(True, None, tmp_path)) == 0
    (path,) = tmp_path.iterdir()
    record = json.loads(path.read_text())
    assert path.name.endswith("_inversion_digits_vit_gpu_without_graphs.json")
    assert (record["gpu"], record["cuda_graphs"], record["teacher"]["name"]) == (None, False, "digits_vit")
    assert [row["name"] for row in record["rows"]] == ["dmi", "pri_v7"]


def test_weights_are_taken_where_they_are(tmp_path: Path) -> None:
    """One's own where the folder holds them, else random ones; a rehearsal has the built-in teacher's."""
    (tmp_path / "deit_tiny.safetensors").touch()
    assert Place(False, tmp_path, tmp_path).weights("deit_tiny") == tmp_path / "deit_tiny.safetensors"
    assert Place(False, tmp_path, tmp_path).weights("deit_base") is None
    assert Place(True, tmp_path, tmp_path).weights("deit_tiny") is None
    path = gpu_parts.random_weights("digits_vit", tmp_path)
    assert path.stat().st_size > 1e6
