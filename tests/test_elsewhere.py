"""The pretended device is CUDA as far as torch itself tells without one: it refuses what FakeTensorMode refuses."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode

from tests.elsewhere import There, elsewhere

CASES: dict[str, tuple[bool, Callable[[Tensor, Tensor], object]]] = {
    "a sum with another device": (False, lambda here, there: here + there),
    "a product with another device": (False, lambda here, there: there @ here),
    "a sum with a single number": (True, lambda here, there: there + here.sum()),
    "a sum with the other device's single number": (False, lambda here, there: here + there.sum()),
    "indices from the CPU": (True, lambda here, there: there[here[0].long()]),
    "gathering by indices from the CPU": (False, lambda here, there: there.gather(0, here.long())),
    "a copy into the other device's": (True, lambda here, there: there.copy_(here)),
    "adding into the other device's": (False, lambda here, there: there.add_(here)),
    "where one of three is elsewhere": (False, lambda here, there: torch.where(there > 0, there, here)),
    "moving there": (True, lambda here, there: here.to("cuda:0") + there),
    "moving back": (True, lambda here, there: here + there.cpu()),
    "made like the other": (True, lambda _, there: there + there.new_ones(3) + torch.eye(3).to(there)),
    "made there": (True, lambda _, there: there + torch.arange(3, device="cuda:0") + torch.tensor(1.0)),
    "made here": (False, lambda _, there: there + torch.arange(3)),
}


@pytest.mark.parametrize("case", CASES)
def test_the_same_is_refused(case: str) -> None:
    """Case by case, with torch's own verdict beside ours."""
    allowed, run = CASES[case]
    with FakeTensorMode():
        assert _runs(run, torch.ones(3, 3), torch.ones(3, 3, device="cuda:0")) == allowed
    with elsewhere() as device:
        assert _runs(run, torch.ones(3, 3), torch.ones(3, 3, device=device)) == allowed


def test_what_fake_tensors_let_pass_and_a_gpu_does_not() -> None:
    """A generator of the CPU, a single number of the CPU among stacked ones, indices on the GPU for the CPU, numpy."""
    with elsewhere() as device:
        with pytest.raises(RuntimeError, match="generator"):
            torch.randn(3, device=device, generator=torch.Generator())
        with pytest.raises(RuntimeError, match="same device"):
            torch.stack([torch.ones((), device=device), torch.ones(())])
        with pytest.raises(RuntimeError, match="same device"):
            torch.ones(3)[torch.ones(3, dtype=torch.long, device=device)]
        with pytest.raises(RuntimeError, match="numpy"):
            torch.ones(3, device=device).numpy()


def test_it_computes() -> None:
    """Gradients, views and updates in place are those of the CPU; a copy of a module stays there."""
    layer, x = nn.Linear(3, 2), torch.randn(4, 3)
    want = torch.autograd.grad(layer(x).square().sum(), list(layer.parameters()))
    with elsewhere() as device:
        moved = copy.deepcopy(layer.to(device))
        assert all(isinstance(each, nn.Parameter) and each.device == device for each in moved.parameters())
        found = torch.autograd.grad(moved(x.to(device)).square().sum(), list(moved.parameters()))
        whole = torch.zeros(4, device=device)
        whole[1:3].add_(1)
        assert whole.tolist() == [0, 1, 1, 0]
    assert all(isinstance(each, There) for each in found)
    assert all(torch.equal(one, other.cpu()) for one, other in zip(want, found, strict=True))


def _runs(run: Callable[[Tensor, Tensor], object], here: Tensor, there: Tensor) -> bool:
    try:
        run(here, there)
    except RuntimeError:
        return False
    return True
