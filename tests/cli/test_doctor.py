"""``impasto doctor``."""

from __future__ import annotations

import json
import sys

import pytest

from impasto.runtime.backends.select import BACKENDS


def report(run):
    told = run("doctor", "--json")
    assert told.code == 0, told.err
    return json.loads(told.out)


def test_it_tells_what_is_here(run, own_cache, pictures):
    value = report(run)
    assert value["versions"]["impasto"]
    assert value["versions"]["numpy"]
    assert value["cpu"]["available"] >= 1
    assert value["cache"]["path"] == str(own_cache)
    assert "not made yet" in value["cache"]["state"]
    assert value["cache"]["free_bytes"] > 0
    assert value["weights"] == {}
    assert set(value["backends"]) >= set(BACKENDS)
    assert value["backends"]["onnxruntime"]["available"] is True
    assert not own_cache.exists()  # looking changes nothing

    (own_cache / "weights").mkdir(parents=True)
    (own_cache / "weights" / "mine.safetensors").write_bytes(pictures.weights.read_bytes())
    value = report(run)
    assert list(value["weights"]) == ["mine"]
    assert value["cache"]["state"] == "ready"


def test_the_text_says_the_same(run, own_cache):
    told = run("doctor")
    assert (told.code, told.err) == (0, "")
    for words in (
        "onnxruntime: available",
        "impasto weights fetch vgg19",
        "--preset filterbank",
        str(own_cache),
        "CPUs available",
    ):
        assert words in told.out


def test_backends_that_are_not_installed_say_why(run, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    monkeypatch.delitem(sys.modules, "impasto.models.reference", raising=False)
    torch = report(run)["backends"]["torch"]
    assert torch["available"] is False
    assert "impasto[reference]" in torch["detail"]


@pytest.mark.parametrize("package", ["onnxruntime", "onnx"])
def test_without_the_main_path_it_ends_with_3(run, monkeypatch, package):
    monkeypatch.setitem(sys.modules, package, None)
    told = run("doctor", "--json")
    assert told.code == 3
    assert package in told.error
    assert json.loads(told.out)["backends"]["onnxruntime"]["available"] is False


def test_a_cache_that_cannot_be_used_is_told(run, tmp_path, monkeypatch):
    (tmp_path / "file").write_bytes(b"")
    monkeypatch.setenv("IMPASTO_CACHE", str(tmp_path / "file"))
    assert "not a folder" in report(run)["cache"]["state"]
    monkeypatch.setenv("IMPASTO_CACHE", "/proc/impasto-cache")
    if sys.platform == "linux":
        assert "not writable" in report(run)["cache"]["state"]
