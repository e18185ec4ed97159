"""Quantized model in; ONNX, engines, running models and their comparison out.

    from export import answer, compare, export_onnx, open_runtime

    export_onnx(teacher, "quantized.safetensors", "model.onnx")
    with open_runtime("model.onnx") as runtime:
        found = compare(teacher.logits(images), answer(runtime, images))
    print(found.agreement, found.kl)

What is named here loads when it is asked for; all but `export_onnx` runs without torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from export.edge.backend import Runtime
    from export.edge.build import build_engine
    from export.edge.compare import Comparison, compare
    from export.edge.engine_spec import EngineSpec
    from export.edge.latency import measure_latency
    from export.edge.runtime import answer, open_engine, open_runtime
    from export.onnx_file import export_onnx

__all__ = [
    "Comparison",
    "EngineSpec",
    "Runtime",
    "answer",
    "build_engine",
    "compare",
    "export_onnx",
    "measure_latency",
    "open_engine",
    "open_runtime",
]
_MODULES = {
    "export.edge.backend": ("Runtime",),
    "export.edge.build": ("build_engine",),
    "export.edge.compare": ("Comparison", "compare"),
    "export.edge.engine_spec": ("EngineSpec",),
    "export.edge.latency": ("measure_latency",),
    "export.edge.runtime": ("answer", "open_engine", "open_runtime"),
    "export.onnx_file": ("export_onnx",),
}


def __getattr__(name: str) -> Any:
    for module, names in _MODULES.items():
        if name in names:
            return getattr(importlib.import_module(module), name)
    raise AttributeError(f"module 'export' has no attribute {name!r}: it offers {', '.join(__all__)}.")


def __dir__() -> list[str]:
    return __all__
