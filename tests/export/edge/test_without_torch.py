"""The edge: every module of it loads, and every kind of work is done, where torch and ModelOpt cannot be imported."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from tests.small import Quantized

Make = Callable[..., Quantized]
ROOT = Path(__file__).parents[3]
NOT_THERE = """
import sys

class NotThere:
    names = ("torch", "torchvision", "timm", "modelopt", "safetensors", "sklearn", "typer", "rich")

    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in self.names:
            raise ImportError(f"{name} is not there on an edge device")

sys.meta_path.insert(0, NotThere())
"""
EVERY_MODULE = """
import importlib, pkgutil
import export.edge
names = [found.name for found in pkgutil.walk_packages(export.edge.__path__, "export.edge.")]
assert len(names) > 8
for name in names:
    importlib.import_module(name)
"""
EVERY_JOB = """
from pathlib import Path
import numpy as np
from export.edge.build import build_engines
from export.edge.compare import compare
from export.edge.inspection import inspect_file
from export.edge.kernels import require_quantized
from export.edge.latency import measure_latency
from export.edge.registry import find_runtime
from export.edge.runtime import answer, open_runtime, require_provider

model, folder = Path(sys.argv[1]), Path(sys.argv[2])
require_quantized(model)
require_provider("cpu")
((path, spec),) = build_engines(model, folder, ["sm89"], "tensorrt_rtx")
assert path.stat().st_size == spec.bytes > 10_000
with open_runtime(model, threads=1) as session:
    logits = answer(session, np.zeros((2, 1, 32, 32), np.float32))
assert compare(logits, logits, [0, 1]).agreement == 1
assert measure_latency({"model": model}, threads=1, runs=5)["model"].median_ms > 0
assert find_runtime("cpu").kernels(model).share == 1
assert inspect_file(model).kernels.share == 1
assert inspect_file(path).spec == spec
"""


def run_on_an_edge(code: str, *arguments: Path) -> tuple[int, str, str]:
    """Exit code, output and errors of `code` in a process that has no torch."""
    done = subprocess.run(
        [sys.executable, "-c", NOT_THERE + code, *map(str, arguments)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, done.stdout, done.stderr


def test_every_module_of_the_edge_loads_without_torch() -> None:
    """None of them, nor what they import, needs torch, timm, ModelOpt or safetensors; nothing is printed."""
    assert run_on_an_edge(EVERY_MODULE) == (0, "", "")


def test_every_job_of_the_edge_is_done_without_torch(quantized: Make, tmp_path: Path) -> None:
    """An engine is built, a session answers, answers are compared, latency is measured, kernels are listed."""
    assert run_on_an_edge(EVERY_JOB, quantized("w4a8").path, tmp_path) == (0, "", "")


def test_what_needs_torch_is_found_out() -> None:
    """The same process refuses a module that does need it: else the tests above would say nothing."""
    code, _, errors = run_on_an_edge("import export.graph")
    assert code == 1
    assert "torch is not there on an edge device" in errors
