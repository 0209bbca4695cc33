"""``impasto export`` and ``impasto verify``."""

from __future__ import annotations

import json
import sys

import onnx
import pytest

from impasto.models.random_weights import filterbank_weights
from impasto.runtime.recipes import FILTERBANK


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


@pytest.fixture(scope="module")
def levels():
    """The taps of the preset filterbank for pictures whose short side has so many pixels."""
    bank = filterbank_weights()
    return lambda side: list(FILTERBANK.objective_at(bank, (side, side)).style)


def test_the_filter_bank_is_exported_for_a_size_and_verified(run, tmp_path, own_cache, levels):
    folder = tmp_path / "bank"
    told = run("export", folder, "--preset", "filterbank", "--size", 64, "--slices")
    assert (told.code, told.out) == (0, "")
    assert "weights fetch" not in told.err
    manifest = json.loads((folder / "manifest.json").read_text())
    assert (manifest["backbone"], manifest["preset"]) == ("filterbank", "filterbank")
    assert list(manifest["objective"]["style"]) == levels(64)
    kinds = [graph["kind"] for graph in manifest["graphs"]]
    assert kinds[:3] == ["forward", "fused", "calibration"]
    assert kinds.count("slice-forward") == kinds.count("slice-gradient") == len(levels(64))
    for path in folder.glob("*.onnx"):
        onnx.checker.check_model(path)
    pytest.importorskip("torch")
    told = run("verify", folder)
    assert (told.code, told.err) == (0, "")
    rows = told.out.splitlines()[1:]
    assert all(row.split()[-1] == "ok" for row in rows)
    assert any("calibration response0.scale" in row for row in rows)


@pytest.mark.parametrize(
    ("args", "name", "line"),
    [
        ([], "filterbank", True),
        (["--backbone", "filterbank"], "filterbank", False),
        (["--weights", "filterbank-7"], "filterbank-7", False),
        (["--backbone", "filterbank", "--weights", "filterbank-7"], "filterbank-7", False),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else str(value),
)
def test_without_vgg19_the_default_exports_the_filter_bank(run, tmp_path, own_cache, levels, args, name, line):
    told = run("export", tmp_path / "bank", *args)
    assert (told.code, told.out) == (0, "")
    assert told.err.count("impasto weights fetch vgg19") == line
    manifest = json.loads((tmp_path / "bank" / "manifest.json").read_text())
    assert manifest["weights"]["name"] == name
    # For the preset's own size.
    assert list(manifest["objective"]["style"]) == levels(FILTERBANK.sizing.pixels)
    assert len(levels(FILTERBANK.sizing.pixels)) > len(levels(64)) > len(levels(9)) == 1


def test_an_export_for_small_pictures_has_few_levels(run, tmp_path, own_cache, levels):
    assert run("export", tmp_path / "bank", "--preset", "filterbank", "--size", 9).code == 0
    manifest = json.loads((tmp_path / "bank" / "manifest.json").read_text())
    assert list(manifest["objective"]["style"]) == levels(9)


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
        (["--backbone", "filterbank"], 2, "filterbank"),
        (["--preset", "filterbank"], 2, "bank0"),
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
