"""Lines that build and time engines on the device itself, by the tools that come with TensorRT. Runs without torch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import onnx

from export.edge.engine_spec import ENGINE_GRAPH, TensorSpec
from inversion.publish import publish

TOOLS = {"tensorrt": "trtexec", "tensorrt_rtx": "tensorrt_rtx"}


def build_line(backend: str, arch: str, graph: str, engine: str, dynamic: Sequence[TensorSpec]) -> str:
    """For the machine with the GPU, or, of tensorrt_rtx, for any; it is typed by the graph alone, as here. The shapes
    of `dynamic` inputs are those of the profile."""
    typed = ["--stronglyTyped"] if backend == "tensorrt" else [f"--computeCapabilities={arch[2:]}"]
    shapes = [part for which in ("min", "opt", "max") for part in shape_flags(f"{which}Shapes", which, dynamic)]
    cached = [f"--timingCacheFile=timing.{backend}.{arch}.cache"] if backend == "tensorrt" else []
    saved = [f"--saveEngine={engine}", "--skipInference"]
    return command(backend, [f"--onnx={graph}", *typed, *shapes, *cached, *saved])


def shape_flags(flag: str, which: str, dynamic: Sequence[TensorSpec]) -> list[str]:
    """One flag with the shapes of all inputs whose batch the graph leaves open, or none."""
    found = [f"{spec.name}:{'x'.join(map(str, getattr(spec, which)))}" for spec in dynamic]
    return [f"--{flag}={','.join(found)}"] if found else []


def command(backend: str, flags: Sequence[str]) -> str:
    return " ".join([TOOLS[backend], *flags])


def write_script(graph: Path, arch: str, batches: Sequence[int]) -> Path:
    """engine.tensorrt.<arch>.sh beside `graph`: what builds and times the engine on its device, where none can be built
    here."""
    dynamic = _dynamic_inputs(graph, batches)
    engine = f"engine.tensorrt.{arch}.plan"
    path = graph.with_name(f"engine.tensorrt.{arch}.sh")
    build = build_line("tensorrt", arch, ENGINE_GRAPH, engine, dynamic)
    time = command("tensorrt", [f"--loadEngine={engine}", *shape_flags("shapes", "opt", dynamic)])
    publish(path, f'#!/bin/sh\nset -e\ncd "$(dirname "$0")"\n{build}\n{time}\n'.encode())
    return path


def line_of(script: Path) -> str:
    """The line in it that builds."""
    return next(line for line in script.read_text().splitlines() if "--saveEngine" in line)


def _dynamic_inputs(graph: Path, batches: Sequence[int]) -> list[TensorSpec]:
    """Inputs whose batch is open, with the shapes of the profile."""
    found = []
    for value in onnx.load(graph, load_external_data=False).graph.input:
        sizes = [size.dim_value for size in value.type.tensor_type.shape.dim]
        if sizes and not sizes[0]:
            low, opt, high = ((batch, *sizes[1:]) for batch in batches)
            kind = onnx.helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type).name
            found.append(TensorSpec(value.name, str(kind), low, opt, high))
    return found
