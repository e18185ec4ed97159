"""`deploy/`: what to copy of a run, and nothing else.

The model or its engines, preprocess.json, labels.txt, programs in Python and C++ that classify pictures with them, and
README.md, which says what runs where.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from hashlib import sha256
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import onnx
from jinja2 import Environment, PackageLoader, StrictUndefined

from export.edge.engine_spec import ENGINE_GRAPH, read_spec
from export.edge.ort_graph import ORT_GRAPH
from inversion.errors import InputError
from inversion.publish import publish
from pipeline.record.manifest import Manifest, Output, load_finished
from pipeline.show.display import result_rows

DEPLOY = "deploy"
Runtime = Literal["all", "onnxruntime", "tensorrt"]
RUNTIMES = get_args(Runtime)
MODEL, STEPS, LABELS, README, NUMBERS = "model.onnx", "preprocess.json", "labels.txt", "README.md", "preprocess.hpp"
PROGRAMS = {
    "all": ("classify.py", "picture.hpp", "classify.cpp", "classify_tensorrt.cpp"),
    "onnxruntime": ("classify.py", "picture.hpp", "classify.cpp"),
    "tensorrt": ("classify.py", "picture.hpp", "classify_tensorrt.cpp"),
}
OWN = (MODEL, ORT_GRAPH, STEPS, LABELS, README, NUMBERS, *PROGRAMS["all"], ENGINE_GRAPH, "engine.*", "timing.*.cache")
"""Names and patterns of what may lie in such a folder from an earlier time; nothing else in it is touched."""

OF_THIS_MACHINE = ("latency", "peak memory")
"""Rows that say nothing of a device, and differ from run to run."""


def deploy(run: Path, out: Path, runtime: str = "all") -> list[Path]:
    """Write what runs the finished run in `run` on `runtime`, one of `RUNTIMES`, into the folder `out`.

    Returns the files. Raises `InputError` for a run that is not finished, or whose files are not those that it made, or
    that has no engine where TensorRT is asked for.
    """
    if runtime not in RUNTIMES:
        raise InputError(f"unknown runtime {runtime!r}: take one of {', '.join(RUNTIMES)}.")
    if out.exists() and not out.is_dir():
        raise InputError(f"{str(out)!r} is a file: give a folder.")
    return write_deploy(load_finished(run), run, out, runtime)


def write_deploy(manifest: Manifest, run: Path, out: Path, runtime: str = "all") -> list[Path]:
    """As `deploy`, of a run whose manifest is known. The README is written last."""
    chosen = list(_outputs(manifest, run, runtime))
    for output in chosen:
        content = (run / output.path).read_bytes() if (run / output.path).is_file() else b""
        if sha256(content).hexdigest() != output.sha256:
            raise InputError(
                f"{str(run / output.path)!r} is not the file that the run made: run `pipeline build` again."
            )
    steps = json.loads((run / STEPS).read_bytes())
    labels = labels_of(run / MODEL)
    clear(out)
    out.mkdir(parents=True, exist_ok=True)
    written = [out / output.path for output in chosen]
    for path in written:
        publish(path, (run / path.name).read_bytes())
    texts = {name: files("pipeline.deploy").joinpath(name).read_text("utf-8") for name in PROGRAMS[runtime]}
    texts[NUMBERS] = numbers_of(steps)
    if labels:
        texts[LABELS] = "".join(f"{label}\n" for label in labels)
    engines = [path for path in written if path.suffix == ".plan"]
    texts[README] = _readme(manifest, runtime, written, engines, bool(labels))
    for name, text in texts.items():
        publish(out / name, text.encode())
    return sorted([*written, *(out / name for name in texts)])


def clear(out: Path) -> None:
    """Take away what an earlier run left in a deploy folder."""
    for pattern in OWN if out.is_dir() else ():
        for path in out.glob(pattern):
            path.unlink()


def labels_of(model: Path) -> list[str]:
    """A line for each class, as the metadata of the model names them; nothing where it names none."""
    entries = {entry.key: entry.value for entry in onnx.load(model, load_external_data=False).metadata_props}
    return [" ".join(str(label).split()) for label in json.loads(entries.get("labels", "[]"))]


def numbers_of(steps: dict[str, Any]) -> str:
    """preprocess.json as a C++ header."""
    height, width = steps["crop"]["height"], steps["crop"]["width"]
    channels, takes_bytes = {"L": 1, "RGB": 3}[steps["colour"]["mode"]], "normalise" not in steps
    shape = [1, height, width, channels] if takes_bytes else [1, channels, height, width]
    normalise = steps.get("normalise", {"mean": [0.0] * channels, "std": [1.0] * channels})
    settings = steps.get("onnxruntime", {})
    return _NUMBERS.format(
        kernel=steps["resize"]["interpolation"],
        shorter=steps["resize"]["shorter_side"],
        height=height,
        width=width,
        channels=channels,
        takes_bytes="true" if takes_bytes else "false",
        element="uint8_t" if takes_bytes else "float",
        mean=_floats(normalise["mean"]),
        std=_floats(normalise["std"]),
        input=steps["tensor"]["name"],
        output=steps.get("output", {}).get("name", "logits"),
        shape=", ".join(map(str, shape)),
        always=_pairs(settings.get("session_config", {})),
        without_vnni=_pairs(settings.get("session_config_on_x86_without_vnni", {})),
    )


_NUMBERS = """// Made from preprocess.json, which says in words what they are.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <vector>

enum class Kernel {{ bicubic, bilinear, lanczos }};
using Element = {element};

constexpr Kernel KERNEL = Kernel::{kernel};
constexpr int SHORTER = {shorter}, HEIGHT = {height}, WIDTH = {width}, CHANNELS = {channels};
constexpr bool TAKES_BYTES = {takes_bytes};
constexpr std::array<float, {channels}> MEAN{{{mean}}}, STD{{{std}}};
constexpr const char *INPUT = "{input}", *OUTPUT = "{output}";
constexpr std::array<int64_t, 4> SHAPE{{{shape}}};

using Settings = std::vector<std::array<const char*, 2>>;
inline const Settings SESSION_CONFIG = {{{always}}};
inline const Settings SESSION_CONFIG_ON_X86_WITHOUT_VNNI = {{{without_vnni}}};
"""


def _floats(numbers: list[float]) -> str:
    """As float32 has them, so that C++ reads the same ones."""
    return ", ".join(f"{float(np.float32(number))!r}f" for number in numbers)


def _pairs(settings: dict[str, str]) -> str:
    return ", ".join(f'{{{{"{key}", "{value}"}}}}' for key, value in settings.items())


def _outputs(manifest: Manifest, run: Path, runtime: str) -> Iterator[Output]:
    """The run's own files that are copied; the graph that engines are built from where they are built there, and the
    file that ONNX Runtime alone reads where it alone is to run."""
    names = {"all": {MODEL, STEPS}, "onnxruntime": {MODEL, ORT_GRAPH, STEPS}, "tensorrt": {STEPS}}[runtime]
    yield from (output for output in manifest.stage("export").outputs if output.path in names)
    if runtime == "onnxruntime":
        return
    engine = manifest.stage("engine").outputs
    if runtime == "tensorrt" and not engine:
        raise InputError(f"the run in {str(run)!r} built no engine: build it again with --arch, as in --arch sm89.")
    graph_too = runtime == "tensorrt" or any(output.path.endswith(".sh") for output in engine)
    yield from (output for output in engine if graph_too or output.path != ENGINE_GRAPH)


def _readme(manifest: Manifest, runtime: str, written: list[Path], engines: list[Path], labels: bool) -> str:
    pages = Environment(
        loader=PackageLoader("pipeline.deploy", ""), undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    page = pages.get_template("README.md.jinja").render(
        manifest=manifest,
        rows=[row for row in result_rows(manifest) if not row[""].startswith(OF_THIS_MACHINE)],
        model=MODEL if runtime != "tensorrt" else None,
        sizes={path.name: f"{path.stat().st_size / 1e6:.2f} MB" for path in written},
        engines=[(path.name, read_spec(path)) for path in engines],
        scripts=[path.name for path in written if path.suffix == ".sh"],
        for_onnxruntime=any(path.name == ORT_GRAPH for path in written),
        four_bits=any(output.path == "model.int4.onnx" for output in manifest.stage("export").outputs),
        labels=labels,
        graph=any(path.name == ENGINE_GRAPH for path in written),
    )
    return page if page.endswith("\n") else f"{page}\n"
