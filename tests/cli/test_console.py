"""What commands print, and where."""

from __future__ import annotations

import json
import logging
import math

import numpy as np
import pytest

from impasto.cli.console import columns, emit_json, human_age, human_bytes, say, spoken_warnings
from impasto.cli.progress import progress


def test_json_has_null_for_what_json_lacks(capsys):
    emit_json({"a": [math.inf, {"b": (math.nan, 1.5, None, "é")}], "c": 3})
    assert json.loads(capsys.readouterr().out) == {"a": [None, {"b": [None, 1.5, None, "é"]}], "c": 3}


@pytest.mark.parametrize("seed", range(3))
def test_columns_start_at_one_place_in_every_line(seed):
    generator = np.random.default_rng(seed)
    rows = [["x" * int(generator.integers(1, 9)), "y" * int(generator.integers(1, 9)), "z"] for _ in range(6)]
    lines = columns(rows)
    assert {line.index("y") for line in lines} == {max(len(row[0]) for row in rows) + 2}
    assert [line.split() for line in lines] == rows


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 bytes"),
        (999, "999 bytes"),
        (1000, "1.0 kB"),
        (574_673_361, "574.7 MB"),
        (4 << 30, "4.3 GB"),
        (7e15, "7000.0 TB"),
    ],
)
def test_bytes_in_the_unit_that_suits(size, text):
    assert human_bytes(size) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(-5, "just now"), (59, "just now"), (60, "1 minute ago"), (7200, "2 hours ago"), (90000, "1 day ago")],
)
def test_age_in_the_unit_that_suits(seconds, text):
    assert human_age(seconds) == text


def test_the_librarys_warnings_are_said_only_inside_and_not_when_quiet(capsys):
    logger = logging.getLogger("impasto")
    with spoken_warnings():
        logger.warning("cache %s", "gone")
        logger.info("nothing to say")
    with spoken_warnings(quiet=True):
        logger.warning("hush")
    assert capsys.readouterr().err == "impasto: warning: cache gone\n"
    assert not logger.handlers


def test_without_standard_error_nothing_is_said_on_standard_output(capsys, monkeypatch):
    monkeypatch.setattr("sys.stderr", None)
    say("something")
    assert capsys.readouterr().out == ""


def test_plain_lines_come_at_each_tenth(capsys):
    with progress("painting") as update:
        for done in range(101):
            update(done, 100, f"note {done}")
    lines = capsys.readouterr().err.splitlines()
    assert lines == [f"impasto: painting {done}%, note {done}" for done in range(0, 101, 10)]


def test_plain_lines_come_after_a_silence(capsys, monkeypatch):
    now = 1000.0
    monkeypatch.setattr("impasto.cli.progress.time.monotonic", lambda: now)
    with progress("fetching") as update:
        for _ in range(4):
            update(5, None, "5 bytes")
            now += 20
    assert capsys.readouterr().err.splitlines() == ["impasto: fetching 5 bytes"] * 2


def test_quiet_progress_prints_nothing(capsys):
    with progress("painting", quiet=True) as update:
        update(1, 2, "note")
    assert capsys.readouterr() == ("", "")
