"""OpenVINO: the CPU, and Intel's other devices by name."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from impasto.errors import GraphError, UsageError
from impasto.export.graph import Graph
from impasto.export.objective import Objective, Targets
from impasto.export.precision import Precision
from impasto.models.layers import Filters
from impasto.models.weights import Weights
from impasto.optimize.cache import EngineCache
from impasto.optimize.openvino import (
    Engine,
    compile_graph,
    failure,
    import_openvino,
    native_precisions,
    require_device,
    version,
)
from impasto.runtime.backends.graphs import GraphBackend
from impasto.runtime.backends.protocol import Plan
from impasto.runtime.plans.session import Arrays, Session
from impasto.runtime.problem import Evaluator, FloatArray, Problem


class OpenVinoBackend(GraphBackend):
    """Runs graphs by OpenVINO; engines come from ``cache`` if one is given.

    ``device`` is OpenVINO's name: CPU, GPU, NPU, GPU.1. ``precision`` is that of the network and its gradient; Gram
    matrices and losses are float32 in each. The default is bf16 on a CPU that multiplies it natively, but fp32 for
    networks with filters, whose descent ends early in bf16 (`docs/decisions/0011-cpu-backends.md`), and fp32
    elsewhere; `precision` then is that of the last problem.

    Raises `UnavailableError` where OpenVINO is not installed or has no such device, `UsageError` for a precision that
    the device would emulate.
    """

    def __init__(
        self,
        cache: EngineCache | None = None,
        threads: int | None = None,
        precision: str | None = None,
        device: str = "CPU",
    ) -> None:
        require_device(device)
        super().__init__(_checked(device, precision))
        self._preferred = self.precision if precision is None else None
        self.name = "openvino" if device == "CPU" else f"openvino:{device}"
        self._cache = cache
        self._threads = threads
        self._device = device

    @property
    def target_precision(self) -> Precision:
        """Float32: OpenVINO cuts float32 off to bf16, instead of rounding it, in graphs whose size is free."""
        return "fp32"

    def compile(self, graph: Graph, *, once: bool = False) -> Session:
        """Return a session for the graph, from the engine cache if it is there; one that is run once is in float32."""
        precision = self.target_precision if once else self.network_precision
        engine = compile_graph(graph, self._cache, device=self._device, precision=precision, threads=self._threads)
        return _Once(graph, engine) if once else _Session(graph, engine)

    def prepare(self, problem: Problem, plan: Plan, memory: int | None = None) -> Evaluator:
        """Return an evaluator, as `Backend.prepare` says; the sliced plan is there in fp32 alone."""
        self.settle(problem.weights, problem.objective, plan)
        if plan == "sliced" and self.network_precision != "fp32":
            raise UsageError(f"backend {self.name} has no plan 'sliced' in {self.precision}: take fused, or fp32")
        return super().prepare(problem, plan, memory)

    def measure_tiled(
        self,
        weights: Weights,
        objective: Objective,
        content: FloatArray,
        style: FloatArray,
        memory: int | None = None,
    ) -> Targets:
        """Measure targets, as `Backend.measure_tiled` says."""
        self.settle(weights, objective, "tiled")
        return super().measure_tiled(weights, objective, content, style, memory)

    def settle(self, weights: Weights, objective: Objective, plan: Plan | None) -> None:
        """Take the precision for a network and a plan, unless one was asked for: filters and slices need fp32."""
        if self._preferred is not None:
            layers = weights.backbone.needed(objective.taps)
            exact = plan == "sliced" or any(isinstance(layer, Filters) for layer in layers)
            self.precision = "fp32" if exact else self._preferred

    def versions(self) -> dict[str, str]:
        """Return OpenVINO's version and ONNX's."""
        import onnx

        return {"openvino": version(), "onnx": str(onnx.__version__)}


class _Session:
    """Keeps its memory between runs."""

    def __init__(self, graph: Graph, engine: Engine) -> None:
        self._name = graph.name
        self._outputs = list(graph.outputs)
        self._engine: Engine | None = engine
        self._request: Any = engine.model.create_infer_request()
        self._fixed: Arrays | None = None
        self._bound: dict[str, NDArray[Any]] = {}

    def run(self, inputs: Arrays, fixed: Arrays | None = None) -> dict[str, NDArray[Any]]:
        """Run the graph once."""
        try:
            if fixed is not self._fixed:
                self._bind(fixed or {})
                self._fixed = fixed
            self._bind(inputs)
            self._request.infer()
            # Copies: the next run writes to the request's own memory again.
            return {name: self._request.get_tensor(name).data.copy() for name in self._outputs}
        except Exception as cause:  # OpenVINO raises RuntimeError and what pybind11 makes of C++ exceptions
            raise failure(cause, GraphError, f"OpenVINO cannot run {self._name!r}", self._name) from cause

    def close(self) -> None:
        """Free the session."""
        self._request = self._engine = self._fixed = None
        self._bound = {}

    def _bind(self, arrays: Arrays) -> None:
        """Have the graph read arrays where they are, and keep them: the request knows addresses alone."""
        ov = import_openvino()
        for name, value in arrays.items():
            # OpenVINO takes no array that is read-only, though it does not write to inputs.
            self._bound[name] = np.require(value, requirements=["C", "W"])
            self._request.set_tensor(name, ov.Tensor(self._bound[name], shared_memory=True))


class _Once:
    """Keeps no memory between runs."""

    def __init__(self, graph: Graph, engine: Engine) -> None:
        self._graph = graph
        self._engine: Engine | None = engine

    def run(self, inputs: Arrays, fixed: Arrays | None = None) -> dict[str, NDArray[Any]]:
        """Run the graph once."""
        assert self._engine is not None
        session = _Session(self._graph, self._engine)
        found = session.run(inputs, fixed)
        session.close()
        self._engine.model.release_memory()
        return found

    def close(self) -> None:
        """Free the compiled graph."""
        self._engine = None


def _checked(device: str, precision: str | None) -> Precision:
    """Return the precision, the device's own for None; raise `UsageError` for one that it does not compute in."""
    known = native_precisions() if device == "CPU" else ("fp32",)
    if precision is None:
        return "bf16" if "bf16" in known else "fp32"
    if precision in known:
        return precision
    if device == "CPU" and precision == "bf16":
        raise UsageError(
            "this CPU has no instructions that multiply bf16, and emulated it takes four times as long as torch in "
            "fp32: take --precision fp32"
        )
    raise UsageError(f"backend openvino on {device} has no precision {precision!r}: choose among {', '.join(known)}")
