"""Presets that the user saved."""

from __future__ import annotations

import os
from dataclasses import replace

import pytest

from impasto.errors import OutputError, UnknownNameError, UsageError
from impasto.runtime.recipes import PRESETS, find_preset
from impasto.runtime.saved_presets import presets_dir, remove_preset, save_preset, saved_presets


@pytest.fixture(autouse=True)
def settings(tmp_path, monkeypatch):
    monkeypatch.setenv("IMPASTO_CONFIG", str(tmp_path / "settings"))
    return tmp_path / "settings"


def test_a_saved_preset_is_found_by_its_name_until_it_is_removed():
    assert saved_presets() == {}
    preset = PRESETS["keras"].with_weights(style=3.5).with_iterations(17)
    path = save_preset("mine", preset)
    assert path == presets_dir() / "mine.json"
    assert find_preset("mine") == replace(preset, name="mine")
    assert list(saved_presets()) == ["mine"]
    remove_preset("mine")
    with pytest.raises(UnknownNameError, match="unknown preset 'mine'"):
        find_preset("mine")
    with pytest.raises(UnknownNameError, match="unknown saved preset"):
        remove_preset("mine")


def test_one_that_is_there_is_replaced_only_on_request():
    save_preset("mine", PRESETS["gatys"])
    with pytest.raises(OutputError, match="'mine' exists"):
        save_preset("mine", PRESETS["keras"])
    assert find_preset("mine").source == PRESETS["gatys"].source
    save_preset("mine", PRESETS["keras"], overwrite=True)
    assert find_preset("mine").source == PRESETS["keras"].source


@pytest.mark.parametrize("name", ["", "../x", "a/b", ".hidden", "Großes", "x" * 65, "a\0b", "gatys", "impasto"])
def test_names_that_cannot_be_are_refused(name, settings):
    with pytest.raises(UsageError):
        save_preset(name, PRESETS["gatys"])
    assert not settings.exists()


def test_a_near_saved_name_is_offered():
    save_preset("my-lakes", PRESETS["gatys"])
    with pytest.raises(UnknownNameError, match="my-lakes"):
        find_preset("my-lake")


@pytest.mark.parametrize("text", ["", "[", "[]", "{}", '{"solver": {"name": "none"}}', "[" * 100_000])
def test_a_damaged_file_is_told_by_name(text):
    path = save_preset("mine", PRESETS["gatys"])
    path.write_text(text)
    with pytest.raises(UsageError, match=r"mine\.json' is damaged"):
        find_preset("mine")


def test_a_folder_that_cannot_be_made_is_told(settings):
    settings.write_text("a file")
    with pytest.raises(OutputError, match="IMPASTO_CONFIG"):
        save_preset("mine", PRESETS["gatys"])


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="permissions do not hold for this user")
def test_a_file_that_cannot_be_read_is_told():
    save_preset("mine", PRESETS["gatys"]).chmod(0)
    with pytest.raises(UsageError, match="cannot be read"):
        find_preset("mine")
