"""ONNX Runtime's CUDA and TensorRT providers: the GPU path that needs pip alone.

Graphs run on the GPU; targets and weights are uploaded once a job, the picture and its gradient travel each
evaluation, and the solver is the host's. The backends ``cuda`` and ``tensorrt`` keep all of it on the device.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from impasto.errors import DeviceError, EngineError, UsageError
from impasto.export.graph import Graph
from impasto.optimize.cache import EngineCache, require_private
from impasto.optimize.onnxruntime import import_onnxruntime, version
from impasto.optimize.onnxruntime_gpu import (
    Provider,
    build_gpu_session,
    cuda_provider,
    first_line,
    lacks_memory,
    out_of_memory,
    require_working,
    tensorrt_provider,
)
from impasto.runtime.backends.graphs import GraphBackend
from impasto.runtime.plans.session import Arrays, Session

PRECISIONS = {"onnxruntime-cuda": ("tf32", "fp32"), "onnxruntime-tensorrt": ("tf32",)}
"""The first is the default. The TensorRT provider cannot be told to leave float32 as it is."""


_logger = logging.getLogger("impasto")


class OnnxRuntimeGpuBackend(GraphBackend):
    """Runs graphs by ``onnxruntime-cuda`` or ``onnxruntime-tensorrt`` on the first GPU that is visible.

    ``precision`` tf32 allows products of float32 to be rounded to TensorFloat-32. With ``cache``, TensorRT's engines
    are kept in its folder. Raises `UnavailableError` where the provider is not installed or cannot run, `LimitError`
    where the GPU is full.
    """

    def __init__(self, name: str, cache: EngineCache | None = None, precision: str | None = None) -> None:
        known = PRECISIONS[name]
        super().__init__(precision or known[0])
        self.name = name
        if self.precision not in known:
            raise UsageError(f"backend {name} has no precision {precision!r}: choose among {', '.join(known)}")
        if name == "onnxruntime-tensorrt":
            require_working(tensorrt_provider())
            self._provider = tensorrt_provider(engines=None if cache is None else _engines(cache))
        else:
            self._provider = cuda_provider(tf32=self.precision == "tf32")
            require_working(self._provider)

    def compile(self, graph: Graph, *, once: bool = False) -> Session:  # noqa: ARG002 - memory is the provider's arena
        """Return a session for the graph."""
        return GpuSession(graph, self._provider)

    def versions(self) -> dict[str, str]:
        """Return ONNX Runtime's version and ONNX's."""
        import onnx

        return {"onnxruntime": version(), "onnx": str(onnx.__version__)}


def _engines(cache: EngineCache) -> Path | None:
    """Return a folder of the user's own in the cache's, in which the provider keeps engines by its own names.

    None where there can be none: they are built anew each time then.
    """
    folder = cache.root / "onnxruntime-tensorrt"
    try:
        for path in (cache.root, folder):
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
            require_private(path)
    except (OSError, EngineError) as error:
        _logger.warning("engine cache not used: %s", error)
        return None
    return folder


class GpuSession:
    """A `Session` whose fixed inputs stay on the device. Shapes may be free."""

    def __init__(self, graph: Graph, provider: Provider, index: int = 0) -> None:
        self._name, self._outputs = graph.name, list(graph.outputs)
        self._memory, self._index = provider.memory, index
        self._session: Any = build_gpu_session(graph, provider, whole=False)
        self._fixed: Arrays | None = None
        self._uploaded: dict[str, Any] = {}

    def run(self, inputs: Arrays, fixed: Arrays | None = None) -> dict[str, NDArray[Any]]:
        """Run the graph once."""
        if fixed is not self._fixed:
            self._uploaded = {name: self._upload(value) for name, value in (fixed or {}).items()}
            self._fixed = fixed
        binding = self._session.io_binding()
        try:
            for name, value in {**self._uploaded, **{name: self._upload(v) for name, v in inputs.items()}}.items():
                binding.bind_ortvalue_input(name, value)
            for name in self._outputs:
                binding.bind_output(name, self._memory, self._index)
            self._session.run_with_iobinding(binding)
            values = binding.copy_outputs_to_cpu()
        except Exception as cause:  # ONNX Runtime's exceptions have no common base class
            if lacks_memory(cause):
                raise out_of_memory(self._name) from cause
            raise DeviceError(f"ONNX Runtime cannot run {self._name!r}: {first_line(cause)}") from cause
        return dict(zip(self._outputs, values, strict=True))

    def close(self) -> None:
        """Free the session and what was uploaded."""
        self._uploaded, self._fixed, self._session = {}, None, None

    def _upload(self, value: NDArray[Any]) -> Any:
        ort = import_onnxruntime()
        return ort.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(value), self._memory, self._index)
