"""Does an edge install do its work, how large is it, and what does every other verb say there?

    python benchmarks/edge.py RUN

RUN is a finished run of any teacher. A new environment gets requirements-edge.txt at the versions of constraints.txt,
then this project alone. There the verbs that need no torch do their work on RUN's files, and the others say what is
missing; where nothing but this project is installed, every verb does. Two minutes, and the packages come from the
registry. The exit code is 1 where a verb did not do what it must, or the environment is too large.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
import time
import venv
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from recording import write_record

ROOT = Path(__file__).parent.parent
LIMIT_MB = 700
MISSING = 3
PARTS = {
    "TensorRT-RTX": ("tensorrt_rtx",),
    "SymPy, which onnx-ir asks for": ("sympy", "mpmath"),
    "NumPy": ("numpy",),
    "ONNX Runtime": ("onnxruntime",),
    "ONNX": ("onnx",),
}
"""What takes the room in an edge install, by what its folders begin with; a folder counts once, by the longest."""
CUDA = ("nvidia", "triton", "torch/lib/libtorch_cuda", "torch/lib/libc10_cuda", "torch/lib/libtorch_nvshmem")
"""What of a default install is of no use without a GPU, by what paths begin with; ModelOpt lies elsewhere."""
WORK = (
    "inspect {run}/model.onnx",
    "inspect {run}/deploy/engine.tensorrt_rtx.sm89.plan",
    "engine {run}/model.onnx --arch sm89,orin --out engines",
    "deploy {run} --to device",
    "validate {run}/model.onnx --against {run}/model.fp32.onnx --quiet",
    "doctor",
    "doctor --json -",
)
NEEDS_MORE = (
    "build --teacher digits_vit --bits w4a8 --out run",
    "invert --teacher digits_vit --out images",
    "quantize --teacher digits_vit --bits w4a8 --images {run}/images --out q.safetensors",
    "sensitivity --teacher digits_vit --bits w4a8 --images {run}/images --out sensitivity",
    "distill --teacher digits_vit --student teacher --out student",
    "export --teacher digits_vit --quantized {run}/quantized.safetensors --out exported",
    "validate {run}",
    "validate {run}/model.onnx --teacher digits_vit",
    "gallery {run} --out gallery",
    "reproduce table1 --teacher digits_vit --scale smoke --out reproduced",
    "bench inversion --teacher digits_vit",
)


@dataclass(frozen=True)
class Said:
    """A command in that environment: its exit code, its time, and its last line."""

    command: str
    exit_code: int
    seconds: float
    said: str


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    run = parser.parse_args().run.resolve()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        alone, place, source = folder / "alone", folder / "edge", _source(folder / "source")
        venv.create(alone, with_pip=True)
        _install(alone, ["--no-deps", str(source)])
        bare, began = list(_tried(alone, folder, run, WORK[:1])), time.perf_counter()
        venv.create(place, with_pip=True)
        _install(place, ["-r", str(ROOT / "requirements-edge.txt"), "-c", str(ROOT / "constraints.txt")])
        _install(place, ["--no-deps", str(source)])
        seconds = time.perf_counter() - began
        sizes = _sizes(place)
        work, more = list(_tried(place, folder, run, WORK)), list(_tried(place, folder, run, NEEDS_MORE))
    right = all(each.exit_code == 0 for each in work) and all(each.exit_code == MISSING for each in (*bare, *more))
    total, here = sum(sizes.values()), _sizes(Path(sys.prefix))
    rows = {name: [asdict(each) for each in said] for name, said in (("bare", bare), ("work", work), ("more", more))}
    largest = {name: size for name, size in sorted(sizes.items(), key=lambda item: -item[1]) if size >= 1}
    write_record(
        "edge",
        {"megabytes": round(total), "limit": LIMIT_MB, "install_seconds": round(seconds), "right": right,
         "largest": {name: round(size, 1) for name, size in largest.items()},
         "default_megabytes": round(sum(here.values())), "cuda_megabytes": round(_cuda(Path(sys.prefix))), **rows,
         "markdown": _markdown(sizes, here)},
    )  # fmt: skip
    return 0 if right and total <= LIMIT_MB else 1


def _source(out: Path) -> Path:
    """The files of this project, without what was built in its folder."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for path in filter(None, listed.split("\0")):
        (out / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / path, out / path)
    return out


def _install(place: Path, what: Sequence[str]) -> None:
    line = [str(place / "bin" / "python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *what]
    subprocess.run(line, check=True)


def _tried(place: Path, folder: Path, run: Path, commands: Sequence[str]) -> Iterator[Said]:
    """Each of `commands` in the environment; a traceback counts as exit code -1."""
    for command in commands:
        began = time.perf_counter()
        line = [str(place / "bin" / "pipeline"), *(word.format(run=run) for word in command.split())]
        done = subprocess.run(line, cwd=folder, capture_output=True, text=True, check=False)
        code = -1 if "Traceback" in done.stderr else done.returncode
        told = (done.stdout if code == 0 else done.stderr).strip().splitlines() or [""]
        said = told[-1].replace(str(folder), "").replace(f"{run}/", "").replace(str(run), run.name)[:300]
        found = Said(command.format(run=run.name), code, round(time.perf_counter() - began, 1), said)
        print(found, file=sys.stderr, flush=True)
        yield found


def _sizes(place: Path) -> dict[str, float]:
    """Megabytes of what was installed, by its name in site-packages, as `du` counts them."""
    (site,) = place.glob("lib/python*/site-packages")
    told = subprocess.run(["du", "-sk", *map(str, site.iterdir())], capture_output=True, text=True, check=True).stdout
    pairs = (line.split("\t") for line in told.splitlines())
    return {Path(path).name: int(size) / 1024 for size, path in pairs}


def _cuda(place: Path) -> float:
    """Megabytes of a default install in `place` that only CUDA needs."""
    (site,) = place.glob("lib/python*/site-packages")
    paths = [path for start in CUDA for path in site.glob(f"{start}*") if not path.name.endswith("-info")]
    paths = [path for path in paths if not path.name.startswith("nvidia_")]
    told = subprocess.run(["du", "-skc", *map(str, paths)], capture_output=True, text=True, check=True).stdout
    return int(told.splitlines()[-1].split("\t")[0]) / 1024


def _markdown(sizes: dict[str, float], here: dict[str, float]) -> str:
    """A table for docs/install.md."""
    rows = [("edge install", sum(sizes.values()))]
    rows += [(f"of it {part}", sum(_of(sizes, starts).values())) for part, starts in PARTS.items()]
    rows += [
        ("default install, with what tests need", sum(here.values())),
        ("of it for CUDA alone", _cuda(Path(sys.prefix))),
    ]
    return "\n".join(["| | MB |", "| --- | ---: |", *(f"| {name} | {size:.0f} |" for name, size in rows)])


def _of(sizes: dict[str, float], starts: tuple[str, ...]) -> dict[str, float]:
    """Folders of a part: `onnx` has neither onnxruntime's nor onnx_ir's."""
    known = {start for each in PARTS.values() for start in each}
    longest = {name: max((start for start in known if name.startswith(start)), key=len, default="") for name in sizes}
    return {name: size for name, size in sizes.items() if longest[name] in starts and not name.startswith("onnx_ir")}


if __name__ == "__main__":
    sys.exit(main())
