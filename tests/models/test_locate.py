from pathlib import Path

import platformdirs
import pytest

from impasto.errors import UnavailableError, UnknownNameError, UsageError, WeightsError
from impasto.models.locate import available, cache_dir, find_weights
from impasto.models.random_weights import filterbank_weights, random_weights
from impasto.models.weights import save_weights


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("IMPASTO_CACHE", str(tmp_path / "cache"))
    (tmp_path / "cache" / "weights").mkdir(parents=True)
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path / "cache"


@pytest.fixture
def weights():
    return random_weights("vgg16", 3, last_conv="conv1_1")


def test_cache_dir(monkeypatch):
    monkeypatch.setenv("IMPASTO_CACHE", "~/paint")
    assert cache_dir() == Path.home() / "paint"
    for unset in (lambda: monkeypatch.setenv("IMPASTO_CACHE", ""), lambda: monkeypatch.delenv("IMPASTO_CACHE")):
        unset()
        assert cache_dir() == platformdirs.user_cache_path("impasto")


def test_nothing_is_available_at_first(tmp_path, monkeypatch):
    monkeypatch.setenv("IMPASTO_CACHE", str(tmp_path / "none"))
    assert available() == {}
    assert not (tmp_path / "none").exists()


def test_available_are_whole_files_only(cache, weights):
    for name in ("b.safetensors", "a.safetensors", ".c.safetensors", "d.safetensors.part", "vgg19.lock"):
        save_weights(weights, cache / "weights" / name)
    assert list(available().items()) == [
        ("a", cache / "weights" / "a.safetensors"),
        ("b", cache / "weights" / "b.safetensors"),
    ]


def test_by_name(cache, weights):
    save_weights(weights, cache / "weights" / "mine.safetensors")
    found = find_weights("mine")
    assert (found.name, found.sha256) == ("mine", weights.sha256)


@pytest.mark.parametrize("place", ["w.safetensors", "folder/w", "w"])
def test_by_path(cache, weights, place):
    path = Path(place)
    path.parent.mkdir(exist_ok=True)
    save_weights(weights, path)
    for given in (place, path, path.absolute()):
        assert find_weights(given).sha256 == weights.sha256


def test_a_name_in_the_cache_comes_before_a_file_of_that_name(cache, weights):
    save_weights(weights, cache / "weights" / "vgg16.safetensors")
    Path("vgg16").write_text("not weights")
    assert find_weights("vgg16").sha256 == weights.sha256
    with pytest.raises(WeightsError):
        find_weights(Path("vgg16").absolute())


def test_a_missing_file(cache):
    for place in ("w.safetensors", "folder/w"):
        with pytest.raises(WeightsError, match="do not exist"):
            find_weights(place)


def test_other_formats_are_pointed_to_the_converter(cache):
    Path("w.pth").write_bytes(b"PK\x03\x04" + bytes(100))
    with pytest.raises(WeightsError, match="impasto weights convert"):
        find_weights("w.pth")


def test_random(cache):
    drawn = find_weights("random-7")
    assert (drawn.name, drawn.backbone.name, drawn.last) == ("random-7", "vgg19", "conv5_4")
    assert drawn.sha256 == random_weights("vgg19", 7).sha256
    assert find_weights("random").sha256 == find_weights("random-0").sha256 != drawn.sha256
    with pytest.raises(UsageError, match="seed must be below 4294967296"):
        find_weights("random-4294967296")


def test_filterbank(cache):
    drawn = find_weights("filterbank-7")
    assert (drawn.name, drawn.backbone.name, drawn.taps) == ("filterbank-7", "filterbank", drawn.backbone.taps)
    assert drawn.sha256 == filterbank_weights(7).sha256
    default = find_weights("filterbank")
    assert default.name == "filterbank"
    assert default.sha256 == find_weights("filterbank-0").sha256 != drawn.sha256
    assert find_weights("filterbank-4294967295").backbone == drawn.backbone
    with pytest.raises(UsageError, match="seed must be below 4294967296"):
        find_weights("filterbank-4294967296")


def test_near_names_include_those_that_are_drawn(cache):
    for name, near in (("filter-bank", "filterbank"), ("ramdom", "random")):
        with pytest.raises(UnknownNameError, match=rf"did you mean {near}\?"):
            find_weights(name)


def test_weights_that_could_be_fetched(cache):
    with pytest.raises(UnavailableError, match="'vgg19' are not on this machine yet: run impasto weights fetch vgg19"):
        find_weights("vgg19")


@pytest.mark.parametrize(
    "name", ["vgg20", "random-x", "random--1", "random-7 ", "filterbank-x", "filterbank7", "filterbank-", ""]
)
def test_unknown_names(cache, name):
    with pytest.raises(UnknownNameError, match=f"unknown weights '{name}': .*impasto weights fetch") as raised:
        find_weights(name)
    assert raised.value.exit_code == 2


def test_near_names_include_the_users_own(cache, weights):
    save_weights(weights, cache / "weights" / "portrait.safetensors")
    with pytest.raises(UnknownNameError, match=r"did you mean portrait\?"):
        find_weights("portait")
