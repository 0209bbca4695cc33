"""ONNX Runtime on the CPU."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from impasto.errors import GraphError, LimitError
from impasto.export.graph import Graph
from impasto.optimize.cache import EngineCache
from impasto.optimize.onnxruntime import build_session, version
from impasto.runtime.backends.graphs import GraphBackend
from impasto.runtime.plans.session import Arrays, Session


class OnnxRuntimeBackend(GraphBackend):
    """Runs graphs by ONNX Runtime's CPU provider in float32; engines come from ``cache`` if one is given."""

    name = "onnxruntime"

    def __init__(self, cache: EngineCache | None = None, threads: int | None = None) -> None:
        """Raise `UnavailableError` where ONNX Runtime is not installed."""
        super().__init__()
        version()
        self._cache = cache
        self._threads = threads

    def compile(self, graph: Graph, *, once: bool = False) -> Session:
        """Return a session for the graph, from the engine cache if it is there."""
        return _Session(graph, build_session(graph, self._cache, threads=self._threads, arena=not once))

    def versions(self) -> dict[str, str]:
        """Return ONNX Runtime's version and ONNX's."""
        import onnx

        return {"onnxruntime": version(), "onnx": str(onnx.__version__)}


class _Session:
    def __init__(self, graph: Graph, session: Any) -> None:
        self._name = graph.name
        self._outputs = list(graph.outputs)
        self._session = session

    def run(self, inputs: Arrays, fixed: Arrays | None = None) -> dict[str, NDArray[Any]]:
        """Run the graph once."""
        contiguous = {name: np.require(v, requirements="C") for name, v in {**inputs, **(fixed or {})}.items()}
        try:
            values = self._session.run(self._outputs, contiguous)
        except Exception as cause:  # ONNX Runtime's exceptions have no common base class
            reason = str(cause).strip().splitlines()[0]
            if "allocate memory" in reason or "bad_alloc" in reason:
                raise LimitError(f"out of memory in {self._name!r}: lower --size, or close other programs") from cause
            raise GraphError(f"ONNX Runtime cannot run {self._name!r}: {reason}") from cause
        return dict(zip(self._outputs, values, strict=True))

    def close(self) -> None:
        """Free the session."""
        self._session = None
