"""The parts of benchmarks/gpu.py: each measures by itself and writes its own records."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from gpu_engines import engine_files, engine_results
from quantize_time import cut_leaves
from recording import write_record
from safetensors.torch import save_file

from calib.quantization import quantize
from export.edge.gpu import local_arch
from export.edge.registry import ENGINES, available, find_engine_backend
from inversion.machine import choose_device, settle_sums
from inversion.teacher import Teacher, load_teacher
from pipeline.recipe.resolve import make_recipe
from pipeline.record.manifest import load_finished, to_json
from pipeline.reproduce.bench import measure_inversion
from pipeline.run.build import build, prepare
from pipeline.show.display import Display

PICTURES = 512
"""Dead leaves for which engines answer."""


class Skipped(Exception):
    """What a part needs is not here."""


@dataclass(frozen=True)
class Place:
    """`smoke`: a rehearsal, small and wherever it is. `checkpoints` is a folder of weights, or None; records go into
    `records`."""

    smoke: bool
    checkpoints: Path | None
    records: Path

    @property
    def device(self) -> torch.device:
        return choose_device()

    def name(self, teacher: str) -> str:
        return "digits_vit" if self.smoke else teacher

    def weights(self, teacher: str) -> Path | None:
        path = self.checkpoints / f"{teacher}.safetensors" if self.checkpoints else None
        return path if path and path.is_file() and not self.smoke else None

    def teacher(self, name: str) -> Teacher:
        """Where it is to run; without its weights in the folder, with random ones."""
        path = self.weights(name)
        random = path is None and not self.smoke
        return load_teacher(self.name(name), path, random_weights=random, device=str(self.device))

    def write(self, name: str, results: dict[str, Any]) -> None:
        write_record(name, {"gpu": describe_gpu(), **results}, self.records)


def describe_gpu() -> dict[str, Any] | None:
    """Name, architecture and memory of the first GPU; None without one."""
    if not torch.cuda.is_available():
        return None
    found = torch.cuda.get_device_properties(0)
    return {"name": found.name, "arch": f"sm{found.major}{found.minor}", "bytes": found.total_memory}


def require_gpu() -> None:
    if not torch.cuda.is_available():
        raise Skipped("no GPU")


def tests(_: Place) -> None:
    """All of tests/gpu."""
    require_gpu()
    command = [sys.executable, "-m", "pytest", "-q", "--durations=5", "tests/gpu"]
    sys.exit(subprocess.run(command, cwd=Path(__file__).parents[1], check=False).returncode)


def inversion(place: Place) -> None:
    """DMI, SMI and PRI on DeiT-Base at 128 images, with CUDA graphs and without."""
    teacher = place.teacher("deit_base")
    batch, rounds = (7, 1) if place.smoke else (128, 2)
    for graphs in (True, False) if place.device.type == "cuda" else (False,):
        found = measure_inversion(teacher, batch, rounds, graphs=graphs)
        name = f"inversion_{teacher.name}_gpu{'' if graphs else '_without_graphs'}"
        place.write(name, {**found, "cuda_graphs": graphs})


def quantization(place: Place) -> None:
    """`quantize` of DeiT-Base at the default effort, phase by phase."""
    teacher, bits = place.teacher("deit_base"), "w8a8" if place.smoke else "w4a8"
    recipe = make_recipe({"teacher": teacher.name, "bits": bits, "effort": "quick" if place.smoke else "standard"})
    v = recipe.inversion.division_factor
    images = cut_leaves(teacher, 4 if place.smoke else recipe.inversion.images // v, v)
    spent: dict[str, float] = {}
    started = last = time.perf_counter()

    def on_phase(phase: str, _done: int, _total: int, _value: float) -> None:
        nonlocal last
        now = time.perf_counter()
        spent[phase] = spent.get(phase, 0.0) + now - last
        last = now

    parts = recipe.basis, recipe.calibration, recipe.rounding, recipe.training
    quantize(teacher, images, recipe.quant_scheme(), *parts, on_phase)
    peak = torch.cuda.max_memory_allocated() if place.device.type == "cuda" else None
    place.write(f"quantize_time_{teacher.name}_{bits}_gpu", {
        "teacher": teacher.name, "bits": bits, "effort": recipe.effort, "images": len(images),
        "seconds": round(time.perf_counter() - started, 1),
        "seconds_by_phase": {phase: round(seconds, 1) for phase, seconds in spent.items()}, "peak_bytes": peak,
    })  # fmt: skip


def whole_build(bits: str, place: Place) -> None:
    """A build of DeiT-Tiny with everything on the device: time by stage, and its verdict."""
    name = place.name("deit_tiny")
    arch = (local_arch(),) if any(map(available, ENGINES)) and local_arch() else ()
    small = ("inversion.images=8", "inversion.batch=8", "inversion.iterations=8", "calibration.method=max",
             "calibration.leaves=4", "basis.updates=2", "training.updates=0", "validation.pictures=4")  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        weights = place.weights("deit_tiny") or (None if place.smoke else random_weights(name, Path(folder)))
        flags = {
            "teacher": name,
            "bits": bits,
            "checkpoint": str(weights) if weights else None,
            "engine": {"arch": arch},
        }
        given = {key: value for key, value in flags.items() if value is not None}
        recipe = make_recipe(given, None, small if place.smoke else ())
        started = time.perf_counter()
        build(prepare(recipe, Path(folder) / "run", place.device, Display(quiet=True)))
        seconds = time.perf_counter() - started
        found = load_finished(Path(folder) / "run")
        place.write(f"{name}_{bits}_{recipe.effort}_gpu", {
            "recipe": {key: value for key, value in found.recipe.items() if key != "checkpoint"},
            "random_weights": place.weights("deit_tiny") is None and not place.smoke,
            "seconds": {"all": round(seconds, 1), **{stage.name: stage.seconds for stage in found.stages}},
            "quantize": found.stage("quantize").metrics, "validation": to_json(found.verdict),
        })  # fmt: skip


def random_weights(name: str, folder: Path) -> Path:
    """A checkpoint of the architecture `name` that nobody has trained."""
    model = load_teacher(name, random_weights=True).model
    save_file({key: value.contiguous() for key, value in model.state_dict().items()}, folder / "random.safetensors")
    return folder / "random.safetensors"


def engines(place: Place) -> None:
    """Engines of DeiT-Base: INT8 with attention in FP16 and in INT8, FP16 and FP32, timed in turn; what they answer."""
    require_gpu()
    arch, backends = local_arch(), [name for name in ENGINES if available(name)]
    if arch is None or not backends:
        raise Skipped("neither tensorrt nor tensorrt_rtx is installed")
    settle_sums()
    teacher = place.teacher("deit_base")
    with engine_files(teacher) as folder:
        for backend in backends:
            find_engine_backend(backend).require_arch(arch)
            place.write(f"engines_{teacher.name}_{backend}", {
                "teacher": teacher.name, "backend": backend, "bits": "w8a8",
                **engine_results(folder, teacher, backend, arch, 32 if place.smoke else PICTURES),
            })  # fmt: skip


PARTS: dict[str, Callable[[Place], None]] = {
    "tests": tests,
    "inversion": inversion,
    "engines": engines,
    "quantize": quantization,
    "build_w4a8": lambda place: whole_build("w4a8", place),
    "build_w8a8": lambda place: whole_build("w8a8", place),
}
"""In the order of what they tell."""
