"""How fast this machine is, with this teacher and now: each speed is measured when a plan first asks for it, on the
code that will run, in a fraction of a second. What a stage does with them stands in its `cost`."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from dataclasses import replace
from functools import cached_property
from itertools import pairwise
from statistics import fmean

import torch
from torch import Generator, Tensor

from calib.basis import fold
from calib.fisher import AT_ONCE, DRAWS
from calib.gptq import BLOCK, STRIP, block_linears, gptq_round
from calib.layers import quantized_layers
from calib.rotation import learn_rotations
from calib.saliency import token_saliency
from calib.scheme import QuantScheme
from calib.views import dense_views
from inversion.inverter import Inverter
from inversion.job import Inversion
from inversion.leaves import dead_leaves
from inversion.loop import GRAPH_WARM_UP, Loop
from inversion.teacher import Teacher

BUDGET_S = 0.4
"""For each speed; a model of which one picture takes longer gets more."""
BATCH_BUDGET_S = 1.5
"""For inversion: fewer trajectories than a batch has take longer each."""
CALLS = 2000
WIDE = 1024
"""Columns of a Hessian that is large enough for its products to be what takes the time."""
SAMPLES = 4096
"""Tokens of which a Hessian's rate is measured."""


class Pace:
    """Seconds of one piece of each kind of work."""

    def __init__(self, teacher: Teacher) -> None:
        self.teacher = teacher

    def trajectory(self, job: Inversion) -> float:
        """All iterations of one trajectory of `job`, at its batch."""
        return _each(lambda count: self._iterations(job, count), len(job.shards()[0]), BATCH_BUDGET_S)

    def _iterations(self, job: Inversion, trajectories: int) -> float:
        """Seconds of all iterations of so many trajectories together, from a few of the first stage and of the last:
        between them time follows the number of patches."""
        images = trajectories * job.images_per_trajectory
        inverter = Inverter(self.teacher, replace(job, images=images, batch=images))
        loop, first, last = inverter.loop(0), inverter.stages[0], inverter.stages[-1]
        most = least = _iteration(loop, first.iterations)
        if last is not first:
            loop.end_stage(first.active - last.active)
            least = _iteration(loop, last.iterations)
        slope = (most - least) / max(first.active - last.active, 1)
        return sum(stage.iterations * (least + slope * (stage.active - last.active)) for stage in inverter.stages)

    @cached_property
    def forward(self) -> float:
        """A picture through the teacher, where it is."""
        return _each(_timed(lambda count: self.teacher.logits(self._pictures(count))), AT_ONCE)

    @cached_property
    def forward_on_cpu(self) -> float:
        """The same on the CPU, where ONNX Runtime works."""
        if self.teacher.device.type == "cpu":
            return self.forward
        model = copy.deepcopy(self.teacher.model).to("cpu")
        with torch.inference_mode():
            return _each(_timed(lambda count: model(self._pictures(count))), AT_ONCE)

    @cached_property
    def gradient(self) -> float:
        """A picture's drawn answers, and their gradients to the outputs of all linears."""
        model = self.teacher.model

        def run(count: int) -> None:
            views = dense_views(self._pictures(count).to(self.teacher.device), self.teacher.patch_size)
            token_saliency(model, views, block_linears(model))

        return _each(_timed(run), AT_ONCE)

    @cached_property
    def leaf(self) -> float:
        """A picture of dead leaves."""
        return _each(_timed(lambda count: dead_leaves(self.teacher.spec, count, seed=0)), AT_ONCE)

    @cached_property
    def call(self) -> float:
        """A call of torch with next to nothing to do: what Python and its libraries take."""
        one = torch.zeros(1)

        def run(count: int) -> None:
            for _ in range(count):
                one.add(1)

        return _each(_timed(run), CALLS)

    def basis_update(self, scheme: QuantScheme) -> float:
        """An update of the rotations that the weights of `scheme` want; the first is not counted."""
        folded, _ = fold(self.teacher.model)
        bits = {name: scheme.layer(name).weight for name in quantized_layers(folded)}
        told = [time.perf_counter()]
        learn_rotations(folded, bits, 3, progress=lambda *_: told.append(time.perf_counter()))
        steps = [end - start for start, end in pairwise(told)][1:]
        return fmean(steps) if steps else 0.0

    @cached_property
    def tried_range(self) -> float:
        """One number of an activation, rounded by one range and held against its gradients."""
        size = 1 << 20
        inputs, slopes = self._noise(size), self._noise(DRAWS, size)

        def run(count: int) -> None:
            squared = slopes.square().sum(0)
            for _ in range(count):
                error = (inputs / 0.1).round_().clamp_(-128, 127).mul_(0.1).sub_(inputs)
                float((slopes * error).sum(-1).square().sum() + (squared * error.square()).sum())

        return _each(_timed(run), AT_ONCE) / size

    @cached_property
    def hessian_flop(self) -> float:
        """An addition or multiplication of GPTQ's Hessians."""
        width = 4 * self.teacher.model.embed_dim
        tokens, count = self._noise(SAMPLES, width), self._noise(SAMPLES)
        return _each(_timed(lambda _: (tokens.T * count) @ tokens[:, :STRIP]), 1) / (2 * SAMPLES * width * STRIP)

    @cached_property
    def rounding(self) -> tuple[float, float]:
        """Of GPTQ's rounding: a column, and an addition or multiplication in float64 beside it."""
        rows = self.teacher.model.embed_dim // 2

        def of(columns: int) -> float:
            weight, scale = self._noise(rows, columns), self._noise(rows).abs() + 0.1
            hessian = torch.eye(columns, dtype=torch.float64, device=weight.device)
            return _each(_timed(lambda _: gptq_round(weight, scale, hessian, -8, 7)), 1)

        column = of(BLOCK) / BLOCK
        return column, max(of(WIDE) - WIDE * column, 0.0) / rounding_flops(WIDE, rows)

    def _pictures(self, count: int) -> Tensor:
        spec = self.teacher.spec
        return torch.randn(count, spec.channels, *spec.size, generator=Generator().manual_seed(0))

    def _noise(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=Generator().manual_seed(0)).to(self.teacher.device)


def rounding_flops(columns: int, rows: int) -> float:
    """Of rounding a weight [rows, columns] by GPTQ, but for its column by column: the factor of the inverse Hessian,
    what errors do to later blocks, and the error of both roundings."""
    return 4 / 3 * columns**3 + 5 * columns**2 * rows


def _iteration(loop: Loop, at_most: int) -> float:
    """Seconds of an iteration, after what is compiled or captured in the first ones."""
    few = 3 if loop.device.type == "cpu" else GRAPH_WARM_UP + 3
    told = [time.perf_counter()]

    def after() -> None:
        int(loop.first_bad)  # waits for the device
        told.append(time.perf_counter())

    loop.run(min(few, at_most), after)
    return fmean([end - start for start, end in pairwise(told)][-2:])


def _timed(run: Callable[[int], object]) -> Callable[[int], float]:
    """Seconds of `run`; on CUDA until the device has done it."""

    def seconds(count: int) -> float:
        started = time.perf_counter()
        run(count)
        if torch.cuda.is_initialized():
            torch.cuda.synchronize()
        return time.perf_counter() - started

    return seconds


def _each(seconds: Callable[[int], float], most: int, budget_s: float = BUDGET_S) -> float:
    """Seconds of one of `most` pieces, from as many as the budget allows; what is loaded or compiled at first use does
    not count."""
    seconds(1)
    started = time.perf_counter()
    one = seconds(1)
    many = max(1, min(most, int(budget_s / max(time.perf_counter() - started, 1e-9))))
    return seconds(many) / many if many > 1 else one
