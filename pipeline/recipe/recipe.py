"""Everything that decides a run, as checked frozen values: a section a stage, and what several stages read."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Annotated, Literal

from pydantic import Field

from calib.scheme import QuantScheme
from calib.settings import Basis, Calibration, Distillation, Rounding, Training
from export.edge.profile import BATCHES, PRECISION, Precision, require_batches
from export.edge.registry import BackendName, Provider
from inversion.checked import Amount, Flag, Percent, Seed, Share, checked
from inversion.config import GivenInput
from inversion.errors import InputError
from inversion.job import Inversion

Effort = Literal["quick", "standard", "paper"]
MOST_THREADS = 1024


@checked("scheme")
class Scheme:
    """Where the bits differ from `Recipe.bits`, as `calib.scheme.QuantScheme` reads it: `edges` of the first and last
    layer, `attention` float or int8, `layers` from a name or shell pattern to bits, as in {"blocks.0.*": "w8a8"}."""

    edges: str | None = None
    attention: str = "float"
    layers: dict[str, str] = field(default_factory=dict)


@checked("export")
class Export:
    """`uint8_input`: the models take resized pictures as bytes [batch, H, W, C], and normalise them themselves."""

    uint8_input: Flag = False


@checked("engine")
class Engine:
    """`arch`: compute capabilities to build for, as in sm89; `backend`: tensorrt or tensorrt_rtx,
    by default the first that is installed; `precision`: float16, bfloat16 or float32 beside the integers; `batch`: the
    smallest, the optimal and the largest."""

    arch: tuple[str, ...] = ("sm89",)
    backend: BackendName | None = None
    precision: Precision = PRECISION
    batch: tuple[int, ...] = BATCHES

    def __post_init__(self) -> None:
        require_batches(self.batch)


@checked("validation")
class Validation:
    """Gates. A limit left at None is the default for the scheme's bits, see `limits`. What is measured on pictures
    passes by the bound of its 95% interval: it must be sure that the limit holds.

    `pictures` dead leaves (`inversion.leaves`) that nothing learned from judge, beside held-out mosaics.
    `max_kl` bounds KL(teacher || ONNX) in nats on them; `min_agreement` and `max_drop` (of top-1), both in percent
    points, bound what real pictures show where there are some. `min_integer_coverage` is the least share of quantized
    products that a runtime must compute with integers. `max_latency_ratio`, to the float model at batches 1 and 8, is
    no gate unless it is given: a busy machine misses it. `max_engine_ratio`, where an engine runs on its GPU, is to the
    FP16 engine of the float model: at no batch of the profile may it surely take a larger share of the time. `provider`
    is ONNX Runtime's: cpu, cuda, tensorrt or tensorrt_rtx.
    """

    pictures: Annotated[int, Field(strict=True, ge=2, le=100_000)] = 400
    max_kl: Amount | None = None
    min_agreement: Percent | None = None
    max_drop: Percent | None = None
    min_integer_coverage: Share = 1.0
    max_latency_ratio: Amount | None = None
    max_engine_ratio: Amount = 1.0
    provider: Provider = "cpu"

    def __post_init__(self) -> None:
        if self.min_agreement and self.min_agreement <= 1:
            raise InputError(
                f"validation.min_agreement {self.min_agreement:g} is a share: it is in percent points now, "
                f"write {100 * self.min_agreement:g}."
            )

    def limits(self, scheme: QuantScheme) -> dict[str, float | None]:
        """A little worse than what the records say of DeiT-Tiny; with activations below 8 bits, far worse than w4a8."""
        if scheme.activation_bits < 8:
            defaults = (1.5, 65.0, 15.0)
        else:
            defaults = (0.1, 94.0, 3.0) if scheme.weight_bits >= 8 else (0.2, 85.0, 6.0)
        given = (self.max_kl, self.min_agreement, self.max_drop)
        names = ("max_kl", "min_agreement", "max_drop")
        chosen = {n: d if g is None else g for n, d, g in zip(names, defaults, given, strict=True)}
        others = ("min_integer_coverage", "max_latency_ratio", "max_engine_ratio")
        return {**chosen, **{name: getattr(self, name) for name in others}}


@dataclass(frozen=True)
class PictureSource:
    """Which real pictures judge, as a person names them: all None where none are given."""

    val_data: str | None = None
    class_map: str | None = None
    image_column: str | None = None
    label_column: str | None = None


@checked()
class Recipe:
    """One run, or what a single verb reads of one. `bits` are empty where a verb asks for none.

    `checkpoint`, `val_data` and `class_map` are paths; without val_data there is no real picture at all.
    `checkpoint_key` chooses among several sets of weights in the checkpoint, `image_column` and `label_column` are
    those of a Parquet file.

    `threads` of the CPU share its sums and so decide their last bits: 0 is as many as torch takes here, and a run that
    goes on keeps the number that it began with.
    """

    teacher: str
    bits: str = ""
    checkpoint: str | None = None
    checkpoint_key: str | None = None
    effort: Effort = "standard"
    seed: Seed = 0
    val_data: str | None = None
    class_map: str | None = None
    image_column: str | None = None
    label_column: str | None = None
    threads: Annotated[int, Field(strict=True, ge=0, le=MOST_THREADS)] = 0
    input: GivenInput = field(default_factory=GivenInput)
    scheme: Scheme = field(default_factory=Scheme)
    inversion: Inversion = field(default_factory=Inversion)
    basis: Basis = field(default_factory=Basis)
    calibration: Calibration = field(default_factory=Calibration)
    rounding: Rounding = field(default_factory=Rounding)
    training: Training = field(default_factory=Training)
    distillation: Distillation = field(default_factory=Distillation)
    export: Export = field(default_factory=Export)
    engine: Engine = field(default_factory=Engine)
    validation: Validation = field(default_factory=Validation)

    def __post_init__(self) -> None:
        if self.bits:
            self.quant_scheme()

    @property
    def judges(self) -> PictureSource:
        """Which real pictures judge."""
        return PictureSource(self.val_data, self.class_map, self.image_column, self.label_column)

    def quant_scheme(self) -> QuantScheme:
        """`bits` and `scheme` in one; whether the teacher has the layers that it names, `QuantScheme.check` tells."""
        return QuantScheme.parse(self.bits, self.scheme.edges, self.scheme.attention, self.scheme.layers)

    def to_dict(self) -> dict[str, object]:
        return asdict(self)
