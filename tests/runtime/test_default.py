"""What ``impasto`` paints with, by the weights that are named and those that are in the cache."""

from __future__ import annotations

import pytest

from impasto.errors import UnavailableError, UnknownNameError
from impasto.models.random_weights import filterbank_weights
from impasto.models.sources import SOURCES
from impasto.runtime.default import choose
from impasto.runtime.recipes import FILTERBANK, IMPASTO, PRESETS
from impasto.runtime.stylizer import Stylizer


@pytest.fixture
def own_cache(tmp_path, monkeypatch):
    """The folder of this test's cache, not made yet."""
    monkeypatch.setenv("IMPASTO_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def with_vgg19(own_cache):
    """A cache that has VGG-19; to be chosen, the file need not be read."""
    (own_cache / "weights").mkdir(parents=True)
    (own_cache / "weights" / "vgg19.safetensors").touch()


def test_without_any_weights_it_is_the_filter_bank_and_says_what_would_be_closer(own_cache):
    preset, line = choose("impasto")
    assert preset is FILTERBANK
    assert "\n" not in line
    # What paints, the command that would change it, and what it costs.
    assert "filter bank" in line
    assert "impasto weights fetch vgg19 " in line
    assert f"({SOURCES['vgg19'].max_bytes / 1e6:.0f} MB" in line
    assert not own_cache.exists()


def test_other_weights_in_the_cache_are_not_vgg19(own_cache):
    (own_cache / "weights").mkdir(parents=True)
    for name in ("vgg16.safetensors", "mine.safetensors", "vgg19.pth", ".vgg19.safetensors"):
        (own_cache / "weights" / name).touch()
    preset, line = choose("impasto")
    assert preset is FILTERBANK
    assert line is not None


def test_with_vgg19_in_the_cache_it_is_vgg19_and_nothing_is_said(with_vgg19):
    assert choose("impasto") == (IMPASTO, None)


@pytest.mark.parametrize(
    "weights",
    ["filterbank", "filterbank-0", "filterbank-7", filterbank_weights(3)],
    ids=["name", "seed-0", "seed-7", "value"],
)
@pytest.mark.parametrize("cached", [False, True])
def test_weights_of_the_bank_are_painted_with_as_the_bank_whatever_is_in_the_cache(own_cache, request, weights, cached):
    if cached:
        request.getfixturevalue("with_vgg19")
    assert choose("impasto", weights) == (FILTERBANK, None)


@pytest.mark.parametrize(
    "weights", ["vgg19", "random", "random-7", "mine", "filterbanks", "filterbank-x", "bank.safetensors"]
)
def test_any_other_weights_are_vggs(own_cache, shallow, tmp_path, weights):
    """Even where they do not exist: whoever reads them tells that."""
    assert choose("impasto", weights) == (IMPASTO, None)
    assert choose("impasto", tmp_path / weights) == (IMPASTO, None)
    assert choose("impasto", shallow) == (IMPASTO, None)


@pytest.mark.parametrize("name", [name for name in PRESETS if name != "impasto"])
def test_every_other_preset_is_itself_with_any_weights(own_cache, name):
    for weights in (None, "filterbank", "random", filterbank_weights(1)):
        assert choose(name, weights) == (PRESETS[name], None)


@pytest.mark.parametrize("weights", [None, "filterbank", "random"])
def test_an_unknown_preset_is_told_the_near_ones(own_cache, weights):
    with pytest.raises(UnknownNameError, match="filterbank"):
        choose("filterbanc", weights)


# --- The stylizer that it is chosen for ------------------------------------------------------------------------------


def test_the_stylizer_paints_with_the_bank_and_tells_so_in_each_result(own_cache, picture):
    with Stylizer(cache=False) as stylizer:
        results = [stylizer.stylize(picture(seed, 9, 12), picture(3, 8, 8), size=12, iterations=1) for seed in (1, 2)]
    for result in results:
        assert (result.preset, result.weights["name"]) == ("filterbank", "filterbank")
        assert result.notes == (choose("impasto")[1],)


@pytest.mark.parametrize(
    ("preset", "weights"), [("impasto", "filterbank-7"), ("filterbank", None), (FILTERBANK, "filterbank-7")]
)
def test_who_asks_for_the_bank_is_told_nothing(own_cache, picture, preset, weights):
    with Stylizer(preset, weights=weights, cache=False) as stylizer:
        result = stylizer.stylize(picture(1, 9, 12), picture(3, 8, 8), size=12, iterations=1)
    assert result.notes == ()
    assert (result.preset, result.weights["name"]) == ("filterbank", weights or "filterbank")


def test_a_preset_given_as_a_value_is_not_exchanged(own_cache, shallow):
    """Nothing is chosen for whoever brings a recipe: its weights are missing then."""
    with pytest.raises(UnavailableError, match="impasto weights fetch vgg19"):
        Stylizer(IMPASTO, cache=False)
    with Stylizer("impasto", weights=shallow, cache=False) as stylizer:
        assert stylizer.preset.name == "impasto"
