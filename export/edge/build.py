"""A Q/DQ graph in, a folder of TensorRT engines out: one for each GPU architecture. Runs without torch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from export.edge.engine import EngineSpec, build_engine
from export.edge.engine_graph import write_engine_graph
from export.edge.kernels import require_quantized
from export.edge.profile import BATCHES, PRECISION, require_batches

ENGINE_GRAPH = "model.tensorrt.onnx"


def build_engines(
    model: Path,
    folder: Path,
    archs: Sequence[str],
    backend: str,
    precision: str = PRECISION,
    batches: Sequence[int] = BATCHES,
    progress: Callable[[str], None] | None = None,
) -> Iterator[tuple[Path, EngineSpec]]:
    """`folder`/engine.<backend>.<arch>.plan for each of `archs`, each with its sidecar, as soon as it is built.

    The graph that they are built from is written beside them as `ENGINE_GRAPH`. Raises what
    `export.edge.engine.build_engine` and `export.edge.engine_graph.write_engine_graph` raise, and `InputError` for a
    graph without quantized weights.
    """
    require_batches(batches)
    require_quantized(model)
    graph = folder / ENGINE_GRAPH
    write_engine_graph(model, graph, precision)
    for arch in archs:
        path = folder / f"engine.{backend}.{arch}.plan"
        yield path, build_engine(graph, path, arch, backend, batches, progress)
