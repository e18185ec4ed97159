"""Images in, quantized torch model out.

    from calib import quantize

    quantized = quantize(teacher, images, "w4a8")
    quantized.save("quantized.safetensors")

What is named here loads when it is asked for: torch and ModelOpt take seconds.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from calib.quantization import Quantized, quantize
    from calib.scheme import LayerBits, QuantScheme
    from calib.settings import Basis, Calibration, Rounding, Training
    from calib.weights import QuantizedWeights

__all__ = [
    "Basis",
    "Calibration",
    "LayerBits",
    "QuantScheme",
    "Quantized",
    "QuantizedWeights",
    "Rounding",
    "Training",
    "quantize",
]
_MODULES = {
    "calib.quantization": ("Quantized", "quantize"),
    "calib.scheme": ("LayerBits", "QuantScheme"),
    "calib.settings": ("Basis", "Calibration", "Rounding", "Training"),
    "calib.weights": ("QuantizedWeights",),
}


def __getattr__(name: str) -> Any:
    for module, names in _MODULES.items():
        if name in names:
            return getattr(importlib.import_module(module), name)
    raise AttributeError(f"module 'calib' has no attribute {name!r}: it offers {', '.join(__all__)}.")


def __dir__() -> list[str]:
    return __all__
