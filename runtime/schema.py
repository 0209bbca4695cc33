"""JSON schemas from types, and values held against them: what is printed is what is enforced.

The types are dataclasses and TypedDicts, which the type checker holds against what writes the JSON. Schemas are of the
2020-12 draft (https://json-schema.org/draft/2020-12), written out in full, without references.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import types
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints, is_typeddict

from impasto.errors import UnknownNameError, UsageError
from impasto.runtime.solvers import SOLVERS

DRAFT = "https://json-schema.org/draft/2020-12/schema"

Schema = dict[str, Any]

_SCALARS = {str: "string", int: "integer", float: "number", bool: "boolean", type(None): "null", Any: None}
_NAMES = {"null": "null", "boolean": "true or false", "integer": "a whole number", "number": "a number"} | {
    "string": "text",
    "array": "a list",
    "object": "a table",
}


@dataclasses.dataclass(frozen=True)
class About:
    """What a schema says of a field beside its type, given as ``Annotated[int, About("…", low=1)]``; bounds are in."""

    description: str
    low: float | None = None
    high: float | None = None


def schema_of(kind: Any) -> Schema:
    """Return the schema of a type's JSON: of scalars, literals, unions, lists, mappings, dataclasses and TypedDicts.

    A field is required unless its dataclass has a default for it, or its TypedDict is not total. No other field is
    allowed. Solvers have their name beside their fields, as presets write them.
    """
    origin, args = get_origin(kind), get_args(kind)
    if origin is Annotated:
        about = next(each for each in args[1:] if isinstance(each, About))
        bounds = {"minimum": about.low, "maximum": about.high}
        told = {name: bound for name, bound in bounds.items() if bound is not None}
        # A class beside it is what an object of any fields holds.
        inner = next((each for each in args[1:] if isinstance(each, type)), args[0])
        return schema_of(inner) | told | {"description": about.description}
    if origin is Literal:
        return {"enum": list(args)}
    if origin in (Union, types.UnionType):
        return _any_of([schema_of(each) for each in args])
    if origin is not None and isinstance(origin, type) and issubclass(origin, Mapping):
        return {"type": "object", "additionalProperties": schema_of(args[1])}
    if origin is tuple and args[-1] is not Ellipsis:
        items = [schema_of(each) for each in args]
        return {"type": "array", "prefixItems": items, "minItems": len(items), "maxItems": len(items)}
    if origin in (tuple, list):
        return {"type": "array", "items": schema_of(args[0])}
    if dataclasses.is_dataclass(kind) or is_typeddict(kind):
        return _object(kind)
    return {} if kind is Any else {"type": _SCALARS[kind]}


def check(value: object, schema: Schema, where: str = "") -> None:
    """Raise `UsageError` unless a JSON value is what a schema of `schema_of` says; ``where`` names it in the message.

    Numbers must be finite, which TOML's need not be; whole numbers pass for floats, not the other way round.
    """
    if not _is_of(value, schema):
        names = [name for each in schema.get("anyOf", [schema]) for name in each.get("enum", ())]
        if names and isinstance(value, str):
            raise UnknownNameError(where, value, names)
        raise UsageError(f"{where or 'this'} is {_shown(value)}: must be {_expected(schema)}")
    if "anyOf" in schema:
        fitting = [each for each in schema["anyOf"] if _is_of(value, each)]
        return check(value, _by_name(value, fitting, where), where)
    low, high = schema.get("minimum"), schema.get("maximum")
    if isinstance(value, int | float) and not isinstance(value, bool):
        if not math.isfinite(value) or (low is not None and value < low) or (high is not None and value > high):
            raise UsageError(f"{where} is {value}: must be {_range(low, high)}")
    elif isinstance(value, Mapping):
        _check_object(value, schema, where)
    elif isinstance(value, Sequence) and not isinstance(value, str):
        _check_array(value, schema, where)
    return None


def _object(kind: Any) -> Schema:
    hints = get_type_hints(kind, include_extras=True)
    if is_typeddict(kind):
        required = [name for name in hints if name in kind.__required_keys__]
    else:
        missing = dataclasses.MISSING
        required = [f.name for f in dataclasses.fields(kind) if f.default is missing and f.default_factory is missing]
    properties = {name: schema_of(hint) for name, hint in hints.items()}
    for name, solver in SOLVERS.items():
        if kind is solver:
            properties = {"name": {"const": name}, **properties}
            required = ["name", *required]
    return {"type": "object", "properties": properties, "required": required, "additionalProperties": False}


def _any_of(schemas: list[Schema]) -> Schema:
    if all(set(each) == {"type"} for each in schemas):
        return {"type": [each["type"] for each in schemas]}
    return {"anyOf": schemas}


def _types(schema: Schema) -> list[str]:
    kind = schema.get("type", [])
    return [kind] if isinstance(kind, str) else list(kind)


def _is_of(value: object, schema: Schema) -> bool:
    """Tell whether a value is of the schema's kind, without a look at what it holds."""
    if "const" in schema:
        return bool(value == schema["const"])
    if "enum" in schema:
        return value in schema["enum"]
    if "anyOf" in schema:
        return any(_is_of(value, each) for each in schema["anyOf"])
    kinds = _types(schema)
    return not kinds or any(_is_a(value, kind) for kind in kinds)


def _is_a(value: object, kind: str) -> bool:
    # bool is an int to isinstance, and is no number in JSON.
    if isinstance(value, bool):
        return kind == "boolean"
    of: dict[str, Any] = {
        "null": type(None),
        "boolean": bool,
        "integer": int,
        "number": int | float,
        "string": str,
        "array": list | tuple,
        "object": Mapping,
    }
    return isinstance(value, of[kind])


def _by_name(value: object, schemas: list[Schema], where: str) -> Schema:
    """Return the one of several objects' schemas whose name the value carries."""
    named = {each.get("properties", {}).get("name", {}).get("const"): each for each in schemas}
    if not isinstance(value, Mapping) or len(schemas) == 1 or None in named:
        return schemas[0]
    name = value.get("name")
    if not isinstance(name, str) or name not in named:
        raise UnknownNameError(_inside(where, "name"), str(name), named)
    return named[name]


def _check_object(value: Mapping[str, object], schema: Schema, where: str) -> None:
    properties = schema.get("properties", {})
    rest = schema.get("additionalProperties", True)
    for name in schema.get("required", ()):
        if name not in value:
            raise UsageError(f"{_inside(where, name)} is missing: give {_expected(properties[name])}")
    for name, item in value.items():
        if name in properties:
            check(item, properties[name], _inside(where, name))
        elif rest is False:
            near = difflib.get_close_matches(str(name), properties, n=3, cutoff=0.5)
            hint = f"did you mean {', '.join(near)}?" if near else f"known: {', '.join(properties)}"
            raise UsageError(f"unknown key {_inside(where, str(name))!r}: {hint}")
        elif isinstance(rest, dict):
            check(item, rest, _inside(where, name))


def _check_array(value: Sequence[object], schema: Schema, where: str) -> None:
    fixed = schema.get("prefixItems")
    if fixed is not None and len(value) != len(fixed):
        raise UsageError(f"{where} has {len(value)} items: must have {len(fixed)}")
    for number, item in enumerate(value):
        check(item, fixed[number] if fixed is not None else schema["items"], f"{where}[{number}]")


def _inside(where: str, name: str) -> str:
    return f"{where}.{name}" if where else name


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}…"


def _range(low: float | None, high: float | None) -> str:
    if low is None and high is None:
        return "finite"
    return f"at least {low}" if high is None else f"from {low} to {high}"


def _expected(schema: Schema) -> str:
    if "const" in schema:
        return repr(schema["const"])
    if "enum" in schema:
        return "one of " + ", ".join(map(str, schema["enum"]))
    if "anyOf" in schema:
        return " or ".join(dict.fromkeys(_expected(each) for each in schema["anyOf"] if each != {"type": "null"}))
    return " or ".join(_NAMES[kind] for kind in _types(schema) if kind != "null") or "any value"
