"""TensorRT engines as graphs of the device loop: deserialised, bound to addresses, enqueued on its stream.

Engines come from `impasto.optimize.tensorrt.build_engine`, never from a file that a user names: they are executable
code. Host code in them (`engine_host_code_allowed`) stays forbidden. Their scratch memory is the caller's, so that all
engines of a plan, which run one after the other, share one.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import ml_dtypes
import numpy as np

from impasto.errors import DeviceError, EngineError, GraphError, LimitError, UnavailableError
from impasto.export.graph import Graph
from impasto.optimize.fold import fold_constants
from impasto.optimize.tensorrt import parser_errors
from impasto.optimize.tensorrt_library import Messages, load, make_logger, refusal, start
from impasto.runtime.gpu.protocol import Address, TensorSpec


class TensorRTRuntime:
    """Loads engines that were built on this GPU with this version, to run on one stream of the current context."""

    def __init__(self, stream: int) -> None:
        """Take the handle of a stream; raise `UnavailableError` without TensorRT, a GPU or a new enough driver."""
        self._trt = load()
        self._messages = Messages()
        self._log = make_logger(self._trt, self._messages)
        self._runtime = start(self._trt.Runtime, self._log, self._messages)
        self._stream = stream

    @property
    def version(self) -> str:
        """TensorRT's version."""
        return str(self._trt.__version__)

    def graph(
        self,
        name: str,
        engine: bytes,
        shapes: Mapping[str, tuple[int, ...]] | None = None,
        weights: Graph | None = None,
    ) -> TensorRTGraph:
        """Load an engine.

        ``name`` is what errors call it, ``shapes`` those of its inputs with free dimensions, ``weights`` the graph
        whose weights a refittable engine shall have. Raises `EngineError` for an engine of another GPU or version,
        `LimitError` if the device's memory or the engine's range of shapes does not suffice, `GraphError` for weights
        that do not fit.
        """
        self._messages.clear()
        loaded = self._runtime.deserialize_cuda_engine(engine)
        if loaded is None:
            what = f"TensorRT {self.version} does not load the engine of graph {name!r}"
            raise refusal(self._messages, what, "remove it with impasto cache clear, and build it again", EngineError)
        if weights is not None:
            self._refit(loaded, weights)
        return TensorRTGraph(self._trt, name, loaded, self._stream, self._messages, shapes or {})

    def close(self) -> None:
        """Let go of the runtime; graphs that it loaded must be closed before."""
        self._runtime = None

    def _refit(self, engine: Any, graph: Graph) -> None:
        refitter = self._trt.Refitter(engine, self._log)
        parser = self._trt.OnnxParserRefitter(refitter, self._log)
        if not parser.refit_from_bytes(fold_constants(graph).model().SerializeToString()):
            reason = parser_errors(parser) or self._messages.reason
        elif not refitter.refit_cuda_engine():
            reason = ", ".join(refitter.get_missing_weights()) or self._messages.reason
        else:
            return
        raise GraphError(f"the weights of graph {graph.name!r} do not fit its engine ({reason}): build without refit")


class TensorRTGraph:
    """A `DeviceGraph` that TensorRT runs; made by `TensorRTRuntime.graph`."""

    capturable = True

    def __init__(
        self,
        trt: Any,
        name: str,
        engine: Any,
        stream: int,
        messages: Messages,
        shapes: Mapping[str, tuple[int, ...]],
    ) -> None:
        self._name, self._engine, self._stream, self._messages = name, engine, stream, messages
        self._context = engine.create_execution_context(trt.ExecutionContextAllocationStrategy.USER_MANAGED)
        if self._context is None:
            what = f"TensorRT cannot prepare the engine of graph {name!r}"
            raise refusal(messages, what, "look at nvidia-smi for what else runs there", UnavailableError)
        for tensor, shape in shapes.items():
            if not self._context.set_input_shape(tensor, shape):
                raise LimitError(
                    f"graph {name!r}: the engine does not take shape {shape} of {tensor!r} ({messages.reason}): "
                    f"build one whose range includes it"
                )
        names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
        specs = {tensor: self._spec(trt, tensor) for tensor in names}
        inputs = {tensor for tensor in names if engine.get_tensor_mode(tensor) == trt.TensorIOMode.INPUT}
        self.inputs = {tensor: spec for tensor, spec in specs.items() if tensor in inputs}
        self.outputs = {tensor: spec for tensor, spec in specs.items() if tensor not in inputs}
        # What free dimensions allow at most may be many times what these shapes need.
        self.scratch_bytes = int(
            self._context.update_device_memory_size_for_shapes() if shapes else engine.device_memory_size_v2
        )

    def bind(self, addresses: Mapping[str, Address], scratch: Address) -> None:
        """Fix the addresses, as `DeviceGraph.bind` says, and enqueue the graph once on what lies there.

        TensorRT settles its internal state at the first run with given shapes, which a CUDA graph cannot capture.
        """
        self._messages.clear()
        self._context.set_device_memory(scratch, self.scratch_bytes)
        for tensor in (*self.inputs, *self.outputs):
            if not self._context.set_tensor_address(tensor, addresses[tensor]):
                raise DeviceError(
                    f"graph {self._name!r} does not take address {addresses[tensor]:#x} for {tensor!r} "
                    f"({self._messages.reason}): addresses must be the device's, aligned to 256 bytes"
                )
        self.enqueue()

    def enqueue(self) -> None:
        """Run on the stream, as `DeviceGraph.enqueue` says."""
        if not self._context.execute_async_v3(self._stream):
            what = f"TensorRT cannot run graph {self._name!r}"
            raise refusal(self._messages, what, "start again; look at nvidia-smi if that fails too", DeviceError)

    def close(self) -> None:
        """Free the context, then the engine, with their device memory."""
        self._context = None
        self._engine = None

    def _spec(self, trt: Any, tensor: str) -> TensorSpec:
        types = {
            trt.DataType.FLOAT: np.float32,
            trt.DataType.HALF: np.float16,
            trt.DataType.BF16: ml_dtypes.bfloat16,
            trt.DataType.INT32: np.int32,
            trt.DataType.INT64: np.int64,
            trt.DataType.BOOL: np.bool_,
            trt.DataType.UINT8: np.uint8,
        }
        dtype = self._engine.get_tensor_dtype(tensor)
        shape = tuple(self._context.get_tensor_shape(tensor))
        if dtype not in types or min(shape, default=0) < 0:
            raise GraphError(f"graph {self._name!r}: {tensor!r} is {dtype} of shape {shape}: give all free dimensions")
        return TensorSpec(np.dtype(types[dtype]), shape)
