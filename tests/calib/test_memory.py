"""Training that cannot fit is refused by a sentence before any work."""

from typing import Any

import pytest
import torch

from calib import memory
from calib.memory import gradient_bytes, require_quantizing_memory, training_bytes
from calib.settings import Calibration, Rounding, Training
from inversion.errors import MachineError
from inversion.teacher import load_teacher
from tests.elsewhere import elsewhere
from tests.small import small_teacher

CPU = torch.device("cpu")


def test_the_estimate_is_what_was_measured() -> None:
    """DeiT-Tiny in bfloat16: 47 MB an image, 170 MB of weights at most; twice that an image in float32."""
    model = load_teacher("deit_tiny", random_weights=True).model

    def size(batch: int, precision: Any = "bfloat16") -> int:
        return training_bytes(model, Training(batch=batch, precision=precision), CPU)

    assert (size(64) - size(8)) / 56 == pytest.approx(47e6, rel=0.05)
    assert 150e6 < size(8) - 8 * 47e6 < 230e6
    assert (size(64, "float32") - size(8, "float32")) == 2 * (size(64) - size(8))


def test_training_beyond_the_memory_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """The sentence names the batch and both sizes; what fits, and what does not train, is let through."""
    model = small_teacher().model

    def require(training: Training) -> None:
        require_quantizing_memory(model, Calibration(), Rounding(), training)

    large = Training(updates=1, batch=100_000, precision="float32")
    monkeypatch.setattr(memory, "free_memory", lambda _: 1e9)
    with pytest.raises(
        MachineError, match=r"^training in batches of 100000 needs about 2\d\.\d GB, 1\.0 GB are free: t"
    ):
        require(large)
    require(Training(batch=100_000, updates=0))
    require(Training(updates=1, batch=64, precision="float32"))


def test_gradients_beyond_the_memory_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ranges by `fisher` and saliency need them; whoever does without both is let through. The GPU is named."""
    model, training, mse = small_teacher().model, Training(), Calibration(method="mse")
    monkeypatch.setattr(memory, "free_memory", lambda _: gradient_bytes(model) - 1)
    for calibration, rounding in ((Calibration(), Rounding(saliency=False)), (mse, Rounding())):
        with pytest.raises(MachineError, match=r"^ranges and rounding by gradients need about 0\.0 GB, "):
            require_quantizing_memory(model, calibration, rounding, training)
    require_quantizing_memory(model, mse, Rounding(saliency=False), training)
    require_quantizing_memory(model, mse, Rounding("nearest"), training)
    with elsewhere() as device, pytest.raises(MachineError, match=r"are free on cuda:0: take calibration\.method=mse"):
        require_quantizing_memory(model.to(device), mse, Rounding(), training)
