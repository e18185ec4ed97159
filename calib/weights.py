"""The finished quantized weights: integers and steps, and their file."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from calib.attention import QUANTIZERS
from calib.scheme import FLOAT_BITS, LayerBits, QuantScheme, integer_range
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

    where the scheme's attention is int8, for each attention `A` ("blocks.0.attn"),

    - `A.q_step`, `A.k_step`, `A.softmax_step`, `A.v_step`  float32 [], of the inputs of softmax(q @ k) @ v

    and, under its timm name, every other parameter in float32.

        QuantizedWeights.load("quantized.safetensors").float_weight("head")
    """

    scheme: QuantScheme
    teacher: str
    teacher_sha256: str
    layers: dict[str, LayerBits]
    tensors: dict[str, Tensor]

    def __post_init__(self) -> None:
        for name, bits in self.layers.items():
            weight = self.tensors[f"{name}.weight"]
            low, high = integer_range(bits.weight)
            if weight.dtype != torch.int8 or not weight.numel() or int(weight.min()) < low or int(weight.max()) > high:
                raise InputError(f"{name}.weight is not made of integers in [{low}, {high}]: quantize again.")
        for key in self._step_names():
            step = self.tensors.get(key, torch.tensor(torch.nan))
            layer, _, what = key.rpartition(".")
            shape = self.tensors[f"{layer}.weight"].shape[:1] if what == "weight_step" else ()
            if step.shape != shape or step.dtype != torch.float32:
                raise InputError(f"{key} is not of shape {list(shape)} and float32: quantize again.")
            if not bool(torch.isfinite(step).all()) or float(step.min()) <= 0:
                raise InputError(f"{layer} has a {what} that is not a positive number: quantize again.")

    def _step_names(self) -> list[str]:
        """Of every step that scheme and layers ask for."""
        names = [f"{name}.weight_step" for name in self.layers]
        names += [f"{name}.input_step" for name, bits in self.layers.items() if bits.activation < FLOAT_BITS]
        if self.scheme.attention == "int8":
            attentions = [name.removesuffix(".qkv") for name in self.layers if name.endswith(".attn.qkv")]
            names += [f"{name}.{part}_step" for name in attentions for part in QUANTIZERS]
        return names

    def float_weight(self, name: str) -> Tensor:
        """`weight * weight_step` of one layer."""
        weight, step = self.tensors[f"{name}.weight"], self.tensors[f"{name}.weight_step"]
        return weight.float() * step.view(-1, *[1] * (weight.ndim - 1))

    def save(self, path: Path | str) -> None:
        metadata = {
            "format": FORMAT,
            "scheme": self.scheme.bits,
            "overrides": json.dumps(self.scheme.overrides()),
            "teacher": self.teacher,
            "teacher_sha256": self.teacher_sha256,
            "layers": json.dumps({name: asdict(bits) for name, bits in sorted(self.layers.items())}),
        }
        write_tensors(Path(path), self.tensors, metadata)

    @classmethod
    def load(cls, path: Path | str) -> QuantizedWeights:
        """Raises `InputError` for a file that is not a whole, consistent `quantized.safetensors`."""
        mend = "make it again with `pipeline quantize`."
        tensors, metadata = read_tensors(Path(path), FORMAT, mend)
        try:
            layers = {name: LayerBits(**bits) for name, bits in json.loads(metadata["layers"]).items()}
            scheme = QuantScheme.parse(metadata["scheme"], **json.loads(metadata.get("overrides", "{}")))
            return cls(scheme, metadata["teacher"], metadata["teacher_sha256"], layers, tensors)
        except (KeyError, TypeError, ValueError, AttributeError, RecursionError, RuntimeError) as error:
            raise InputError(f"{str(path)!r} is not consistent ({error}): {mend}") from error
