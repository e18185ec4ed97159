"""Settings as frozen dataclasses that refuse a wrong value when they are made, in one sentence of ours.

Types say what may stand there; what concerns two values at once is checked in `__post_init__`.
"""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Callable, Sequence
from typing import Annotated, Any, Literal, TypeVar, cast, dataclass_transform

from pydantic import ConfigDict, Field, Strict, ValidationError
from pydantic.dataclasses import dataclass
from pydantic.fields import FieldInfo

from inversion.errors import InputError

SEEDS = 2**32

Count = Annotated[int, Field(strict=True, ge=1)]
Whole = Annotated[int, Field(strict=True, ge=0)]
Seed = Annotated[int, Field(strict=True, ge=0, lt=SEEDS)]
Number = Annotated[float, Field(strict=True, allow_inf_nan=False)]
Amount = Annotated[float, Field(strict=True, ge=0, allow_inf_nan=False)]
Positive = Annotated[float, Field(strict=True, gt=0, allow_inf_nan=False)]
Share = Annotated[float, Field(strict=True, ge=0, le=1, allow_inf_nan=False)]
Percent = Annotated[float, Field(strict=True, ge=0, le=100, allow_inf_nan=False)]
Decay = Annotated[float, Field(strict=True, ge=0, lt=1, allow_inf_nan=False)]
Flag = Annotated[bool, Strict()]

T = TypeVar("T")

NAMES = {
    "int_type": "int", "int_from_float": "int", "float_type": "float", "bool_type": "bool", "string_type": "str",
    "tuple_type": "a list", "dict_type": "a table", "dataclass_type": "a table",
}  # fmt: skip
"""What pydantic's errors of type ask for."""
WORDS = {
    int: ("a whole number", "whole numbers"), float: ("a number", "numbers"), str: ("text", "texts"),
    bool: ("true or false", "true or false"),
}  # fmt: skip
BOUNDS = {"ge": "at least", "gt": "above", "le": "at most", "lt": "below"}


@dataclass_transform(frozen_default=True, field_specifiers=(dataclasses.field,))
def checked(section: str = "") -> Callable[[type[T]], type[T]]:
    """Make a class a frozen pydantic dataclass; `section` stands before its keys in sentences, as in
    inversion.images. Whoever makes one with a wrong value gets `InputError`."""

    def make(plain: type[T]) -> type[T]:
        made = dataclass(frozen=True, config=ConfigDict(extra="forbid"))(plain)
        validated = made.__init__

        def __init__(self: Any, *args: Any, **values: Any) -> None:
            try:
                validated(self, *args, **values)
            except ValidationError as error:
                raise refusal(error, made, section) from None

        made.__init__ = __init__  # type: ignore[method-assign] # mypy lets no __init__ be wrapped
        return cast(type[T], made)

    return make


def keys(kind: type) -> list[str]:
    """Names of the values of a checked class, in their order."""
    return [field.name for field in dataclasses.fields(kind)]


def refusal(error: ValidationError, kind: type, section: str = "") -> InputError:
    """The first thing that is wrong, as one sentence with the key, the value and what may stand there."""
    first = error.errors()[0]
    place, value, why = _by_name(kind, first["loc"]), first["input"], first["type"]
    raised = first.get("ctx", {}).get("error")
    if isinstance(raised, InputError):
        return raised
    key = ".".join([*([section] if section else []), *(part for part in place if isinstance(part, str))])
    if why == "unexpected_keyword_argument":
        before = key.rpartition(".")[0]
        known = (f"{before}.{name}" if before else name for name in keys(_at(kind, place[:-1])[0]))
        return InputError(f"unknown recipe key {key!r}: the keys are {', '.join(known)}.")
    hint, metadata = _at(kind, place)
    if why in ("missing", "too_long"):
        wanted = len(typing.get_args(_at(kind, place[:-1])[0]))
        return InputError(f"recipe key {key!r} must be a list of {wanted}, not {value!r}.")
    if why == "literal_error":
        return InputError(f"unknown {key} {value!r}: take one of {', '.join(map(str, typing.get_args(_plain(hint))))}.")
    if why in NAMES:
        return InputError(f"recipe key {key!r} must be {_name(hint, NAMES[why])}, not {value!r}.")
    bounds = _bounds(metadata)
    if metadata.get("allow_inf_nan") is False and len(bounds) < 2:
        bounds.append("finite")
    return InputError(f"{key} must be {' and '.join(bounds) or first['msg']}, not {value!r}.")


def _by_name(kind: type, place: tuple[str | int, ...]) -> tuple[str | int, ...]:
    """`place`, where a value that was given by its position stands by its name."""
    if place and isinstance(place[0], int):
        return keys(kind)[place[0]], *place[1:]
    return place


def values_of(kind: type, key: str) -> str:
    """What may stand at `key` of a checked class, in words."""
    hint, limits = _at(kind, (key,))
    if typing.get_origin(hint) is Literal:
        return ", ".join(map(str, typing.get_args(hint)))
    inner = [arg for arg in typing.get_args(hint) if arg is not Ellipsis]
    if not inner:
        return f"{WORDS[hint][0]} {' and '.join(_bounds(limits))}".strip()
    several = "any number of" if len(inner) == 1 else str(len(inner))
    several = "a table of" if typing.get_origin(hint) is dict else several
    return f"{several} {WORDS[_plain(inner[-1])][1]} {' and '.join(_bounds(_limits(inner[-1])))}".strip()


def _bounds(limits: dict[str, Any]) -> list[str]:
    return [f"{word} {item:.10g}" for name, word in BOUNDS.items() if (item := limits.get(name)) is not None]


def _at(kind: Any, place: Sequence[str | int]) -> tuple[Any, dict[str, Any]]:
    """The annotation at `place` below `kind`, and the limits that it sets."""
    hint = kind
    for part in place:
        plain = _plain(hint)
        if dataclasses.is_dataclass(plain):
            hint = typing.get_type_hints(plain, include_extras=True).get(str(part), Any)
        else:
            inner = [arg for arg in typing.get_args(plain) if arg is not Ellipsis]
            hint = inner[-1] if inner else Any
    return _plain(hint), _limits(hint)


def _plain(hint: Any) -> Any:
    """Without `Annotated` and without None."""
    if typing.get_origin(hint) is Annotated:
        return _plain(typing.get_args(hint)[0])
    options = [option for option in typing.get_args(hint) if option is not type(None)]
    return _plain(options[0]) if len(options) == 1 and type(None) in typing.get_args(hint) else hint


def _limits(hint: Any) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for item in typing.get_args(hint):
        if typing.get_origin(item) is Annotated:
            found |= _limits(item)
        for part in item.metadata if isinstance(item, FieldInfo) else ():
            names = [*BOUNDS, "allow_inf_nan"]
            found |= {name: value for name in names if (value := getattr(part, name, None)) is not None}
    return found


def _name(hint: Any, what: str) -> str:
    """`what` is asked for, with the type of its parts."""
    if what not in ("a list", "a table") or dataclasses.is_dataclass(hint):
        return what
    inner = [arg for arg in typing.get_args(hint) if arg is not Ellipsis]
    part = _plain(inner[-1]) if inner else Any
    return f"{what} of {getattr(part, '__name__', part)}"
