"""Sessions of ONNX Runtime on GPUs, as far as they can be seen without one: by its CPU provider, or refused."""

from __future__ import annotations

import pytest

from impasto.errors import GraphError, LimitError, UnavailableError
from impasto.export.graph import Graph
from impasto.optimize.onnxruntime_gpu import Provider, build_gpu_session, require_working

CPU = Provider("CPUExecutionProvider", {}, memory="cpu")


@pytest.fixture
def refusing(monkeypatch):
    """Make sessions fail with a text, and return how they were asked for."""
    asked = {}

    def refuse(text):
        def session(*_, **options):
            asked.update(options)
            raise RuntimeError(text)

        monkeypatch.setattr("onnxruntime.InferenceSession", session)
        return asked

    return refuse


def graph():
    made = Graph("small")
    made.outputs = [made.add("Relu", made.input("x", (1,)))]
    return made


def test_a_provider_that_runs_passes():
    require_working(CPU)


def test_a_provider_that_does_not_start_is_unavailable(refusing):
    refusing("CUDA failure 35: driver version is insufficient\nand more")
    with pytest.raises(UnavailableError, match=r"failure 35: driver version is insufficient: look at nvidia-smi"):
        require_working(CPU)
    with pytest.raises(GraphError, match="refuses 'small': CUDA failure 35"):
        build_gpu_session(graph(), CPU)


@pytest.mark.parametrize("text", ["CUDA failure 2: out of memory", "Failed to allocate memory for requested buffer"])
def test_a_gpu_that_is_full_is_a_limit(refusing, text):
    refusing(text)
    with pytest.raises(LimitError, match="out of GPU memory in 'small'"):
        build_gpu_session(graph(), CPU)
    with pytest.raises(LimitError):
        require_working(CPU)


def test_what_fails_on_a_gpu_is_never_run_again_on_the_cpu(refusing):
    asked = refusing("EP failure")
    with pytest.raises(GraphError):
        build_gpu_session(graph(), CPU)
    assert asked["enable_fallback"] == 0
    assert asked["providers"] == [("CPUExecutionProvider", {})]
