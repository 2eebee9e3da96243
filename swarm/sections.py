"""Strict tables that people write: all problems found at once, each a line naming dotted field and reason."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, TypeVar, get_args

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    ValidationError,
    model_serializer,
    model_validator,
)
from pydantic_core import ErrorDetails, PydanticCustomError

# (field, reason): the field is dotted, relative to the section that finds the problem.
Problem = tuple[str, str]
INT64 = range(-(2**63), 2**63)
S = TypeVar("S", bound="Section")

_REASONS = {
    "missing": "is required",
    "model_type": "must be a table, not {got}",
    "dict_type": "must be a table, not {got}",
    "tuple_type": "must be an array, not {got}",
    "int_type": "must be a whole number, not {got}",
    "float_type": "must be a number, not {got}",
    "finite_number": "must be a finite number, not {got}",
    "string_type": "must be text, not {got}",
    "bool_type": "must be true or false, not {got}",
    "literal_error": "must be {expected}, not {got}",
    "greater_than": "must be above {gt}, not {got}",
    "greater_than_equal": "must be at least {ge}, not {got}",
    "less_than": "must be below {lt}, not {got}",
    "less_than_equal": "must be at most {le}, not {got}",
    "string_too_short": "must not be empty",
    "string_too_long": "must have at most {max_length} characters",
    "too_short": "must have at least {min_length} item(s)",
    "too_long": "must have at most {max_length} item(s)",
    "value_error": "{error}",
}


def printable(value: str) -> str:
    """``value``, which a terminal may show as it is. Raises ValueError."""
    if not value.isprintable():
        raise ValueError("must be one line of printable characters")
    return value


def as_tuple(value: Any) -> Any:
    """A list as a tuple, for strict fields that are frozen; the rest unchanged, for the field to refuse."""
    return tuple(value) if isinstance(value, list) else value


# Adding 0.0 turns -0.0 into 0.0: the same manifest has the same bytes.
unsigned = AfterValidator(lambda value: value + 0.0)
Positive = Annotated[float, Field(gt=0), unsigned]
NotNegative = Annotated[float, Field(ge=0), unsigned]
Share = Annotated[float, Field(ge=0, le=1), unsigned]
Beta = Annotated[float, Field(ge=0, lt=1), unsigned]
Seconds = Annotated[float, Field(gt=0, le=86400), unsigned]
Line = Annotated[str, Field(min_length=1, max_length=500), AfterValidator(printable)]


class Section(BaseModel):
    """A table: frozen, strict (true is no number, 1.0 no whole number), without unknown fields.

    Subclasses say in ``unused`` and ``problems`` which combinations they refuse.
    """

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)

    def unused(self) -> Mapping[str, str]:
        """Field -> reason, for fields that mean nothing beside the others: refused if given, never dumped."""
        return {}

    def problems(self) -> Iterator[Problem]:
        """What is wrong among fields that are each right by themselves."""
        return iter(())

    @model_validator(mode="after")
    def _refuse_combinations(self: S) -> S:
        found = [(field, reason) for field, reason in self.unused().items() if field in self.model_fields_set]
        found.extend(self.problems())
        if found:
            raise PydanticCustomError("combination", "impossible combination", {"problems": found})
        return self

    @model_serializer(mode="wrap")
    def _dump_used(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        unused = self.unused()
        return {key: value for key, value in handler(self).items() if value is not None and key not in unused}


def validate(section: type[S], values: Any, whole: str) -> tuple[S | None, list[str]]:
    """The section made of ``values``, or None and one line for each problem.

    whole: what a problem that belongs to no field is named after.
    """
    try:
        return section.model_validate(values), []
    except ValidationError as error:
        details = error.errors(include_url=False)
        return None, [line for detail in details for line in _lines(section, detail, whole)]


def join(path: str, key: str | int) -> str:
    """``a.b`` for a key, ``a[0]`` for a place in an array."""
    if isinstance(key, int):
        return f"{path}[{key}]"
    key = key if key.isprintable() and len(key) <= 60 else show(key)
    return f"{path}.{key}" if path else key


def show(value: Any) -> str:
    """A value in an error message: one short line, whatever it is."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, dict):
        return "a table"
    if isinstance(value, (list, tuple)):
        return "an array"
    if isinstance(value, int) and value.bit_length() > 128:
        return "a number of many digits"
    if isinstance(value, str) and len(value) > 60:
        return f"{value[:60]!r}..."
    return repr(value) if isinstance(value, (str, int, float)) else str(value)


def plain_problems(path: str, value: Any, depth: int) -> Iterator[Problem]:
    """What in a free table (values of JSON, ``depth`` levels) has no canonical form, or is no plain value."""
    if isinstance(value, (dict, list)):
        if depth == 0:
            yield path, "is nested too deeply"
            return
        items = value.items() if isinstance(value, dict) else enumerate(value)
        for key, item in items:
            if isinstance(key, str) and not key.isprintable():
                yield path, "has a key with unprintable characters"
            else:
                yield from plain_problems(join(path, key), item, depth - 1)
    elif isinstance(value, str):
        if not value.isprintable():
            yield path, "must be one line of printable characters"
    elif isinstance(value, float):
        if not math.isfinite(value):
            yield path, f"must be a finite number, not {value}"
    elif isinstance(value, int):  # bool too
        if value not in INT64:
            yield path, f"must fit in 64 bits, not {show(value)}"
    else:
        yield path, f"must be text, a number, true or false, an array or a table, not {show(value)}"


def _lines(section: type[Section], detail: ErrorDetails, whole: str) -> Iterator[str]:
    path = ""
    for key in detail["loc"]:
        path = join(path, key)
    context = detail.get("ctx", {})
    if detail["type"] == "combination":
        for field, reason in context["problems"]:
            yield f"{join(path, field)}: {reason}"
    elif detail["type"] == "extra_forbidden":
        yield f"{path}: {_unknown(section, detail['loc'])}"
    else:
        reason = _REASONS.get(detail["type"], detail["msg"])
        words = {**context, "got": show(detail["input"])}
        yield f"{path or whole}: {reason.format(**words) if detail['type'] in _REASONS else reason}"


def _unknown(section: type[Section], location: tuple[int | str, ...]) -> str:
    """Why a field is unknown, with the field that was perhaps meant."""
    here: type[BaseModel] = section
    for key in location[:-1]:
        annotation = here.model_fields[str(key)].annotation
        here = next(t for t in (annotation, *get_args(annotation)) if _is_model(t))
    close = difflib.get_close_matches(str(location[-1]), here.model_fields, n=1)
    return f"unknown field, did you mean {close[0]}?" if close else "unknown field"


def _is_model(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)
