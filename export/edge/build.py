"""A Q/DQ graph in, TensorRT engines out: one for each GPU architecture. Runs without torch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from export.edge.engine_graph import write_engine_graph
from export.edge.engine_spec import ENGINE_GRAPH, EngineSpec
from export.edge.kernels import require_quantized
from export.edge.profile import BATCHES, PRECISION, require_batches
from export.edge.registry import builder, choose_backend, find_engine_backend
from export.edge.trtexec import write_script


def build_engine(
    model: Path | str,
    out: Path | str,
    arch: str,
    backend: str | None = None,
    precision: str = PRECISION,
    batches: Sequence[int] = BATCHES,
) -> EngineSpec:
    """The engine of a Q/DQ graph for the GPU architecture `arch`, written to `out` with its sidecar.

    The graph that it is built from, with `precision` beside the integers, is written next to it as `ENGINE_GRAPH`.
    `batches` are the smallest, the optimal and the largest batch. `backend` is the first one installed where none is
    named. Raises `InputError` for a file, architecture or operator that cannot be used, `MachineError` where no backend
    is installed.

        spec = build_engine("model.onnx", "engine.plan", "sm89")
    """
    chosen = choose_backend(backend, [arch])
    assert chosen is not None
    graph = _engine_graph(Path(model), Path(out).parent, precision, batches)
    return find_engine_backend(chosen).build(graph, Path(out), arch, batches)


def build_engines(
    model: Path,
    folder: Path,
    archs: Sequence[str],
    backend: str,
    precision: str = PRECISION,
    batches: Sequence[int] = BATCHES,
) -> Iterator[tuple[Path, EngineSpec | None]]:
    """`folder`/engine.<backend>.<arch>.plan for each of `archs`, as soon as it is built: one graph for all. Of an
    architecture that cannot be built for here, a script for its device instead, and None.

    Raises what `build_engine` raises.
    """
    graph = _engine_graph(model, folder, precision, batches)
    for arch in archs:
        if (chosen := builder(backend, arch)) is None:
            yield write_script(graph, arch, batches), None
            continue
        path = folder / f"engine.{backend}.{arch}.plan"
        yield path, chosen.build(graph, path, arch, batches)


def build_float_engine(
    model: Path, folder: Path, arch: str, backend: str, batches: Sequence[int] = BATCHES, precision: str = "float16"
) -> Path:
    """`folder`/float16.plan: what a float graph gives in `precision`, for the GPU architecture `arch`, with its
    sidecar. An engine of integers should be faster. Raises what `build_engine` raises."""
    require_batches(batches)
    graph, out = folder / f"{precision}.onnx", folder / f"{precision}.plan"
    write_engine_graph(model, graph, precision)
    find_engine_backend(backend).build(graph, out, arch, batches)
    return out


def _engine_graph(model: Path, folder: Path, precision: str, batches: Sequence[int]) -> Path:
    require_batches(batches)
    require_quantized(model)
    graph = folder / ENGINE_GRAPH
    write_engine_graph(model, graph, precision)
    return graph
