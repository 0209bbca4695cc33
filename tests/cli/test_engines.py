"""``impasto engines``: what is in the cache, whether it is sound, and what may go."""

from __future__ import annotations

import json
import os
import time

import pytest

import impasto
from impasto.optimize.cache import EngineCache
from impasto.optimize.keys import EngineKey, cpu

ort = pytest.importorskip("onnxruntime")
HERE = {"impasto": impasto.__version__, "onnxruntime": ort.__version__}


def put(root, number, size=1000, age=0.0, **changes):
    """Put an engine that was last used ``age`` days ago, and return its folder."""
    fields = {"kind": "onnxruntime", "weights": "", "shape": (1, 3, 20, 30), "precision": "fp32", "versions": HERE}
    key = EngineKey(graph=f"{number:064x}", **fields | changes)
    folder = EngineCache(root / "engines").get_or_build(key, lambda f: (f / "a.bin").write_bytes(bytes(size)) and None)
    then = time.time() - age * 86400
    os.utime(folder / "engine.json", (then, then))
    return folder


def names(root):
    return {entry.path.name for entry in EngineCache(root / "engines").entries()}


def test_an_empty_cache(run, own_cache):
    assert run("engines", "list").out == "engines: 0, 0 bytes\n"
    assert run("engines", "verify").out == "engines: 0, damaged: 0\n"
    assert run("engines", "prune", "--foreign").out == "removed 0 engines, 0 bytes\nleft 0 engines, 0 bytes\n"
    assert not own_cache.exists()


def test_list_tells_compiler_precision_size_and_machine(run, own_cache):
    put(own_cache, 1, age=3)
    machine = {"gpu": "NVIDIA H200", "compute_capability": "9.0", "cuda_driver": "13020"}
    put(own_cache, 2, kind="tensorrt", shape=(), precision="fp16", versions={"tensorrt": "1.2.3"}, machine=machine)
    first, second, total = run("engines", "list").out.splitlines()
    for fact in ("onnxruntime", ort.__version__, "fp32", "1×3×20×30", cpu()["model"], "3 days ago"):
        assert fact in first
    assert "foreign" not in first
    for fact in ("tensorrt", "fp16", "any size", "NVIDIA H200", "foreign: tensorrt 1.2.3, here"):
        assert fact in second
    assert total.startswith("engines: 2, ")


def test_list_tells_by_what_and_for_what_kernels_were_compiled(run, own_cache):
    changes = {"options": {"target": "sm_90"}, "versions": {"nvcc": "13.0.88"}, "machine": {}}
    put(own_cache, 1, kind="cubin", shape=(), precision="all", **changes)
    kernels, _ = run("engines", "list").out.splitlines()
    for fact in ("cubin", "nvcc 13.0.88", "sm_90"):
        assert fact in kernels


def test_list_as_json_has_the_whole_key(run, own_cache):
    folder = put(own_cache, 1, options={"level": "3"})
    told = json.loads(run("engines", "list", "--json").out)
    (engine,) = told["engines"]
    assert told["cache"] == str(own_cache / "engines")
    assert engine["name"] == folder.name
    assert engine["bytes"] == sum(path.stat().st_size for path in folder.iterdir())
    assert (engine["kind"], engine["shape"], engine["options"]) == ("onnxruntime", [1, 3, 20, 30], {"level": "3"})
    assert engine["versions"] == HERE
    assert engine["machine"] == dict(cpu())
    assert engine["foreign"] is None
    assert time.time() - 600 < engine["used"] <= time.time()


def test_verify_finds_every_kind_of_damage_and_removes_nothing(run, own_cache):
    sound, changed, grown, moved, lost = (put(own_cache, number, age=5) for number in range(5))
    assert run("engines", "verify").code == 0
    (changed / "a.bin").write_bytes(b"\x01" + bytes(999))
    (grown / "more").write_bytes(b"")
    moved = moved.rename(moved.with_name("f" * 64))
    (lost / "engine.json").write_bytes(b"{")
    told = run("engines", "verify")
    assert told.code == 5
    assert told.error.startswith("4 of 5 engines are damaged")
    damaged = json.loads(run("engines", "verify", "--json").out)["damaged"]
    assert set(damaged) == {path.name for path in (changed, grown, moved, lost)}
    assert names(own_cache) == {path.name for path in (sound, changed, grown, moved, lost)}
    # Looking is no use: what was old stays first to go.
    assert time.time() - (sound / "engine.json").stat().st_mtime > 4 * 86400


@pytest.mark.skipif(os.name != "posix", reason="POSIX modes")
def test_verify_trusts_no_folder_that_others_can_enter(run, own_cache):
    folder = put(own_cache, 1)
    folder.chmod(0o755)
    told = run("engines", "verify")
    assert told.code == 5
    assert "mode 0755" in told.out


def test_prune_by_age(run, own_cache):
    put(own_cache, 1, age=31)
    young = put(own_cache, 2, age=29)
    told = run("engines", "prune", "--older-than", "30")
    assert told.out.startswith("removed 1 engines, ")
    assert "left 1 engines, " in told.out
    assert names(own_cache) == {young.name}


def test_prune_by_size_removes_the_least_recently_used(run, own_cache):
    put(own_cache, 1, size=50_000, age=3)
    kept = put(own_cache, 2, size=50_000, age=1)
    put(own_cache, 3, size=50_000, age=2)
    told = json.loads(run("engines", "prune", "--max-bytes", "70000", "--json").out)
    assert len(told["removed"]) == 2
    assert [engine["name"] for engine in told["left"]] == [kept.name]
    assert names(own_cache) == {kept.name}


def test_prune_by_origin_keeps_what_this_machine_uses(run, own_cache):
    ours = put(own_cache, 1)
    put(own_cache, 2, versions=HERE | {"onnxruntime": "0.1"})
    put(own_cache, 3, versions=HERE | {"impasto": "0.0.1"})
    put(own_cache, 4, machine={**cpu(), "model": "another"})
    unknown = put(own_cache, 5, kind="cubins", versions={"nvcc": "13.0"}, machine={"gpu": "NVIDIA L4"})
    (put(own_cache, 6) / "engine.json").write_bytes(b"{}")
    assert run("engines", "prune").out.startswith("removed 0 engines")
    assert run("engines", "prune", "--foreign").out.startswith("removed 4 engines")
    assert names(own_cache) == {ours.name, unknown.name}


def test_prune_refuses_what_is_no_age_or_size(run, own_cache):
    for wrong in (("--older-than", "-1"), ("--max-bytes", "-1"), ("--max-bytes", "many")):
        assert run("engines", "prune", *wrong).code == 2


def test_build_leaves_engines_that_are_sound_and_ours(run, own_cache, pictures):
    command = ["engines", "build", "--size", "24x24", "--preset", "pytorch", "--weights", pictures.weights]
    told = run(*command)
    assert told.code == 0
    assert "onnxruntime engines for 24x24" in told.err
    assert run("engines", "verify").code == 0
    listed = json.loads(run("engines", "list", "--json").out)["engines"]
    assert listed
    assert {engine["foreign"] for engine in listed} == {None}
