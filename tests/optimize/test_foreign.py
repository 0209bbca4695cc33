"""An engine is foreign if nothing here would use it, and the reason is named."""

from __future__ import annotations

import sys

import pytest

import impasto
from impasto.optimize.foreign import foreign
from impasto.optimize.keys import EngineKey, cpu

GPU = {"gpu": "NVIDIA L4", "compute_capability": "8.9", "cuda_driver": "13000"}


def key(**changes):
    fields = {"kind": "test", "graph": "0" * 64, "weights": "", "shape": (), "precision": "fp32"}
    return EngineKey(**fields | changes)


def test_nothing_is_known_against_engines_of_this_machine_or_of_a_gpu():
    ours = {"impasto": impasto.__version__}
    assert foreign(key(versions=ours)) is None
    assert foreign(key(versions=ours, machine=GPU)) is None
    # Versions that no module tells.
    assert foreign(key(versions={"nvcc": "1.0"})) is None


def test_other_versions_are_named_with_ours(pretend):
    pretend("11.4.0.106")
    assert foreign(key(versions={"tensorrt": "11.4.0.106"})) is None
    assert foreign(key(versions={"tensorrt": "10.4.0.1"})) == "tensorrt 10.4.0.1, here 11.4.0.106"
    assert foreign(key(versions={"impasto": "0.0.1"})) == f"impasto 0.0.1, here {impasto.__version__}"


def test_a_compiler_that_is_not_here_uses_nothing(monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    assert foreign(key(versions={"tensorrt": "11.4.0.106"})) == "tensorrt 11.4.0.106, here none"


@pytest.mark.parametrize("name", ["model", "features", "system"])
def test_another_cpu_is_foreign(name):
    assert foreign(key(machine={**cpu(), name: "another"})).startswith("CPU ")


def test_an_unreadable_key_is_foreign():
    assert foreign(None) == "unreadable"
