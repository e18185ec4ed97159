"""`pipeline bench inversion`: how fast each method of inversion is on this machine, beside the paper's figures."""

from __future__ import annotations

import math
import statistics
import time
import weakref
from dataclasses import dataclass, field
from typing import Any, Required, TypedDict, cast

import torch
from rich.table import Table
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from inversion.cost import Geometry, mean_iteration_flops
from inversion.errors import InputError
from inversion.inverter import Inverter
from inversion.job import Inversion, Method, Precision
from inversion.loop import GRAPH_WARM_UP, Loop
from inversion.progress import Progress, quiet
from inversion.schedule import Stage
from inversion.teacher import Teacher
from pipeline.record.versions import versions
from pipeline.reproduce.paper import efficiency


class Chosen(TypedDict, total=False):
    """What a method sets of its inversion."""

    method: Required[Method]
    sparsity: int
    division_factor: int


METHODS: dict[str, Chosen] = {
    "dmi": {"method": "dmi"},
    "smi_50": {"method": "smi", "sparsity": 50},
    "smi_76": {"method": "smi", "sparsity": 76},
    "smi_86": {"method": "smi", "sparsity": 86},
    "pri_v2": {"method": "pri", "division_factor": 2},
    "pri_v4": {"method": "pri", "division_factor": 4},
    "pri_v7": {"method": "pri", "division_factor": 7},
}
"""Columns of Tables 2 and A1."""
ITERATIONS = 4000
"""T of the paper: each stage counts by the share of these iterations that it lasts."""
UPDATES = {"cpu": (1, 3), "cuda": (GRAPH_WARM_UP + 2, 50)}
"""Updates that warm up, and that are timed, a stage and round."""
PRODUCT_SIDE = {"cpu": 2048, "cuda": 8192}


class StageRow(TypedDict):
    """A stage of an inversion: patches that are active, its iterations, and what one takes."""

    active: int
    iterations: int
    ms: float


class Row(TypedDict):
    """A method: medians over rounds; the paper's figures where it has this teacher."""

    name: str
    iterations_per_s: float
    spread: float
    speedup_over_dmi: float
    trajectories: int
    images: int
    flops_per_iteration: float
    flops_per_s: float
    share_of_matmul_rate: float
    peak_bytes: int
    stages: list[StageRow]
    paper_iterations_per_s: float | None
    paper_speedup_over_dmi: float | None


class Bench(TypedDict):
    """What was measured, and where."""

    teacher: dict[str, str]
    device: str
    versions: dict[str, str | None]
    precision: str
    images: int
    rounds: int
    matmul_flops_per_s: float
    rows: list[Row]


@dataclass
class Measured:
    """One method: seconds an update by stage, each round's, and what an iteration costs on average over T."""

    name: str
    job: Inversion
    stages: list[Stage]
    seconds: list[list[float]] = field(default_factory=list)
    flops: float = 0.0
    peak_bytes: int = 0

    def iterations_per_s(self) -> list[float]:
        """Each round's, over the whole of T."""
        return [1 / self.mean(round_) for round_ in self.seconds]

    def mean(self, by_stage: list[float]) -> float:
        """Of a figure by stage, over the T iterations."""
        return sum(one * stage.iterations for one, stage in zip(by_stage, self.stages, strict=True)) / ITERATIONS


def measure_inversion(
    teacher: Teacher,
    batch: int = 128,
    rounds: int = 3,
    precision: str = "auto",
    progress: Progress = quiet,
    graphs: bool = True,
) -> Bench:
    """Rows of METHODS, each yielding `batch` images a run (PRI inverts batch / v trajectories). On CUDA a stage is one
    graph, unless `graphs` is false.

    Every round times all methods in turn, so that what else the machine does falls on all of them. A row gives the
    median over rounds, and as its spread (largest - smallest) / median.
    """
    if rounds < 1:
        raise InputError(f"--rounds {rounds} times nothing: take at least 1.")
    rows, inverters = [], {}
    for name, chosen in METHODS.items():
        job = _job(batch, precision, chosen)
        inverters[name] = Inverter(teacher, job)
        rows.append(Measured(name, job, inverters[name].stages))
    for round_ in range(rounds):
        for number, row in enumerate(rows, start=1):
            _measure(row, inverters[row.name], graphs, first=round_ == 0)
            progress("bench", round_ * len(rows) + number, rounds * len(rows), math.nan)
    model = inverters["dmi"].model
    return {
        "teacher": {"name": teacher.name, "sha256": teacher.sha256},
        "device": describe_device(model.pos_embed.device),
        "versions": versions(),
        "precision": str(model.pos_embed.dtype).removeprefix("torch."),
        "images": batch,
        "rounds": rounds,
        "matmul_flops_per_s": (rate := matmul_rate(model.pos_embed.device, model.pos_embed.dtype)),
        "rows": [_row(row, rows[0], teacher.name, rate) for row in rows],
    }


def results_table(results: Bench) -> Table:
    """What `measure_inversion` returns, for a terminal."""
    titles = ("method", "it/s", "spread", "x DMI", "GFLOP/it", "of matmul rate", "peak MB", "paper it/s", "paper x DMI")
    about = f"{results['images']} images an iteration, {results['precision']}, {results['device']}"
    table = Table(*titles, title=f"{results['teacher']['name']}, {about}", pad_edge=False)
    table.columns[0].no_wrap = True
    for column in table.columns[1:]:
        column.justify = "right"
    for row in results["rows"]:
        paper = row["paper_iterations_per_s"]
        table.add_row(
            row["name"], f"{row['iterations_per_s']:.3g}", f"{100 * row['spread']:.0f}%",
            f"{row['speedup_over_dmi']:.2f}", f"{row['flops_per_iteration'] / 1e9:.1f}",
            f"{100 * row['share_of_matmul_rate']:.0f}%", f"{row['peak_bytes'] / 1e6:.0f}",
            f"{paper:.2f}" if paper else "", f"{row['paper_speedup_over_dmi']:.2f}" if paper else "",
        )  # fmt: skip
    return table


def matmul_rate(device: torch.device, dtype: torch.dtype) -> float:
    """FLOP/s of one large square matrix product on this machine: the best of ten."""
    side = PRODUCT_SIDE[device.type]
    one, other = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    best = float("inf")
    for _ in range(10):
        _wait(device)
        start = time.perf_counter()
        one @ other
        _wait(device)
        best = min(best, time.perf_counter() - start)
    return 2 * side**3 / best


def describe_device(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{torch.get_num_threads()} CPU threads, {torch.backends.cpu.get_cpu_capability()}"


class PeakMemory(TorchDispatchMode):
    """`peak`: most bytes that tensors made inside held at once (a library's own work space is not seen)."""

    def __init__(self) -> None:
        super().__init__()
        self.live = self.peak = 0
        self.known: weakref.WeakSet[torch.UntypedStorage] = weakref.WeakSet()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor):
                self._note(tensor.untyped_storage())
        return result

    def _note(self, storage: torch.UntypedStorage) -> None:
        if storage in self.known:
            return
        self.known.add(storage)
        self.live += storage.nbytes()
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._gone, storage.nbytes())

    def _gone(self, size: int) -> None:
        self.live -= size


def _job(batch: int, precision: str, chosen: Chosen) -> Inversion:
    v = chosen.get("division_factor", 1)
    if batch < v:
        raise InputError(f"--batch {batch} is less than one trajectory's {v} images: take at least 7.")
    images = batch // v * v
    asked = cast(Precision, precision)  # of another an inversion is refused when it is made
    return Inversion(images=images, batch=images, iterations=ITERATIONS, precision=asked, **chosen)


def _measure(row: Measured, inverter: Inverter, graphs: bool, first: bool) -> None:
    """One round: each stage in turn; in the first, also FLOPs and memory."""
    seconds = []
    loop = inverter.loop(0)
    loop.graphs = graphs
    for stage in row.stages:
        seconds.append(_seconds_an_update(loop))
        if stage is not row.stages[-1]:
            loop.end_stage(stage.leave)
    row.seconds.append(seconds)
    if first:
        geometry = Geometry.of(inverter.model)
        row.flops = mean_iteration_flops(geometry, row.stages, row.job.trajectories, lean=True)
        row.peak_bytes = _peak_bytes(inverter)


def _seconds_an_update(loop: Loop) -> float:
    warm, timed = UPDATES[loop.device.type]
    done, start = 0, 0.0

    def after() -> None:
        nonlocal done, start
        done += 1
        if done == warm:
            _wait(loop.device)
            start = time.perf_counter()

    loop.run(warm + timed, after)
    _wait(loop.device)
    return (time.perf_counter() - start) / timed


def _peak_bytes(inverter: Inverter) -> int:
    """Memory of the first stage, which has the most patches: weights, the batch's state, and an update's tensors."""
    weights = sum(weight.nbytes for weight in inverter.model.state_dict().values())
    device = inverter.model.pos_embed.device
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)  # the teacher, and its copies for other methods
        inverter.loop(0).run(2, lambda: None)
        return int(weights + torch.cuda.max_memory_allocated(device) - before)
    with PeakMemory() as memory:
        inverter.loop(0).run(2, lambda: None)
    return weights + memory.peak


def _row(row: Measured, dense: Measured, teacher: str, rate: float) -> Row:
    each = row.iterations_per_s()
    median = statistics.median(each)
    paper = efficiency(teacher)
    return {
        "name": row.name,
        "iterations_per_s": median,
        "spread": (max(each) - min(each)) / median,
        "speedup_over_dmi": median / statistics.median(dense.iterations_per_s()),
        "trajectories": row.job.trajectories,
        "images": row.job.images,
        "flops_per_iteration": row.flops,
        "flops_per_s": row.flops * median,
        "share_of_matmul_rate": row.flops * median / rate,
        "peak_bytes": row.peak_bytes,
        "stages": [
            {"active": stage.active, "iterations": stage.iterations, "ms": 1e3 * statistics.median(found)}
            for stage, found in zip(row.stages, zip(*row.seconds, strict=True), strict=True)
        ],
        "paper_iterations_per_s": paper[row.name].iterations_per_s if paper else None,
        "paper_speedup_over_dmi": paper[row.name].iterations_per_s / paper["dmi"].iterations_per_s if paper else None,
    }  # fmt: skip


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
