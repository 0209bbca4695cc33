"""Schemas from types, and what is held against them."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, TypedDict

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from impasto.errors import UnknownNameError, UsageError
from impasto.runtime.job_spec import JobSpec
from impasto.runtime.presets import AnySolver
from impasto.runtime.recipes import PRESETS
from impasto.runtime.schema import About, check, schema_of
from impasto.runtime.solvers import SOLVERS


class Point(TypedDict):
    name: str
    at: Annotated[list[float], About("Where.")]


@dataclass(frozen=True)
class Plain:
    count: Annotated[int | None, About("How many.", low=1, high=9)]
    kind: Literal["a", "b"] | None = None
    share: float = 0.5
    shape: tuple[int, int] = (1, 1)
    table: Mapping[str, float] = field(default_factory=dict)
    points: tuple[Point, ...] = ()
    rest: Annotated[dict[str, Any], Point, About("A point.")] = field(default_factory=dict)
    flag: bool = False


SCHEMA = schema_of(Plain)
POINT = {"name": "p", "at": [1.0, 2]}


def test_a_schema_says_what_the_types_say():
    assert SCHEMA["required"] == ["count"]
    assert SCHEMA["properties"]["count"] == {
        "type": ["integer", "null"],
        "minimum": 1,
        "maximum": 9,
        "description": "How many.",
    }
    assert SCHEMA["properties"]["points"]["items"]["required"] == ["name", "at"]
    assert SCHEMA["properties"]["rest"]["properties"]["at"]["items"] == {"type": "number"}
    json.dumps(SCHEMA, allow_nan=False)


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ({}, "count is missing"),
        ({"count": 0}, "count is 0: must be from 1 to 9"),
        ({"count": 10}, "from 1 to 9"),
        ({"count": True}, "count is True: must be a whole number"),
        ({"count": 1.0}, "count is 1.0"),
        ({"count": 1, "share": "much"}, "share is 'much': must be a number"),
        ({"count": 1, "share": float("nan")}, "share is nan: must be finite"),
        ({"count": 1, "share": float("inf")}, "share is inf"),
        ({"count": 1, "kind": "c"}, "unknown kind 'c'"),
        ({"count": 1, "kind": 3}, "kind is 3: must be one of a, b"),
        ({"count": 1, "shape": [1]}, "shape has 1 items: must have 2"),
        ({"count": 1, "shape": 4}, "shape is 4: must be a list"),
        ({"count": 1, "table": {"x": "y"}}, r"table\.x is 'y'"),
        ({"count": 1, "points": [POINT, {"name": "q"}]}, r"points\[1\]\.at is missing"),
        ({"count": 1, "points": [{**POINT, "more": 1}]}, r"unknown key 'points\[0\]\.more'"),
        ({"count": 1, "rest": {"at": []}}, r"rest\.name is missing"),
        ({"count": 1, "cuont": 2}, "unknown key 'cuont': did you mean count"),
        ([], "must be a table"),
        (None, "must be a table"),
        ({"count": 1, "table": "x" * 1000}, "…"),
    ],
)
def test_what_is_not_of_the_type_is_told_in_one_line(value, words):
    with pytest.raises(UsageError, match=words) as caught:
        check(value, SCHEMA)
    assert len(str(caught.value)) < 200
    assert "\n" not in str(caught.value)


def test_a_near_name_of_a_choice_is_offered():
    with pytest.raises(UnknownNameError, match="did you mean fused"):
        check({"plan": "fusde"}, schema_of(JobSpec))


def test_what_is_of_the_type_passes():
    check({"count": None}, SCHEMA)
    check({"count": 9, "kind": "b", "share": 1, "shape": [3, 4], "points": [POINT], "table": {"x": 1e9}}, SCHEMA)


@pytest.mark.parametrize("name", SOLVERS)
def test_a_solver_is_told_by_its_name(name):
    solvers = schema_of(AnySolver)
    known = {"iterations": 3, "learning_rate": 1.0}
    fields = {field.name for field in dataclasses.fields(SOLVERS[name])}
    check({"name": name} | {key: value for key, value in known.items() if key in fields}, solvers, "solver")
    with pytest.raises(UsageError, match=r"unknown key 'solver\.bonds'"):
        check(
            {"name": name, "bonds": 1} | {key: value for key, value in known.items() if key in fields},
            solvers,
            "solver",
        )


@pytest.mark.parametrize("value", [{"name": "adm"}, {}, {"name": 3}])
def test_a_solver_of_no_known_name_is_told_the_known_ones(value):
    with pytest.raises(UnknownNameError, match=r"unknown solver\.name .*adam"):
        check(value, schema_of(AnySolver), "solver")


# JSON values, and what is nearly a job: known keys with values of any kind.
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
JOBS = st.dictionaries(st.sampled_from(list(schema_of(JobSpec)["properties"])), VALUES, max_size=4)


# On a busy machine drawing a job takes long, which says nothing about jobs.
@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(JOBS)
def test_our_check_and_jsonschema_agree_on_any_value(value):
    jsonschema = pytest.importorskip("jsonschema", reason="jsonschema is not installed")
    schema = schema_of(JobSpec)
    expected = jsonschema.Draft202012Validator(schema).is_valid(value)
    try:
        check(value, schema)
    except UsageError:
        ours = False
    else:
        ours = True
    # JSON has neither NaN and infinity, which ours refuses, nor a difference between 1 and 1.0, which ours makes.
    if _has_peculiar_floats(value):
        assert expected or not ours
    else:
        assert ours == expected


def _has_peculiar_floats(value):
    if isinstance(value, float):
        return value != value or value in (float("inf"), float("-inf")) or value == int(value)
    if isinstance(value, dict):
        return any(map(_has_peculiar_floats, value.values()))
    return isinstance(value, list) and any(map(_has_peculiar_floats, value))


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_is_of_the_schema(name):
    jsonschema = pytest.importorskip("jsonschema", reason="jsonschema is not installed")
    value = {"preset": json.loads(json.dumps(PRESETS[name].to_json()))}
    check(value, schema_of(JobSpec))
    jsonschema.Draft202012Validator(schema_of(JobSpec)).validate(value)
