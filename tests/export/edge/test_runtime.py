from __future__ import annotations

import weakref
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch

from export.edge.backend import Runtime
from export.edge.runtime import answer, open_runtime, require_provider
from inversion.errors import InputError, MachineError
from tests.small import Quantized

Make = Callable[[str], Quantized]


def test_session_runs_and_says_what_it_is(quantized: Make) -> None:
    """A session gives every output by name, the provider that loaded, and the version."""
    made = quantized("w8a8")
    with open_runtime(made.path, threads=1) as session:
        assert (session.provider, session.version) == ("CPUExecutionProvider", onnxruntime.__version__)
        assert session.inputs == {"input": (None, 1, 32, 32)}
        for batch in (1, 3):
            found = session.run({"input": made.images[:batch].numpy()})
            assert {name: value.shape for name, value in found.items()} == {"logits": (batch, 10)}


@pytest.mark.parametrize("bits", ["w8a8", "w4a8", "w8a16"])
def test_optimised_session_agrees_with_torch(quantized: Make, bits: str) -> None:
    """With all of ONNX Runtime's rewrites, on any x86, the logits stay within the quantization noise of torch's."""
    made = quantized(bits)
    want = made.module(made.images).numpy()
    noise = np.linalg.norm(want - made.model(made.images).numpy())
    with open_runtime(made.path) as session:
        got = session.run({"input": made.images.numpy()})["logits"]
    assert np.linalg.norm(got - want) < (1e-3 if bits == "w8a16" else 0.25) * noise


def test_what_is_opened_is_closed(quantized: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """At the end of `with`, and at an error in it, ONNX Runtime's session goes, and the model answers no more."""
    real, alive = onnxruntime.InferenceSession, weakref.WeakSet()

    def opened(*args: object, **kwargs: object) -> onnxruntime.InferenceSession:
        session = real(*args, **kwargs)
        alive.add(session)
        return session

    feeds = {"input": np.zeros((1, 1, 32, 32), np.float32)}
    monkeypatch.setattr(onnxruntime, "InferenceSession", opened)
    for wrong in (False, True):
        with suppress(ZeroDivisionError), open_runtime(quantized("w8a8").path, threads=1) as runtime:
            assert len(alive) == 1
            _ = 1 / (not wrong)
        assert not alive
        with pytest.raises(InputError, match="the model was closed: open it again"):
            runtime.run(feeds)
    runtime.close()


def test_wrong_feeds_are_refused(quantized: Make) -> None:
    """A wrong name, shape or type is refused with what the model takes and what it was given."""
    zeros = np.zeros((1, 1, 32, 32), np.float32)
    with open_runtime(quantized("w8a8").path) as session:
        for feeds in ({"pixels": zeros}, {"input": zeros[..., 1:]}, {"input": zeros.astype(np.float64)}):
            with pytest.raises(InputError, match=r"takes {'input': \(None, 1, 32, 32\)} and was given {'.*float"):
                session.run(feeds)


@pytest.mark.parametrize("content", [b"", b"not a model" * 9])
def test_what_is_no_model_is_refused(content: bytes, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Another file, or none, is refused in one sentence, and nothing is printed."""
    path = tmp_path / "m.onnx"
    with pytest.raises(InputError, match="does not exist"), open_runtime(path):
        pass
    path.write_bytes(content)
    with pytest.raises(InputError, match="is not an ONNX file"), open_runtime(path):
        pass
    assert capfd.readouterr() == ("", "")


def test_unknown_provider_is_refused(quantized: Make) -> None:
    """The message names the providers there are."""
    with pytest.raises(InputError, match="unknown provider 'tpu': take one of cpu, cuda, tensorrt, tensorrt_rtx"):
        open_runtime(quantized("w8a8").path, "tpu").__enter__()


@pytest.mark.skipif(torch.cuda.is_available(), reason="the provider would start here")
def test_provider_that_falls_back_is_refused(quantized: Make, capfd: pytest.CaptureFixture[str]) -> None:
    """Asked for CUDA on a machine without it, the CPU is not used in its place, and nothing is printed."""
    with pytest.raises(MachineError, match="'cuda'"):
        open_runtime(quantized("w8a8").path, "cuda").__enter__()
    assert capfd.readouterr() == ("", "")


class Taking(Runtime):
    """A model that takes some batches only, and answers with the first pixel of each picture."""

    def __init__(self, smallest: int, largest: int | None, outputs: tuple[str, ...] = ("output",)) -> None:
        self.provider, self.version, self.outputs = "some", "1", outputs
        self.inputs, self.dtypes = {"pixels": (None, 3)}, {"pixels": np.dtype(np.float32)}
        self.batches, self.seen = (smallest, largest), []

    def run(self, feeds):  # type: ignore[no-untyped-def]
        self.seen.append(len(feeds["pixels"]))
        assert self.batches[0] <= self.seen[-1] <= (self.batches[1] or 99)
        return dict.fromkeys(self.outputs, feeds["pixels"][:, :1])

    def close(self) -> None:
        """Nothing is held."""


@pytest.mark.parametrize(
    ("smallest", "largest", "seen"), [(1, None, [7]), (1, 3, [3, 3, 1]), (4, 4, [4, 4]), (2, 6, [6, 2]), (9, None, [9])]
)
def test_a_model_is_given_batches_that_it_takes(smallest: int, largest: int | None, seen: list[int]) -> None:
    """Parts of its largest, the last one filled up to its smallest; the answers are of the pictures alone."""
    images = np.arange(21, dtype=np.float32).reshape(7, 3)
    runtime = Taking(smallest, largest)
    np.testing.assert_array_equal(answer(runtime, images), images[:, :1])
    assert runtime.seen == seen


def test_an_output_may_have_any_name_where_it_is_clear() -> None:
    """One output, or one of several that is called logits; else they are named."""
    images = np.zeros((2, 3), np.float32)
    assert answer(Taking(1, None, ("features", "logits")), images).shape == (2, 1)
    with pytest.raises(InputError, match="has the outputs a, b: give one with a single picture input, and one output"):
        answer(Taking(1, None, ("a", "b")), images)


def test_a_provider_is_asked_for_before_work() -> None:
    """An unknown one is the command's fault, a missing one the machine's."""
    require_provider("cpu")
    with pytest.raises(InputError, match="unknown provider 'gpu': take one of cpu, cuda"):
        require_provider("gpu")
    if "TensorrtExecutionProvider" not in onnxruntime.get_available_providers():
        with pytest.raises(MachineError, match="has no provider 'tensorrt'"):
            require_provider("tensorrt")
