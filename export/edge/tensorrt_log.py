"""What TensorRT says while it works: kept for reasons and for layers, never printed. Runs without torch."""

from __future__ import annotations

import functools
from types import ModuleType
from typing import Any


@functools.cache
def logger(trt: ModuleType) -> Any:
    """One logger a process, since TensorRT keeps the first it is given."""

    class Collector(trt.ILogger):  # type: ignore[name-defined] # known at run time only
        def __init__(self) -> None:
            super().__init__()
            self.messages: list[tuple[Any, str]] = []
            self.raised: BaseException | None = None

        def log(self, severity: Any, message: str) -> None:
            try:
                self.messages.append((severity, message))
            except BaseException as stopped:  # of a signal: the builder, which calls this, would swallow it
                self.raised = stopped

        def forget(self) -> None:
            self.messages.clear()
            self.raised = None

        def layers(self) -> str:
            """What the builder told of the engine's layers, a line each."""
            lines = (line for _, text in self.messages for line in text.splitlines())
            return "\n".join(line for line in lines if "LayerType: " in line)

        def complaint(self) -> str:
            errors = [text for severity, text in self.messages if severity <= trt.ILogger.ERROR]
            return errors[0].strip().rstrip(".") if errors else "TensorRT gave no reason"

    return Collector()
