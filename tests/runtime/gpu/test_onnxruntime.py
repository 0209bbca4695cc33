"""Graphs of the device loop by ONNX Runtime: what it says when a run fails. `test_plans` runs them."""

from __future__ import annotations

import pytest

from impasto.errors import DeviceError, LimitError
from impasto.export.graph import Graph
from impasto.optimize.onnxruntime_gpu import Provider
from impasto.runtime.gpu.onnxruntime import OnnxRuntimeGraph


class Failing:
    """A session whose runs fail."""

    def __init__(self, text):
        self._text = text

    def run_with_iobinding(self, *_):
        raise RuntimeError(self._text)


@pytest.mark.parametrize(
    ("text", "kind", "words"),
    [
        (
            "BFCArena: Failed to allocate memory for requested buffer of size 4096",
            LimitError,
            "out of GPU memory.*'one'",
        ),
        ("CUDA failure 2: out of memory ; GPU=0", LimitError, "out of GPU memory.*'one'"),
        (
            "CUDA failure 700: illegal memory access\nand more",
            DeviceError,
            r"cannot run 'one': CUDA failure 700.*access$",
        ),
    ],
)
def test_a_run_that_fails_says_whether_memory_was_the_reason(text, kind, words):
    source = Graph("one")
    source.outputs = [source.add("Relu", source.input("x", (1,)))]
    graph = OnnxRuntimeGraph(source, Provider("CPUExecutionProvider", {}, memory="cpu"))
    graph._session = Failing(text)
    with pytest.raises(kind, match=words):
        graph.enqueue()
