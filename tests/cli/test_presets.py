"""``impasto presets``."""

from __future__ import annotations

import json

import pytest

from impasto.runtime.presets import Preset
from impasto.runtime.recipes import PRESETS


def test_list_names_every_preset_and_its_source(run):
    told = run("presets", "list")
    assert (told.code, told.err) == (0, "")
    lines = told.out.splitlines()
    assert [line.split()[0] for line in lines] == list(PRESETS)
    assert all(line.endswith(preset.source) for line, preset in zip(lines, PRESETS.values(), strict=True))


@pytest.mark.parametrize("name", PRESETS)
def test_show_prints_json_that_makes_the_preset_again(run, name):
    told = run("presets", "show", name)
    assert (told.code, told.err) == (0, "")
    assert Preset.from_json(json.loads(told.out)) == PRESETS[name]


def test_an_unknown_name_is_told_the_near_ones(run):
    told = run("presets", "show", "keras-oi")
    assert (told.code, told.out) == (2, "")
    assert "keras-io" in told.error
