"""Limits hold on the number, not beside it, and travel as JSON."""

from __future__ import annotations

import json
from dataclasses import FrozenInstanceError, asdict, fields

import pytest

from impasto.errors import LimitError, UnknownNameError, UsageError
from impasto.runtime.limits import DEFAULT_LIMITS, Limits
from impasto.runtime.memory import Free

# Every check, with arguments that amount to the given value of its field. Memory has none: see
# `impasto.runtime.fitting`.
CHECKS = {
    "max_file_bytes": lambda limits, value: limits.check_file_bytes(value, "picture 'a.png'"),
    "max_pixels": lambda limits, value: limits.check_pixels(value, 1, "picture 'a.png'"),
    "max_long_side": lambda limits, value: limits.check_long_side(1, value),
    "max_iterations": lambda limits, value: limits.check_iterations(value),
    "max_evaluations": lambda limits, value: limits.check_evaluations(value),
}


def test_every_limit_is_on_by_default_and_has_a_check() -> None:
    assert {*CHECKS, "memory"} == {field.name for field in fields(Limits)}
    assert all(value is not None for value in asdict(DEFAULT_LIMITS).values())


@pytest.mark.parametrize("field", CHECKS)
def test_a_value_at_the_limit_passes_and_one_above_is_named(field: str) -> None:
    limits = Limits(**{field: 1234})
    CHECKS[field](limits, 1234)
    with pytest.raises(LimitError) as caught:
        CHECKS[field](limits, 1235)
    message = str(caught.value)
    assert "\n" not in message
    for part in ("1235", "1234", field, "--" + field.replace("_", "-")):
        assert part in message


@pytest.mark.parametrize("field", CHECKS)
def test_none_lifts_only_its_own_limit(field: str) -> None:
    others = dict.fromkeys(CHECKS, 1) | {field: None}
    limits = Limits(**others)
    CHECKS[field](limits, 10**15)
    for other in set(CHECKS) - {field}:
        with pytest.raises(LimitError):
            CHECKS[other](limits, 2)


def test_pixels_are_the_product_and_the_long_side_the_maximum() -> None:
    limits = Limits(max_pixels=12, max_long_side=4)
    limits.check_pixels(3, 4, "it")
    limits.check_long_side(4, 4)
    with pytest.raises(LimitError):
        limits.check_pixels(13, 1, "it")
    with pytest.raises(LimitError):
        limits.check_long_side(5, 1)


@pytest.mark.parametrize("value", [0, -1, 1.5, 1e6, True, False, "5", [5]])
@pytest.mark.parametrize("field", CHECKS)
def test_only_positive_whole_numbers_and_none_are_limits(field: str, value: object) -> None:
    with pytest.raises(UsageError, match=field):
        Limits(**{field: value})  # type: ignore[arg-type]


@pytest.mark.parametrize("limits", [Limits(), Limits(max_pixels=None, max_iterations=7)])
def test_json_roundtrip(limits: Limits) -> None:
    assert Limits.from_json(json.loads(json.dumps(limits.to_json()))) == limits


def test_json_with_fewer_names_keeps_defaults_and_refuses_others() -> None:
    assert Limits.from_json({"max_pixels": 5}) == Limits(max_pixels=5)
    with pytest.raises(UnknownNameError, match="max_pixels"):
        Limits.from_json({"max_pixel": 5})
    with pytest.raises(UsageError, match="max_pixels"):
        Limits.from_json({"max_pixels": "5"})


def test_frozen() -> None:
    with pytest.raises(FrozenInstanceError):
        DEFAULT_LIMITS.max_pixels = None  # type: ignore[misc]


def test_memory_is_bytes_or_a_share_of_what_is_free_and_held(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("impasto.runtime.limits.free_memory", lambda: Free(1000, "a test"))
    assert Limits().memory_bytes() == 800
    assert Limits(memory=0.5).memory_bytes(held=200) == 600
    assert Limits(memory=1.0).memory_bytes() == 1000
    assert Limits(memory=123).memory_bytes(held=200) == 123
    assert Limits(memory=None).memory_bytes() is None
    # A system that does not tell cannot be held to a share.
    monkeypatch.setattr("impasto.runtime.limits.free_memory", lambda: Free(None, "a test"))
    assert Limits().memory_bytes() is None
    assert Limits(memory=123).memory_bytes() == 123


@pytest.mark.parametrize("value", [0, -1, 0.0, 1.5, -0.5, float("nan"), True, "80%"])
def test_memory_that_is_no_limit_is_refused(value: object) -> None:
    with pytest.raises(UsageError, match="memory"):
        Limits(memory=value)  # type: ignore[arg-type]


def test_a_share_of_memory_travels_as_json() -> None:
    for limits in (Limits(memory=0.25), Limits(memory=10**9), Limits(memory=None)):
        again = Limits.from_json(json.loads(json.dumps(limits.to_json())))
        assert again == limits
        assert type(again.memory) is type(limits.memory)
