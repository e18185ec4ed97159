"""manifest.json: its types, and how it is read and written. What is not whole, or not of our schema, is none.

    manifest = load_manifest(Path("runs/demo"))
    manifest.teacher.name, manifest.stage("invert").seconds, manifest.verdict.passed

`manifest.schema.json` beside this file is made from these types: `python -m pipeline.record.manifest`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, TypeAdapter, ValidationError

from inversion.errors import InputError
from pipeline.record.proof import Size, Verdict

if TYPE_CHECKING:
    from inversion.teacher import Teacher

MANIFEST = "manifest.json"
SCHEMA: Literal[2] = 2
"""Of schema 1, gates counted agreement and top-1 as shares."""
JUDGE = "validate"
"""The stage that comes to the verdict."""
JSON_SCHEMA = Path(__file__).with_name("manifest.schema.json")

Facts = Mapping[str, object]
"""A table as JSON has it, whose keys are another's business: a recipe, or what one stage measured."""
T = TypeVar("T")


def _inside(path: str) -> str:
    """An output lies in the run folder: a damaged one is removed."""
    found = Path(path)
    if "\0" in path or not found.name or found.is_absolute() or ".." in found.parts:
        raise ValueError("it leads out of the run folder")
    return path


@dataclass(frozen=True)
class Output:
    """A file that a stage made; `path` is relative to the run folder."""

    path: Annotated[str, AfterValidator(_inside)]
    sha256: str
    bytes: Size


@dataclass(frozen=True)
class StageRecord:
    """A stage that is done. `cached`: it was found unchanged and did not run again."""

    name: str
    digest: str
    seconds: float
    cached: bool
    outputs: tuple[Output, ...]
    metrics: Facts

    @property
    def warnings(self) -> list[str]:
        """What it warned of, in sentences."""
        return warnings_in(self.metrics)


def warnings_in(metrics: Facts) -> list[str]:
    """What a stage warned of, in sentences."""
    said = metrics.get("warnings")
    return [str(sentence) for sentence in said] if isinstance(said, list | tuple) else []


@dataclass(frozen=True)
class TeacherRecord:
    """Whose run it is; `input_size` is [C, H, W]. The name and the weights are what a run cannot do without."""

    name: str
    sha256: str
    num_classes: int | None = None
    input_size: tuple[int, ...] | None = None

    @classmethod
    def of(cls, teacher: Teacher) -> TeacherRecord:
        spec = teacher.spec
        return cls(teacher.name, teacher.sha256, spec.num_classes, (spec.channels, *spec.size))


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """A run. `validation` is None until it has come to its verdict."""

    schema: Literal[2] = SCHEMA
    recipe: Facts
    teacher: TeacherRecord
    versions: dict[str, str | None]
    stages: tuple[StageRecord, ...] = ()
    validation: Verdict | None = None

    @property
    def bits(self) -> str:
        return str(self.recipe.get("bits", ""))

    @property
    def verdict(self) -> Verdict:
        """Of a run that has come so far."""
        assert self.validation is not None
        return self.validation

    @property
    def outputs(self) -> list[Output]:
        """All files that its stages made."""
        return [output for stage in self.stages for output in stage.outputs]

    def find(self, name: str) -> StageRecord | None:
        """The record of stage `name`, if it is done."""
        return next((stage for stage in self.stages if stage.name == name), None)

    def stage(self, name: str) -> StageRecord:
        """The record of stage `name`; `InputError` where the run has not come so far."""
        if (found := self.find(name)) is None:
            raise InputError(f"the run has not come to its stage {name!r}: finish it with `pipeline build`.")
        return found

    def without(self, name: str) -> tuple[StageRecord, ...]:
        """Its stages but `name`."""
        return tuple(stage for stage in self.stages if stage.name != name)


def load_manifest(folder: Path) -> Manifest:
    """The manifest of an existing run folder; `InputError` where there is none that can be read."""
    if (manifest := read_manifest(folder / MANIFEST)) is None:
        raise InputError(f"{str(folder)!r} holds no {MANIFEST} of schema {SCHEMA}: make one with `pipeline build`.")
    return manifest


def load_finished(folder: Path) -> Manifest:
    """The manifest of a run that has a whole verdict; `InputError` where it has not."""
    manifest = load_manifest(folder)
    if manifest.validation is None:
        _, flaw = _read((folder / MANIFEST).read_bytes())
        if flaw:
            raise InputError(
                f"the manifest in {str(folder)!r} is not as a build writes it ({flaw}): "
                "finish the run with `pipeline build`."
            )
        raise InputError(f"the run in {str(folder)!r} has not reached its verdict: finish it with `pipeline build`.")
    return manifest


def read_manifest(path: Path) -> Manifest | None:
    """None where the file is missing or not a manifest: everything then runs again. A verdict that is not whole is as
    good as none, and the stages before it count."""
    try:
        return _read(path.read_bytes())[0]
    except (OSError, ValidationError):
        return None


def _read(content: bytes) -> tuple[Manifest, str]:
    """The manifest, and what is wrong with its verdict. Raises `ValidationError` where more is wrong."""
    reader, content = _adapter(Manifest), _lifted(content)
    try:
        return reader.validate_json(content, strict=True), ""
    except ValidationError as error:
        wrong = error.errors()
        if any(each["loc"][:1] != ("validation",) or each["loc"] == ("validation",) for each in wrong):
            raise
        rest = {**json.loads(content), "validation": None}
        return reader.validate_json(json.dumps(rest), strict=True), _sentence(error)


def _lifted(content: bytes) -> bytes:
    """Of schema 1, which counted agreement as a share: as this schema has it, without its verdict, which is found
    again from the same files. Anything else stays as it is."""
    with suppress(ValueError, RecursionError):
        whole = json.loads(content)
        if isinstance(whole, dict) and whole.get("schema") == 1 and isinstance(whole.get("stages"), list):
            stages = [each for each in whole["stages"] if not (isinstance(each, dict) and each.get("name") == JUDGE)]
            return json.dumps({**_in_points(whole), "schema": SCHEMA, "stages": stages, "validation": None}).encode()
    return content


def _in_points(whole: dict[str, Any]) -> dict[str, Any]:
    """With the limit of agreement, where its recipe sets one, in percent points."""
    recipe = whole.get("recipe")
    limits = recipe.get("validation") if isinstance(recipe, dict) else None
    share = limits.get("min_agreement") if isinstance(limits, dict) else None
    if recipe and limits and isinstance(share, int | float) and 0 < share <= 1:
        whole = {**whole, "recipe": {**recipe, "validation": {**limits, "min_agreement": 100 * share}}}
    return whole


def write_manifest(manifest: Manifest) -> bytes:
    """As it lies in the run folder."""
    return json.dumps(to_json(manifest), indent=1).encode()


def to_json(value: Manifest | Verdict | StageRecord) -> Facts:
    """As tables that `json.dumps` takes."""
    found: Facts = _adapter(type(value)).dump_python(value, by_alias=True)  # type: ignore[arg-type] # see _adapter
    return found


def of_json(kind: type[T], value: object) -> T | None:
    """A `kind` from tables that `json.dumps` takes; None where they are not one."""
    try:
        found: T = _adapter(kind).validate_json(json.dumps(value), strict=True)  # type: ignore[arg-type] # see _adapter
    except ValidationError:
        return None
    return found


def json_schema() -> Facts:
    """The JSON Schema of manifest.json."""
    made = _adapter(Manifest).json_schema(by_alias=True)
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **made}


@cache
def _adapter(kind: Any) -> TypeAdapter[Any]:
    """One for each type; mypy takes the hash of a type for that of its values, which some have not."""
    return TypeAdapter(kind)


def _sentence(error: ValidationError) -> str:
    """The first thing that is wrong."""
    first = error.errors()[0]
    place = ".".join(str(part) for part in first["loc"])
    return f"{place}: {first['msg']}"


if __name__ == "__main__":
    JSON_SCHEMA.write_text(json.dumps(json_schema(), indent=1) + "\n")
