"""Compiled graphs of the device loop by ONNX Runtime, bound to device addresses."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from onnx import helper

from impasto.errors import DeviceError, GraphError
from impasto.export.graph import Graph
from impasto.optimize.onnxruntime import import_onnxruntime
from impasto.optimize.onnxruntime_gpu import Provider, build_gpu_session, first_line, lacks_memory, out_of_memory
from impasto.runtime.gpu.protocol import Address, TensorSpec


class OnnxRuntimeGraph:
    """A `DeviceGraph` by one of ONNX Runtime's providers, which must run on the device's stream.

    Its memory for intermediates is ONNX Runtime's own, so it needs no scratch; its launches are not captured, since it
    may allocate while it runs. Raises as `build_gpu_session` does, `GraphError` for a graph with free dimensions.
    """

    scratch_bytes = 0
    capturable = False

    def __init__(self, graph: Graph, provider: Provider, index: int = 0) -> None:
        self._name, self._memory, self._index = graph.name, provider.memory, index
        self._session: Any = build_gpu_session(graph, provider)
        types = graph.infer_shapes()
        self.inputs = {name: _spec(graph, name, *types[name]) for name in graph.inputs}
        # ONNX Runtime has folded what steers shapes, and knows some that ONNX's inference does not.
        self.outputs = {
            t.name: _spec(graph, t.name, types[t.name][0], tuple(t.shape)) for t in self._session.get_outputs()
        }
        self._binding = self._session.io_binding()
        self._options = import_onnxruntime().RunOptions()
        # The loop waits for its own report; a wait after every graph would stall the stream.
        self._options.add_run_config_entry("disable_synchronize_execution_providers", "1")

    def bind(self, addresses: Mapping[str, Address], scratch: Address) -> None:  # noqa: ARG002 - it has its own
        """Fix the addresses of inputs and outputs."""
        for bind, specs in ((self._binding.bind_input, self.inputs), (self._binding.bind_output, self.outputs)):
            for name, spec in specs.items():
                kind = helper.np_dtype_to_tensor_dtype(spec.dtype)
                bind(name, self._memory, self._index, kind, list(spec.shape), addresses[name])

    def enqueue(self) -> None:
        """Run on the device's stream, as `DeviceGraph.enqueue` says."""
        try:
            self._session.run_with_iobinding(self._binding, self._options)
        except Exception as cause:  # ONNX Runtime's exceptions have no common base class
            if lacks_memory(cause):
                raise out_of_memory(self._name) from cause
            raise DeviceError(f"ONNX Runtime cannot run {self._name!r}: {first_line(cause)}") from cause

    def close(self) -> None:
        """Free the session."""
        self._session = self._binding = None


def _spec(graph: Graph, name: str, dtype: np.dtype[Any], shape: tuple[Any, ...]) -> TensorSpec:
    if not all(isinstance(length, int) for length in shape):
        raise GraphError(f"graph {graph.name!r}: the shape of {name!r} is {shape}, must be fixed for a device")
    return TensorSpec(dtype, shape)
