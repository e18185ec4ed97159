"""A model in a process of its own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from export.edge.alone import Alone, Turn
from inversion.errors import InputError, MachineError
from tests.small import Quantized

Make = Callable[[str], Quantized]


def test_turns_of_one_process(quantized: Make) -> None:
    """As many times as were asked for, whatever batch and threads the turn before had; the memory is the process's."""
    with Alone(quantized("w8a8").path) as model:
        for turn in (Turn(1, 2, 1), Turn(2, 3, 1), Turn(2, 0), Turn(1, 1, 2)):
            found = model.take(turn)
            assert len(found) == turn.runs
            assert all(milliseconds > 0 for milliseconds in found)
        assert model.peak_bytes > 20e6
    model.close()


def test_what_goes_wrong_there_is_said_here(tmp_path: Path, quantized: Make) -> None:
    """With the sentence and the class that it has there; a process that ended is the machine's matter."""
    with (
        Alone(tmp_path / "no.onnx") as missing,
        Alone(quantized("w8a8").path, "abacus") as unknown,
        Alone(quantized("w8a8").path, "tensorrt") as absent,
        Alone(quantized("w8a8").path) as ended,
    ):
        with pytest.raises(InputError, match=r"no.onnx' does not exist"):
            missing.take(Turn(1, 1))
        with pytest.raises(InputError, match="unknown provider 'abacus'"):
            unknown.take(Turn(1, 1))
        with pytest.raises(MachineError, match="'tensorrt'"):
            absent.take(Turn(1, 1))
        ended._process.kill()
        with pytest.raises(MachineError, match=r"the process that timed '.*w8a8.onnx' ended: it said nothing"):
            ended.take(Turn(1, 1))
