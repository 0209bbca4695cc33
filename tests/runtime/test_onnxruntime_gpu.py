"""Backends ``onnxruntime-cuda`` and ``onnxruntime-tensorrt``, their provider replaced by the CPU's."""

from __future__ import annotations

import logging

import pytest

from impasto.errors import UnavailableError, UsageError
from impasto.optimize.cache import EngineCache
from impasto.optimize.onnxruntime_gpu import Provider
from impasto.runtime.backends.onnxruntime_gpu import OnnxRuntimeGpuBackend

NAME = "onnxruntime-tensorrt"


@pytest.fixture
def folders(monkeypatch):
    """Have the CPU's provider taken for TensorRT's, and return the folders of engines that were asked for."""
    asked = []

    def provider(*, engines=None):
        asked.append(engines)
        return Provider("CPUExecutionProvider", {}, memory="cpu")

    monkeypatch.setattr("impasto.runtime.backends.onnxruntime_gpu.tensorrt_provider", provider)
    return asked


def test_engines_lie_in_the_cache_in_a_folder_of_this_user_alone(folders, tmp_path):
    cache = EngineCache(tmp_path / "below" / "engines")
    OnnxRuntimeGpuBackend(NAME, cache)
    folder = cache.root / "onnxruntime-tensorrt"
    assert folders[-1] == folder
    assert [path.stat().st_mode & 0o777 for path in (cache.root, folder)] == [0o700, 0o700]
    assert list(tmp_path.iterdir()) == [tmp_path / "below"]
    assert cache.entries() == ()
    OnnxRuntimeGpuBackend(NAME, cache)
    assert folders[-1] == folder


def test_a_cache_that_cannot_be_used_fails_no_job(folders, tmp_path, caplog):
    (tmp_path / "file").write_bytes(b"")
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(0o755)
    for root in (tmp_path / "file", tmp_path / "file" / "below", tmp_path / "open"):
        with caplog.at_level(logging.WARNING, "impasto"):
            OnnxRuntimeGpuBackend(NAME, EngineCache(root))
        assert folders[-1] is None
        assert "engine cache not used" in caplog.messages[-1]


def test_nothing_is_made_where_the_provider_is_missing(tmp_path, monkeypatch):
    monkeypatch.setattr("onnxruntime.get_available_providers", lambda: ["CPUExecutionProvider"])
    with pytest.raises(UnavailableError, match="TensorrtExecutionProvider"):
        OnnxRuntimeGpuBackend(NAME, EngineCache(tmp_path / "engines"))
    with pytest.raises(UsageError, match="choose among tf32"):
        OnnxRuntimeGpuBackend(NAME, EngineCache(tmp_path / "engines"), "fp16")
    assert not list(tmp_path.iterdir())
