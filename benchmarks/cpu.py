"""How fast is a run's model on this CPU, by runtime and threads, and which kernels does a second thread not help?

    python benchmarks/cpu.py RUN [--rounds 12] [--name cpu_deit_tiny_w8a8]

RUN is a finished run. Every model is opened in a process of its own with its runtime's defaults, and takes its turn:
the float ONNX on ONNX Runtime (to which all ratios are), model.onnx, model.ort.onnx, and where OpenVINO is installed
model.onnx and the float model on that. Ratios are medians over rounds of a round's own medians, so load that lasts
longer than a round falls on all alike. Then ONNX Runtime's own profile of its files, by operator, with one thread and
with two, each session in a process of its own. DeiT-Tiny takes about 3 minutes.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from recording import write_record
from rich.console import Console
from rich.table import Table

from export.edge.alone import Alone, Turn
from export.edge.ort_graph import ORT_GRAPH
from export.edge.registry import OPENVINO, available, find_runtime
from pipeline.record.manifest import load_finished

BATCHES, THREADS = (1, 8), (1, 2)
TURN_RUNS = {1: 5, 8: 2}
PROFILED_RUNS = 40
QUIET = 10
"""Percentile of a kernel's times that counts in a profile: what others do on the machine makes them longer only."""
FLOAT = "model.fp32.onnx, ONNX Runtime"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--name", default="cpu_deit_tiny_w8a8")
    args = parser.parse_args()
    manifest = load_finished(args.run)
    rows, profiles = list(latencies(args.run, args.rounds)), list(kernels(args.run))
    about = {"teacher": manifest.teacher.name, "bits": manifest.bits, "rounds": args.rounds}
    found = {**about, "latency": rows, "kernels": profiles}
    write_record(args.name, {**found, "markdown": markdown(rows)})
    Console().print(table(rows), kernel_table(profiles))


def models_of(run: Path) -> dict[str, tuple[Path, str]]:
    """By what the record calls them: file and runtime."""
    plain = run / "model.fp32.onnx"
    found = {FLOAT: (plain, "cpu"), "model.onnx, ONNX Runtime": (run / "model.onnx", "cpu")}
    if (run / ORT_GRAPH).is_file():
        found["model.ort.onnx, ONNX Runtime"] = (run / ORT_GRAPH, "cpu")
    if available(OPENVINO):
        floats = find_runtime(OPENVINO).floats()
        for path in (run / "model.onnx", plain):
            found[f"{path.name}, OpenVINO, floats in {floats}"] = (path, OPENVINO)
    return found


def latencies(run: Path, rounds: int) -> Iterator[dict[str, Any]]:
    """A row for each number of threads and batch."""
    with ExitStack() as stack:
        alone = {name: stack.enter_context(Alone(*placed)) for name, placed in models_of(run).items()}
        for threads in THREADS:
            for batch in BATCHES:
                # all that there are is what a runtime takes by itself
                turn = Turn(batch, TURN_RUNS[batch], None if threads == os.cpu_count() else threads)
                for model in alone.values():
                    model.take(turn)
                load = os.getloadavg()[0]
                medians: dict[str, list[float]] = {name: [] for name in alone}
                for _ in range(rounds):
                    for name, model in alone.items():
                        medians[name].append(float(np.median(model.take(turn))))
                found = {name: described(medians[name], medians[FLOAT]) for name in alone}
                yield {"batch": batch, "threads": threads, "load": load, "models": found}


def described(mine: list[float], float32: list[float]) -> dict[str, float]:
    """Milliseconds, and the ratio to the float model with the quartiles of the rounds' own."""
    ratios = np.divide(mine, float32)
    low, middle, high = np.percentile(ratios, (25, 50, 75))
    return {
        "median_ms": float(np.median(mine)), "least_ms": min(mine), "ratio": float(middle),
        "ratio_low": float(low), "ratio_high": float(high), "ratio_of_least": min(mine) / min(float32),
    }  # fmt: skip


@dataclass
class Kernel:
    """A node in a profile: its operator, milliseconds, and whether it shares its loop among threads."""

    operator: str
    ms: float
    shared: bool


def kernels(run: Path) -> Iterator[dict[str, Any]]:
    """Of each file on ONNX Runtime, batch 1: milliseconds by operator with one thread and with two, how many nodes
    share their work among two (which no load changes), and what the others take, `alone_ms`, of `all_ms` with one."""
    names = ["model.fp32.onnx", "model.onnx", *([ORT_GRAPH] if (run / ORT_GRAPH).is_file() else [])]
    for name in names:
        one, two = (profiled(run / name, threads) for threads in THREADS)
        alone = sum(kernel.ms for node, kernel in one.items() if not two[node].shared)
        operators: dict[str, dict[str, float]] = {}
        for node, kernel in one.items():
            row = operators.setdefault(kernel.operator, {"nodes": 0, "shared": 0, "ms_1": 0.0, "ms_2": 0.0})
            for key, value in (("nodes", 1), ("shared", two[node].shared), ("ms_1", kernel.ms), ("ms_2", two[node].ms)):
                row[key] += value
        found = dict(sorted(operators.items(), key=lambda each: -each[1]["ms_1"]))
        whole = sum(kernel.ms for kernel in one.values())
        yield {"file": name, "all_ms": whole, "alone_ms": alone, "operators": found}


def profiled(path: Path, threads: int) -> dict[str, Kernel]:
    """By node."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-c", PROFILE, str(path), str(threads), folder, str(PROFILED_RUNS)]
        subprocess.run(command, check=True)
        (written,) = Path(folder).iterdir()
        events = json.loads(written.read_text())
    times: dict[str, list[float]] = {}
    found: dict[str, Kernel] = {}
    for event in events:
        if event.get("cat") != "Node" or not event["name"].endswith("_kernel_time"):
            continue
        name, about = event["name"], event["args"]
        times.setdefault(name, []).append(event["dur"] / 1e3)
        told = about.get("thread_scheduling_stats")  # nothing where there is one thread
        kernel = found.setdefault(name, Kernel(about["op_name"], 0.0, False))
        kernel.shared |= bool(told and told["main_thread"]["block_size"])  # of each loop that it shares out
    for name, each in times.items():
        found[name].ms = float(np.percentile(each, QUIET))
    return found


PROFILE = """
import os, sys
from pathlib import Path
import numpy as np, onnxruntime
path, threads, folder, runs = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3], int(sys.argv[4])
options = onnxruntime.SessionOptions()
options.log_severity_level = 4
options.intra_op_num_threads = 0 if threads == os.cpu_count() else threads
options.enable_profiling, options.profile_file_prefix = True, str(Path(folder) / "profile")
session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
(given,) = session.get_inputs()
feed = np.random.default_rng(0).standard_normal([1, *given.shape[1:]]).astype(np.float32)
for _ in range(runs):
    session.run(None, {given.name: feed})
session.end_profiling()
"""


def markdown(rows: list[dict[str, Any]]) -> str:
    """Ratios to the float model on ONNX Runtime: a row a model, a column a batch and number of threads."""
    heads = [f"batch {row['batch']}, {row['threads']} thread{'s' if row['threads'] > 1 else ''}" for row in rows]
    lines = [["file, runtime", *heads], ["---", *["---:"] * len(rows)]]
    lines += [[name, *(f"{row['models'][name]['ratio']:.2f}" for row in rows)] for name in rows[0]["models"]]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def table(rows: list[dict[str, Any]]) -> Table:
    shown = Table("model", "batch", "threads", "ms", "ratio", "quartiles", "of the least")
    for row in rows:
        for name, one in row["models"].items():
            quartiles = f"{one['ratio_low']:.2f} to {one['ratio_high']:.2f}"
            cells = (f"{one['median_ms']:.1f}", f"{one['ratio']:.3f}", quartiles, f"{one['ratio_of_least']:.3f}")
            shown.add_row(name, str(row["batch"]), str(row["threads"]), *cells)
    return shown


def kernel_table(profiles: list[dict[str, Any]]) -> Table:
    columns = ("file", "operator", "nodes", "shared among 2", *(f"ms, {threads} threads" for threads in THREADS))
    shown = Table(*columns)
    for profile in profiles:
        for operator, one in list(profile["operators"].items())[:12]:
            times = (f"{one[f'ms_{threads}']:.2f}" for threads in THREADS)
            shown.add_row(profile["file"], operator, str(one["nodes"]), str(one["shared"]), *times)
    return shown


if __name__ == "__main__":
    main()
