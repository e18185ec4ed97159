"""Everything that decides a run, as frozen values: effort presets, TOML recipes and flags in one place."""

from __future__ import annotations

import dataclasses
import tomllib
import typing
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from calib.scheme import QuantScheme
from calib.settings import Basis, Calibration, Distillation, Rounding, Training
from export.edge.profile import BACKENDS, BATCHES, PRECISION, PROVIDERS, require_batches, require_precision
from inversion.config import GivenInput
from inversion.errors import InputError
from inversion.job import Inversion

PRESETS: dict[str, dict[str, dict[str, Any]]] = {
    # 24 trajectories of 300 iterations, and no training, which buys nothing in a good basis (docs/decisions/0016)
    "quick": {
        "inversion": {"images": 96, "iterations": 300, "batch": 32, "tv_weight": 1e-2},
        "training": {"updates": 0},
    },
    # four times the pictures
    "standard": {
        "inversion": {"images": 384, "iterations": 300, "batch": 96, "tv_weight": 1e-2},
        "calibration": {"leaves": 384},
        "training": {"updates": 0},
    },
    # section 5 and appendix D: 10k images, 4,000 iterations, TV over the batch as in SMI's code,
    # 100 epochs of SGD at 0.001 in batches of 128
    "paper": {
        "inversion": {"images": 10_000, "iterations": 4000, "batch": 128, "tv_weight": 1e-4, "tv_norm": "batch"},
        "training": {
            "updates": 7500, "batch": 128, "optimizer": "sgd", "schedule": "constant", "learning_rate": 1e-3,
            "views": "sparse", "crops": False, "feature_weight": 0.0, "ema": 0.0,
        },
        "calibration": {"views": "mosaic", "leaves": 0},
        "basis": {"method": "none"},
        "rounding": {"method": "nearest"},
    },
}  # fmt: skip
EFFORTS = tuple(PRESETS)
STAGES = ("invert", "quantize", "export", "engine", "validate")
FINE_RATE = 3e-6
"""Adam's rate at 8-bit weights, whose steps are 16 times finer than at 4 bits: `Training`'s own does harm there."""
MOST, MOST_PICTURES, MOST_THREADS, SEEDS = 1e6, 100_000, 1024, 2**32
TEACHERS: dict[str, dict[str, dict[str, Any]]] = {
    # grey pictures in -1..1 of 32 pixels: at 0.25 two pixels in ten saturate, and confidence stays at 45% (78% at 0.05)
    "digits_vit": {"inversion": {"learning_rate": 0.05}},
}
"""What a teacher needs otherwise than the presets say."""


@dataclass(frozen=True)
class Scheme:
    """Where the bits differ from `Recipe.bits`, as `calib.scheme.QuantScheme` reads it: `edges` of the first and last
    layer, `attention` float or int8, `layers` from a name or shell pattern to bits, as in {"blocks.0.*": "w8a8"}."""

    edges: str | None = None
    attention: str = "float"
    layers: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Export:
    """`uint8_input`: the models take resized pictures as bytes [batch, H, W, C], and normalise them themselves."""

    uint8_input: bool = False


@dataclass(frozen=True)
class Engine:
    """`arch`: compute capabilities to build for, as in sm89; `backend`: tensorrt or tensorrt_rtx,
    by default the first that is installed; `precision`: float16, bfloat16 or float32 beside the integers; `batch`: the
    smallest, the optimal and the largest."""

    arch: tuple[str, ...] = ("sm89",)
    backend: str | None = None
    precision: str = PRECISION
    batch: tuple[int, ...] = BATCHES

    def __post_init__(self) -> None:
        require_precision(self.precision)
        require_batches(self.batch)
        if self.backend is not None and self.backend not in BACKENDS:
            raise InputError(f"unknown backend {self.backend!r}: take {' or '.join(BACKENDS)}.")


@dataclass(frozen=True)
class Validation:
    """Gates. A limit left at None is the default for the scheme's bits, see `limits`. What is measured on pictures
    passes by the bound of its 95% interval: it must be sure that the limit holds.

    `pictures` dead leaves (`inversion.leaves`) that nothing learned from judge, beside held-out mosaics.
    `max_kl` bounds KL(teacher || ONNX) in nats on them; `min_agreement` (share) and `max_drop` (points of top-1) bound
    what real pictures show where there are some. `min_integer_coverage` is the least share of quantized products that
    a runtime must compute with integers. `max_latency_ratio`, to the float model at batches 1 and 8, is no gate unless
    it is given: a busy machine misses it. `provider` is ONNX Runtime's: cpu, cuda, tensorrt or tensorrt_rtx.
    """

    pictures: int = 400

    max_kl: float | None = None
    min_agreement: float | None = None
    max_drop: float | None = None
    min_integer_coverage: float = 1.0
    max_latency_ratio: float | None = None
    provider: str = "cpu"

    def __post_init__(self) -> None:
        if not 2 <= self.pictures <= MOST_PICTURES:
            raise InputError(f"validation.pictures must be 2 to {MOST_PICTURES}, not {self.pictures}.")
        for name in ("min_agreement", "min_integer_coverage"):
            _require_within(name, getattr(self, name), 1.0, "a share, as in 0.95")
        for name in ("max_kl", "max_latency_ratio"):
            _require_within(name, getattr(self, name), MOST, "a number that is not negative, as in 0.2")
        _require_within("max_drop", self.max_drop, 100.0, "points of top-1, as in 2.0")
        if self.provider not in PROVIDERS:
            raise InputError(f"unknown provider {self.provider!r}: take one of {', '.join(PROVIDERS)}.")

    def limits(self, scheme: QuantScheme) -> dict[str, float | None]:
        """A little worse than what the records say of DeiT-Tiny; with activations below 8 bits, far worse than w4a8."""
        if scheme.activation_bits < 8:
            defaults = (1.5, 0.65, 15.0)
        else:
            defaults = (0.1, 0.94, 3.0) if scheme.weight_bits >= 8 else (0.2, 0.85, 6.0)
        given = (self.max_kl, self.min_agreement, self.max_drop)
        names = ("max_kl", "min_agreement", "max_drop")
        chosen = {n: d if g is None else g for n, d, g in zip(names, defaults, given, strict=True)}
        others = {"min_integer_coverage": self.min_integer_coverage, "max_latency_ratio": self.max_latency_ratio}
        return {**chosen, **others}


@dataclass(frozen=True)
class PictureSource:
    """Which real pictures judge, as a person names them: all None where none are given."""

    val_data: str | None = None
    class_map: str | None = None
    image_column: str | None = None
    label_column: str | None = None


@dataclass(frozen=True)
class Recipe:
    """One run. `checkpoint`, `val_data` and `class_map` are paths; without val_data there is no real picture at all.
    `checkpoint_key` chooses among several sets of weights in the checkpoint, `image_column` and `label_column` are
    those of a Parquet file.

    `threads` of the CPU share its sums and so decide their last bits: 0 is as many as torch takes here, and a run that
    goes on keeps the number that it began with.
    """

    teacher: str
    bits: str
    checkpoint: str | None = None
    checkpoint_key: str | None = None
    effort: str = "standard"
    seed: int = 0
    val_data: str | None = None
    class_map: str | None = None
    image_column: str | None = None
    label_column: str | None = None
    threads: int = 0
    input: GivenInput = field(default_factory=GivenInput)
    scheme: Scheme = field(default_factory=Scheme)
    inversion: Inversion = field(default_factory=Inversion)
    basis: Basis = field(default_factory=Basis)
    calibration: Calibration = field(default_factory=Calibration)
    rounding: Rounding = field(default_factory=Rounding)
    training: Training = field(default_factory=Training)
    export: Export = field(default_factory=Export)
    engine: Engine = field(default_factory=Engine)
    validation: Validation = field(default_factory=Validation)

    def __post_init__(self) -> None:
        self.quant_scheme()
        if not 0 <= self.threads <= MOST_THREADS:
            raise InputError(f"threads must be 0 (as many as torch takes here) to {MOST_THREADS}, not {self.threads}.")

    @property
    def judges(self) -> PictureSource:
        """Which real pictures judge."""
        return PictureSource(self.val_data, self.class_map, self.image_column, self.label_column)

    def quant_scheme(self) -> QuantScheme:
        """`bits` and `scheme` in one; whether the teacher has the layers that it names, `QuantScheme.check` tells."""
        return QuantScheme.parse(self.bits, self.scheme.edges, self.scheme.attention, self.scheme.layers)

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


def _require_within(name: str, value: float | None, most: float, what: str) -> None:
    if value is not None and not 0 <= value <= most:  # not a number is within nothing
        raise InputError(f"validation.{name} must be {what}, at most {most:g}, not {value}.")


SECTIONS = (
    "input",
    "scheme",
    "inversion",
    "basis",
    "calibration",
    "rounding",
    "training",
    "export",
    "engine",
    "validation",
)


def make_recipe(flags: dict[str, Any], toml: Path | None = None, overrides: Iterable[str] = ()) -> Recipe:
    """Preset, then the TOML file, then `flags` (None = not given), then `section.key=value` overrides.

    Raises `InputError` for unknown keys and for values of the wrong type, naming both.
    """
    chosen = {key: value for key, value in flags.items() if value is not None}
    from_file = _read_toml(toml) if toml else {}
    layers = [from_file, chosen, *map(_parse_override, overrides)]
    given = {key: value for layer in layers for key, value in layer.items()}
    effort = given.get("effort", "standard")
    if effort not in EFFORTS:
        raise InputError(f"unknown effort {effort!r}: take one of {', '.join(EFFORTS)}.")
    values: dict[str, Any] = {section: dict(PRESETS[effort].get(section, {})) for section in SECTIONS}
    for layer in (TEACHERS.get(str(given.get("teacher")), {}), *layers):
        _merge(values, layer)
    for needed, verb in (("teacher", "was"), ("bits", "were")):
        if needed not in values:
            raise InputError(f"the {needed} {verb} not given: add --{needed} or write it into the recipe.")
    seed = _convert(int, values.get("seed", 0), "seed")
    for section in ("inversion", "basis", "calibration", "training"):
        values[section].setdefault("seed", seed)
    if QuantScheme.parse(str(values["bits"])).weight_bits >= 8:
        values["training"].setdefault("learning_rate", FINE_RATE)
    for section, kind in _section_types().items():
        values[section] = _build(kind, values[section], f"{section}.")
    return _build(Recipe, {**values, "effort": effort}, "")


def inversion_of(teacher: str) -> dict[str, Any]:
    """What the inversion of this teacher needs otherwise than the defaults."""
    return dict(TEACHERS.get(teacher, {}).get("inversion", {}))


def make_inversion(teacher: str, flags: dict[str, Any], overrides: Iterable[str] = ()) -> Inversion:
    """An inversion by itself: what `teacher` needs, `flags`, then `inversion.key=value` overrides."""
    values = _overridden({"inversion": inversion_of(teacher) | flags}, overrides, "inversion.low_pass=0.7")
    inversion: Inversion = _build(Inversion, values["inversion"], "inversion.")
    return inversion


def make_distillation(
    teacher: str,
    inversion: dict[str, Any],
    batches: int,
    distillation: dict[str, Any],
    overrides: Iterable[str] = (),
) -> tuple[Inversion, Distillation]:
    """The inversion of so many `batches`, and how a student learns from them; an override names either."""
    sections = {"inversion": inversion_of(teacher) | inversion, "distillation": dict(distillation)}
    values = _overridden(sections, overrides, "distillation.learning_rate=0.05")
    one: Inversion = _build(Inversion, {**values["inversion"], "images": values["inversion"]["batch"]}, "inversion.")
    whole = len(one.shards()[0]) * one.images_per_trajectory  # v = 7 makes 126 of 128
    settings: Distillation = _build(Distillation, values["distillation"], "distillation.")
    return dataclasses.replace(one, images=batches * whole, batch=whole), settings


def _overridden(sections: dict[str, dict[str, Any]], overrides: Iterable[str], example: str) -> dict[str, Any]:
    for layer in map(_parse_override, overrides):
        for name, values in layer.items():
            if name not in sections:
                raise InputError(f"override of {name!r} does not belong here: write {example}.")
            sections[name].update(values)
    return sections


def _section_types() -> dict[str, type]:
    return {"input": GivenInput, "scheme": Scheme, "inversion": Inversion, "basis": Basis, "calibration": Calibration,
            "rounding": Rounding, "training": Training, "export": Export, "engine": Engine,
            "validation": Validation}  # fmt: skip


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise InputError(
            f"recipe {str(path)!r} cannot be read ({error.strerror}): give the path of a TOML file."
        ) from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InputError(f"recipe {str(path)!r} is not TOML: {error}.") from None


def _parse_override(text: str) -> dict[str, Any]:
    key, equals, value = text.partition("=")
    section, _, name = key.strip().rpartition(".")
    if not equals or not name:
        raise InputError(
            f"override {text!r} is not understood: write section.key=value, as in inversion.iterations=500."
        )
    try:
        parsed = tomllib.loads(f"value = {value.strip()}")["value"]
    except (tomllib.TOMLDecodeError, RecursionError):
        parsed = value.strip()
    return {section: {name: parsed}} if section else {name: parsed}


def _merge(values: dict[str, Any], layer: dict[str, Any]) -> None:
    for key, value in layer.items():
        if key in SECTIONS:
            if not isinstance(value, dict):
                raise InputError(f"recipe section {key!r} must be a table, not {value!r}.")
            values[key].update(value)
        else:
            values[key] = value


def _build(kind: type, values: dict[str, Any], prefix: str) -> Any:
    hints = typing.get_type_hints(kind)
    for key, value in values.items():
        if key not in hints:
            raise InputError(
                f"unknown recipe key {prefix + key!r}: the keys are {', '.join(prefix + k for k in hints)}."
            )
        values[key] = _convert(hints[key], value, prefix + key)
        if key == "seed" and not 0 <= values[key] < SEEDS:
            raise InputError(f"recipe key {prefix + key!r} must be 0 to {SEEDS - 1}, not {values[key]}.")
    return kind(**values)


def _convert(hint: Any, value: Any, key: str) -> Any:
    options = typing.get_args(hint) if typing.get_origin(hint) not in (tuple, dict, None) else (hint,)
    for option in options:
        if typing.get_origin(option) is tuple and isinstance(value, list | tuple):
            inner = typing.get_args(option)[0]
            return tuple(_convert(inner, item, key) for item in value)
        if typing.get_origin(option) is dict and isinstance(value, dict):
            inner = typing.get_args(option)[1]
            return {name: _convert(inner, item, f"{key}.{name}") for name, item in value.items()}
        if option is float and isinstance(value, int | float) and not isinstance(value, bool) and value == value:
            return float(value)
        if isinstance(option, type) and isinstance(value, option) and not (option is int and isinstance(value, bool)):
            return value
    names = " or ".join(_type_name(option) for option in options if option is not type(None))
    raise InputError(f"recipe key {key!r} must be {names}, not {value!r}.")


def _type_name(hint: Any) -> str:
    if typing.get_origin(hint) is dict:
        return f"a table of {_type_name(typing.get_args(hint)[1])}"
    if typing.get_origin(hint) is tuple:
        return f"a list of {_type_name(typing.get_args(hint)[0])}"
    return str(getattr(hint, "__name__", hint))
