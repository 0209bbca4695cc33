"""``impasto export`` and ``impasto verify``."""

from __future__ import annotations

import json
import sys

import onnx
import pytest


@pytest.fixture
def exported(run, pictures, tmp_path):
    folder = tmp_path / "bundle"
    told = run("export", folder, "--weights", pictures.weights, "--preset", "pytorch")
    assert (told.code, told.out) == (0, "")
    assert str(folder) in told.err
    return folder


def test_export_writes_graphs_that_onnx_accepts_and_a_manifest(exported):
    manifest = json.loads((exported / "manifest.json").read_text())
    assert manifest["backbone"] == "vgg19"
    graphs = sorted(exported.glob("*.onnx"))
    assert [path.name for path in graphs] == ["forward.onnx", "fused.onnx"]
    for path in graphs:
        onnx.checker.check_model(path)


def test_export_replaces_its_own_but_nothing_elses(run, pictures, exported):
    args = ["export", exported, "--weights", pictures.weights, "--preset", "pytorch"]
    before = (exported / "fused.onnx").read_bytes()
    assert run(*args).code == 0
    assert (exported / "fused.onnx").read_bytes() == before
    assert run(*args, "--slices").code == 0
    assert len(list(exported.glob("slice-*.onnx"))) >= 2
    other = exported.parent / "photos"
    other.mkdir()
    (other / "holiday.jpg").write_bytes(b"mine")
    told = run("export", other, *args[2:])
    assert told.code == 2
    assert [path.name for path in other.iterdir()] == ["holiday.jpg"]


def test_verify_prints_a_table_of_checks_that_pass(run, exported):
    pytest.importorskip("torch")
    told = run("verify", exported)
    assert (told.code, told.err) == (0, "")
    header, *rows = told.out.splitlines()
    assert header.split() == ["check", "error", "tolerance"]
    assert rows
    assert all(row.split()[-1] == "ok" for row in rows)


def test_verify_of_a_changed_bundle(run, exported):
    data = exported / "weights.bin"
    content = bytearray(data.read_bytes())
    content[5000] ^= 0x40
    data.write_bytes(content)
    told = run("verify", exported)
    assert told.code == 5
    assert len(told.err.splitlines()) == 1


def test_a_check_that_fails_is_told(run, exported, monkeypatch):
    from impasto.runtime import verify

    checks = [verify.Check("forward relu1_1", 1e-9, 1e-5), verify.Check("fused gradient", 3e-2, 1e-5)]
    monkeypatch.setattr(verify, "verify_bundle", lambda _: checks)
    told = run("verify", exported)
    assert told.code == 5
    assert told.out.splitlines()[-1].split()[-1] == "FAILED"
    assert "1 of 2" in told.error
    assert "fused gradient" in told.error


def test_verify_without_torch(run, exported, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    monkeypatch.delitem(sys.modules, "impasto.models.reference", raising=False)
    told = run("verify", exported)
    assert (told.code, told.out) == (3, "")
    assert "impasto[reference]" in told.error


def test_verify_of_something_else(run, tmp_path):
    for folder in (tmp_path, tmp_path / "missing"):
        told = run("verify", folder)
        assert (told.code, told.out) == (5, "")
        assert str(folder) in told.error


@pytest.mark.parametrize(
    ("args", "code", "words"),
    [
        (["--backbone", "vgg91"], 2, "vgg19"),
        (["--backbone", "vgg16"], 2, "vgg16"),
        (["--preset", "johnson"], 2, "relu4_2"),
        (["--pooling", "median"], 2, "median"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else str(value),
)
def test_what_export_refuses(run, pictures, tmp_path, args, code, words):
    told = run("export", tmp_path / "bundle", "--weights", pictures.weights, "--preset", "pytorch", *args)
    assert (told.code, told.out) == (code, "")
    assert words in told.error
    assert not (tmp_path / "bundle").exists()


def test_export_of_a_backbone_that_was_not_fetched(run, tmp_path, own_cache):
    told = run("export", tmp_path / "bundle", "--backbone", "vgg16")
    assert told.code == 3
    assert "impasto weights fetch vgg16" in told.error
