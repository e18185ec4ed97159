"""What this machine can do, and how to mend what is missing. Works without torch, and says then what that costs."""

from __future__ import annotations

import importlib
import math
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from textwrap import shorten

from export.edge.gpu import local_arch
from export.edge.registry import ENGINES, RUNTIMES, available_backend, find_engine_backend, find_runtime
from inversion import host
from inversion.errors import PatchRebirthError
from pipeline.record.versions import versions
from pipeline.show.packages import PACKAGES, install_line

RUNS = Path("runs")
"""Where runs lie if nobody says otherwise."""
NEEDS_TORCH = f"needs torch: {install_line(package for package in PACKAGES if package.name == 'torch')}"


@dataclass(frozen=True)
class Missing:
    """A package that is not here: what it would bring, and the line that installs it."""

    package: str
    brings: str
    install: str


@dataclass(frozen=True)
class Tried:
    """A runtime or engine builder, tried on a small model: whether that went well, and what there is to say."""

    name: str
    works: bool
    says: str


@dataclass(frozen=True)
class Room:
    """Free bytes of the disk under `path`, which is for `use`."""

    use: str
    path: str
    free_bytes: int


@dataclass(frozen=True)
class Health:
    """What `examine` found. Bytes of memory are None where the system does not tell.

    - `integers`   what multiplies 8-bit integers here, `saturates` whether ONNX Runtime's plain way of it overflows, so
      that sessions take an exact, slower one; None without ONNX Runtime
    - `inversion`, `teacher`  where a model is made and how, and the built-in teacher; or what they need
    """

    versions: dict[str, str | None]
    missing: tuple[Missing, ...]
    gpu: str
    cpu: host.Cpu
    integers: str | None
    bfloat16: str | None
    saturates: bool | None
    memory_bytes: int | None
    free_memory_bytes: int | None
    disks: tuple[Room, ...]
    runtimes: tuple[Tried, ...]
    engines: tuple[Tried, ...]
    builds_with: str | None
    inversion: str
    teacher: str

    def to_dict(self) -> dict[str, object]:
        """For JSON."""
        return asdict(self)

    def lines(self) -> Iterator[str]:
        """For a person: lines of `what: state; mend`."""
        for package, version in self.versions.items():
            if version:
                yield f"{package}: {version}"
        for each in self.missing:
            yield f"{each.package}: missing, it brings {each.brings}; {each.install}"
        yield f"GPU: {self.gpu}"
        features = ", ".join(self.cpu.features) or ("nothing of note" if self.cpu.known else "features not told")
        yield f"CPU: {self.cpu.name}, {self.cpu.cores} cores of {self.cpu.machine}: {features}"
        yield f"8-bit integers: {self._integers()}"
        yield f"bfloat16: {self.bfloat16 or 'not in hardware: inversion runs in float32'}"
        yield f"memory: {_gb(self.free_memory_bytes)} free of {_gb(self.memory_bytes)}"
        for room in self.disks:
            yield f"disk for {room.use}: {_gb(room.free_bytes)} free ({room.path})"
        for tried in (*self.runtimes, *self.engines):
            yield f"{tried.name}: {tried.says}"
        yield f"engines: {self.builds_with or 'no backend; pip install tensorrt-rtx-cu13, or tensorrt'}"
        yield f"inversion, quantization: {self.inversion}"
        yield f"built-in teacher: {self.teacher}"

    def _integers(self) -> str:
        native = self.integers or "no VNNI or the like, so that INT8 gains little"
        how = {None: "", True: "; sums are kept exact by a slower way", False: "; sums are exact"}
        return f"{native}{how[self.saturates]}"


def examine() -> Health:
    """Look at everything; takes seconds, as it tries what is installed."""
    cpu, (runtimes, engines, saturates) = host.cpu(), _tried()
    inversion, teacher = _with_torch()
    return Health(
        versions=versions(),
        missing=tuple(Missing(each.name, each.brings, install_line([each])) for each in PACKAGES if each.missing),
        gpu=_gpu(),
        cpu=cpu,
        integers=cpu.integers,
        bfloat16=cpu.bfloat16,
        saturates=saturates,
        memory_bytes=_whole(host.all_memory()),
        free_memory_bytes=_whole(host.free_memory()),
        disks=(_room("runs", RUNS), _room("temporary files", Path(tempfile.gettempdir()))),
        runtimes=runtimes,
        engines=engines,
        builds_with=available_backend(),
        inversion=inversion,
        teacher=teacher,
    )


def _tried() -> tuple[tuple[Tried, ...], tuple[Tried, ...], bool | None]:
    """Runtimes, engine builders, and whether products of integers overflow; each on one small model."""
    try:
        from export.edge.exactness import largest_products, products_saturate
    except ModuleNotFoundError as error:
        return (Tried("runtimes", False, f"none, {error.name} is missing"),), (), None
    with tempfile.TemporaryDirectory() as folder:
        small = Path(folder) / "small.onnx"
        small.write_bytes(largest_products())
        runtimes = tuple(_run(name, small) for name in RUNTIMES)
        return runtimes, tuple(_parse(name, small) for name in ENGINES), products_saturate()


def _run(name: str, model: Path) -> Tried:
    """ONNX files on the runtime `name`: opens `model`, whose answer is known."""
    import numpy as np

    from export.edge.exactness import SIDE, STEP

    said, largest = f"runtime {name}", 127 * STEP
    try:
        backend = find_runtime(name)
        backend.check()
        with backend.open(model, threads=1) as runtime:
            (found,) = runtime.run({"x": np.full((1, SIDE, SIDE), largest, np.float32)}).values()
    except PatchRebirthError as error:
        return Tried(said, False, shorten(str(error).partition(": run `pipeline doctor`")[0], 160, placeholder=" ..."))
    except ModuleNotFoundError as error:
        return Tried(said, False, f"{error.name} is missing")
    right = np.allclose(found, SIDE * largest**2, rtol=1e-2)  # bfloat16 has 8 bits
    return Tried(said, bool(right), f"{backend.name} {backend.version} {'runs' if right else 'gives wrong products'}")


def _parse(name: str, model: Path) -> Tried:
    """Engines by `name`: its libraries load, and its parser takes `model`."""
    from export.edge.tensorrt_build import reasons

    said = f"engine builder {name}"
    try:
        trt = importlib.import_module(name)
    except ModuleNotFoundError as error:
        return Tried(said, False, f"{error.name} is missing")
    except (ImportError, OSError) as error:
        return Tried(said, False, f"is installed and does not load, {error}")
    archs = ", ".join(find_engine_backend(name).archs()) or "nothing here: it finds no GPU"
    try:
        complaints = reasons(trt, model)
    except (RuntimeError, TypeError) as error:  # TensorRT's builder wants a GPU, TensorRT-RTX's does not
        return Tried(said, False, f"{trt.__version__} loads and does not build here, {error}")
    return Tried(said, not complaints, f"{trt.__version__} loads, for {archs}{''.join(f'; {c}' for c in complaints)}")


def _gpu() -> str:
    try:
        import torch
    except (ImportError, OSError):
        arch = local_arch()
        return f"{arch}, by its driver" if arch else "none; engines are built but not executed"
    if not torch.cuda.is_available():
        return "none that torch sees; everything runs on the CPU, engines are built but not executed"
    major, minor = torch.cuda.get_device_capability()
    return f"{torch.cuda.get_device_name()}, sm{major}{minor}"


def _with_torch() -> tuple[str, str]:
    """Where models are made, and the built-in teacher."""
    try:
        import torch

        from inversion.machine import choose_device, choose_precision
        from inversion.teacher import DIGITS_VIT, load_teacher
    except ModuleNotFoundError:
        return NEEDS_TORCH, NEEDS_TORCH
    except (ImportError, OSError, RuntimeError) as error:  # as of a torchvision that is of another torch
        said = f"torch, torchvision and timm do not load together, {error}: install them anew, of one kind"
        return said, said
    device = choose_device()
    precision = str(choose_precision("auto", device)).removeprefix("torch.")
    teacher = load_teacher(DIGITS_VIT)
    about = f"{teacher.name}, {teacher.num_patches} patches, sha256 {teacher.sha256[:12]}"
    return f"on {device} in {precision}, {torch.get_num_threads()} threads", about


def _room(use: str, folder: Path) -> Room:
    """Of `folder`, or of the nearest one above it that exists."""
    place = folder.absolute()
    while not place.exists():
        place = place.parent
    return Room(use, str(place), shutil.disk_usage(place).free)


def _whole(size: float) -> int | None:
    return None if math.isinf(size) else int(size)


def _gb(size: int | None) -> str:
    return "unknown" if size is None else f"{size / 1e9:.1f} GB"
