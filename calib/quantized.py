"""The finished quantized weights: integers and steps, and their file."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from calib.scheme import LayerBits, QuantScheme, integer_range
from inversion.errors import InputError
from inversion.tensorfile import read_tensors, write_tensors

FORMAT = "patch-rebirth.quantized/1"


@dataclass(frozen=True)
class QuantizedWeights:
    """What `quantized.safetensors` holds. For each layer `L` of `layers`, `tensors` has

    - `L.weight`       int8, the float weight's shape ([out, in], or [D, C, P, P] of the patch embedding),
                       within the layer's bits; the float weight is `weight * weight_step`
    - `L.weight_step`  float32 [out]
    - `L.input_step`   float32 [], absent where the input stays float

    and, under its timm name, every other parameter in float32.
    """

    scheme: QuantScheme
    teacher: str
    teacher_sha256: str
    layers: dict[str, LayerBits]
    tensors: dict[str, Tensor]

    def __post_init__(self) -> None:
        for name, bits in self.layers.items():
            weight, step = self.tensors[f"{name}.weight"], self.tensors[f"{name}.weight_step"]
            low, high = integer_range(bits.weight)
            if weight.dtype != torch.int8 or int(weight.min()) < low or int(weight.max()) > high:
                raise InputError(f"{name}.weight is not made of integers in [{low}, {high}]: quantize again.")
            steps = [step, self.tensors[f"{name}.input_step"]] if bits.activation < 16 else [step]
            if not all(bool(torch.isfinite(part).all()) and float(part.min()) > 0 for part in steps):
                raise InputError(f"{name} has a step that is not a positive number: quantize again.")

    def float_weight(self, name: str) -> Tensor:
        """`weight * weight_step` of one layer."""
        weight, step = self.tensors[f"{name}.weight"], self.tensors[f"{name}.weight_step"]
        return weight.float() * step.view(-1, *[1] * (weight.ndim - 1))

    def save(self, path: Path) -> None:
        metadata = {
            "format": FORMAT,
            "scheme": str(self.scheme),
            "teacher": self.teacher,
            "teacher_sha256": self.teacher_sha256,
            "layers": json.dumps({name: asdict(bits) for name, bits in sorted(self.layers.items())}),
        }
        write_tensors(path, self.tensors, metadata)

    @classmethod
    def load(cls, path: Path) -> QuantizedWeights:
        """Raises `InputError` for a file that is not a whole, consistent `quantized.safetensors`."""
        mend = "make it again with `pipeline quantize`."
        tensors, metadata = read_tensors(path, FORMAT, mend)
        try:
            layers = {name: LayerBits(**bits) for name, bits in json.loads(metadata["layers"]).items()}
            scheme = QuantScheme.parse(metadata["scheme"])
            return cls(scheme, metadata["teacher"], metadata["teacher_sha256"], layers, tensors)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise InputError(f"{str(path)!r} is not consistent ({error}): {mend}") from error
