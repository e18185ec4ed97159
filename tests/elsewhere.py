"""A pretended CUDA device: tensors there say `cuda:0`, hold real numbers, and refuse what CUDA would refuse.

So a tensor that a stage leaves behind on the CPU fails a test on any machine, and what stages give is what they give
on the CPU, whose kernels do the work. tests/test_elsewhere.py holds its rules against torch's own, of FakeTensorMode,
which knows no numbers: most stages ask for some.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch.utils._mode_utils import no_dispatch
from torch.utils._python_dispatch import TorchDispatchMode

HERE, THERE = torch.device("cpu"), torch.device("cuda:0")
aten = torch.ops.aten
MOVES = {aten._to_copy.default, aten.copy_.default}
PICKS = {aten.index.Tensor, aten.index_put.default, aten.index_put_.default, aten._index_put_impl_.default}
"""What takes indices from the CPU too."""
STRICT = {aten.cat.default, aten.stack.default, aten._fused_adam_.default}
"""What takes not even a single number from the CPU."""


class There(Tensor):
    """A tensor on the pretended device; `held` has its numbers."""

    held: Tensor
    device = property(lambda _: THERE)  # torch's own C++ sees `meta`, and asks no driver
    is_cuda = property(lambda _: True)
    is_meta = property(lambda _: False)

    @staticmethod
    def __new__(cls, held: Tensor) -> There:
        make: Any = Tensor._make_wrapper_subclass
        made: There = make(
            cls, held.shape, strides=held.stride(), storage_offset=held.storage_offset(), dtype=held.dtype,
            device="meta",
        )  # fmt: skip
        made.held = held
        return made

    def __init__(self, held: Tensor) -> None: ...

    def __repr__(self) -> str:  # type: ignore[override]
        return f"There({self.held})"

    def tolist(self) -> Any:
        return self.held.tolist()

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        if id(self) not in memo:
            copied: Tensor = There(self.held.clone()).requires_grad_(self.requires_grad)
            memo[id(self)] = nn.Parameter(copied, self.requires_grad) if isinstance(self, nn.Parameter) else copied
        return memo[id(self)]

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # type: ignore[override]
        return _run(func, args, kwargs or {})


class _Elsewhere(TorchDispatchMode):
    """What is made for the pretended device is made there."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


@contextmanager
def elsewhere() -> Iterator[torch.device]:
    """The pretended device, on a machine that says it has one; graphs, which it has not, are single steps."""
    with (
        patch("torch.cuda._lazy_init"),
        patch("torch.cuda.is_available", return_value=True),
        patch("torch.cuda.device_count", return_value=1),
        patch("torch.cuda.current_device", return_value=0),
        patch("torch.cuda.is_bf16_supported", return_value=False),
        patch("torch.cuda.mem_get_info", return_value=(80 << 30, 80 << 30)),
        patch("torch.cuda.memory_reserved", return_value=0),
        patch("torch.cuda.memory_allocated", return_value=0),
        patch("torch.optim.Optimizer._accelerator_graph_capture_health_check", create=True),
        patch("inversion.loop.Loop._captured", lambda loop: loop.step),
        _Elsewhere(),
    ):
        torch._C._set_only_lift_cpu_tensors(True)  # so that `torch.tensor` asks the mode, as under FakeTensorMode
        try:
            yield THERE
        finally:
            torch._C._set_only_lift_cpu_tensors(False)


def _run(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """`func` on the numbers, and its answer where CUDA would put it."""
    wanted = kwargs.get("device")
    if wanted is None and not any(isinstance(each, There) for each in _tensors((*args, *kwargs.values()))):
        return func(*args, **kwargs)
    _require_one_place(func, args, kwargs)
    there = wanted is None or torch.device(wanted).type != "cpu"
    if there and kwargs.get("generator") is not None:
        raise RuntimeError(f"Expected a 'cuda' device type for generator but found 'cpu': {func}.")
    given, named = _held(args), {name: _held(value) for name, value in kwargs.items()}
    if wanted is not None:
        named["device"] = HERE
    with torch.inference_mode(False):  # a view of what was made outside of it is none of its tensors
        found = func(*given, **named)
        written = [value for value in func._schema.returns if value.alias_info and value.alias_info.is_write]
        if torch.Tag.inplace_view in func.tags:
            _reshape(func, args, kwargs)
        if written:
            return args[0] if "out" not in kwargs else kwargs["out"]
        return _made(found) if there else found


def _reshape(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Let the shape of what `func` changes in place be that of its numbers, in the way of torch's own subclasses."""
    inner: Any = torch._C
    with no_dispatch():
        before = inner._meta_in_tls_dispatch_include()
        inner._set_meta_in_tls_dispatch_include(True)
        func(*args, **kwargs)
        inner._set_meta_in_tls_dispatch_include(before)


def _require_one_place(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    if func in MOVES:
        return
    if func in PICKS:
        places = {isinstance(each, There) for each in _tensors((args[0], *args[2:])) if each.ndim}
        places |= {True for each in _tensors(args[1]) if isinstance(each, There)}
    else:
        taken = _tensors((*args, *kwargs.values()))
        places = {isinstance(each, There) for each in taken if isinstance(each, There) or each.ndim or func in STRICT}
    if len(places) > 1:
        raise RuntimeError(f"Expected all tensors to be on the same device: {func} takes some of cuda:0 and of cpu.")


def _tensors(values: Iterable[Any]) -> Iterator[Tensor]:
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, list | tuple):
            yield from _tensors(value)


def _held(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return type(value)(_held(each) for each in value)
    return value.held if isinstance(value, There) else value


def _made(found: Any) -> Any:
    if isinstance(found, list | tuple):
        return type(found)(_made(each) for each in found)
    return There(found) if isinstance(found, Tensor) else found
