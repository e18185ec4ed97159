"""Teacher in, synthetic images out. Needs torch, timm, numpy, pydantic and safetensors, nothing else.

    from inversion import Inversion, Teacher, invert

    teacher = Teacher.from_model(model)  # any live timm plain ViT; load_teacher takes names and checkpoints
    images = invert(teacher, Inversion(images=32, iterations=300))
    images.to_pil()[0].save("sparse.png")

What is named here loads when it is asked for: torch and timm take seconds.
"""

from __future__ import annotations

import importlib
import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from inversion.config import GivenInput
    from inversion.errors import InputError, MachineError, NumericalError, PatchRebirthError
    from inversion.images import SparseImages, load_images
    from inversion.inverter import invert
    from inversion.job import Inversion
    from inversion.leaves import dead_leaves
    from inversion.teacher import InputSpec, Teacher, load_teacher

# threads that spin long while they wait made an inversion 25 times slower on two cores that something else used too;
# torch reads it when it is loaded, and what is named here loads later
os.environ.setdefault("GOMP_SPINCOUNT", "1000")

__all__ = [
    "GivenInput",
    "InputError",
    "InputSpec",
    "Inversion",
    "MachineError",
    "NumericalError",
    "PatchRebirthError",
    "SparseImages",
    "Teacher",
    "dead_leaves",
    "invert",
    "load_images",
    "load_teacher",
]
_MODULES = {
    "inversion.config": ("GivenInput",),
    "inversion.errors": ("InputError", "MachineError", "NumericalError", "PatchRebirthError"),
    "inversion.images": ("SparseImages", "load_images"),
    "inversion.inverter": ("invert",),
    "inversion.job": ("Inversion",),
    "inversion.leaves": ("dead_leaves",),
    "inversion.teacher": ("InputSpec", "Teacher", "load_teacher"),
}


def __getattr__(name: str) -> Any:
    for module, names in _MODULES.items():
        if name in names:
            return getattr(importlib.import_module(module), name)
    raise AttributeError(f"module 'inversion' has no attribute {name!r}: it offers {', '.join(__all__)}.")


def __dir__() -> list[str]:
    return __all__
