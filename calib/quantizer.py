"""ModelOpt's integer quantizer with integers of one's own choice."""

from __future__ import annotations

from modelopt.torch.quantization.nn import TensorQuantizer
from torch import Tensor

from calib.scheme import integer_range


class RangeQuantizer(TensorQuantizer):
    """A ModelOpt quantizer that rounds to integers in `bounds` (low, high) of the step amax / high; ModelOpt's own are
    symmetric."""

    bounds: tuple[int, int]

    @classmethod
    def take_over(cls, quantizer: TensorQuantizer, bounds: tuple[int, int]) -> None:
        """Convert `quantizer` in place, as ModelOpt converts its own."""
        # a new one would have to be given range, calibrator and switches, which ModelOpt keeps in private attributes
        quantizer.__class__ = cls
        quantizer.bounds = bounds

    def _fake_quantize(self, inputs: Tensor) -> Tensor:
        low, high = self.bounds
        step = self.amax / high
        return (inputs / step).round().clamp(low, high) * step


def bounds_of(quantizer: TensorQuantizer) -> tuple[int, int]:
    """Smallest and largest integer of `quantizer`."""
    return getattr(quantizer, "bounds", None) or integer_range(quantizer.num_bits)
