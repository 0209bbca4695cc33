"""What the backends share whose loop stays on a GPU: graphs by one compiler or another, kernels and solver by ours."""

from __future__ import annotations

from abc import abstractmethod
from typing import cast

from impasto.errors import LimitError, UnknownNameError, UsageError
from impasto.export.fused import fused_graph
from impasto.export.graph import Graph
from impasto.export.slices import Slice, sliced
from impasto.models.conventions import pixel_space
from impasto.runtime.backends.graphs import GraphBackend, structure
from impasto.runtime.backends.protocol import PLANS, Plan
from impasto.runtime.gpu.evaluator import DeviceEvaluator
from impasto.runtime.gpu.fused import FusedEvaluator
from impasto.runtime.gpu.hosted import HostedEvaluator
from impasto.runtime.gpu.protocol import Device, DeviceGraph
from impasto.runtime.gpu.session import DeviceSession, Shapes
from impasto.runtime.gpu.sliced import DeviceSlice, SlicedEvaluator
from impasto.runtime.plans.session import Session
from impasto.runtime.problem import Problem

GPU_PRECISIONS = ("tf32", "fp32", "fp16", "bf16")
"""The first is the default: float32 whose products may be rounded to TensorFloat-32, as PyTorch's convolutions are."""


class GpuBackend(GraphBackend):
    """Paints on ``device``, which it owns; subclasses compile the graphs.

    ``precision`` is that of the network and its gradient; Gram matrices, losses and the solver are float32 and float64
    in each.
    """

    plan: Plan = "sliced"

    def __init__(self, device: Device, precision: str) -> None:
        super().__init__(precision)
        self.device = device

    @abstractmethod
    def compile_for_device(self, graph: Graph, shapes: Shapes) -> DeviceGraph:
        """Compile a graph for inputs of these shapes; raise as the compiler does."""

    def compile(self, graph: Graph, *, once: bool = False) -> Session:  # noqa: ARG002 - nothing is kept on the device
        """Return a session that measures targets on the device."""
        return DeviceSession(self.device, graph, self.compile_for_device)

    def prepare(self, problem: Problem, plan: Plan) -> HostedEvaluator:
        """Return an evaluator, as `Backend.prepare` says.

        Raises `LimitError` where the device has no room for it, when what was kept warm is gone already.
        """
        if plan not in PLANS:
            raise UnknownNameError("plan", plan, PLANS)
        if plan == "tiled":
            raise UsageError(f"backend {self.name} has no plan 'tiled': choose fused or sliced, or backend onnxruntime")
        make = self._fused if plan == "fused" else self._sliced
        key = (plan, structure(problem))
        try:
            evaluator = self._kept(key, lambda: make(problem))
        except LimitError:
            GraphBackend.close(self)
            evaluator = self._kept(key, lambda: make(problem))
        evaluator.load(problem)
        return HostedEvaluator(cast("DeviceEvaluator", evaluator))

    def close(self) -> None:
        """Free what was kept warm, and the device."""
        super().close()
        self.device.close()

    def _fused(self, problem: Problem) -> FusedEvaluator:
        graph = fused_graph(problem.objective, problem.weights, problem.shape, self.network_precision)
        return FusedEvaluator(self.device, problem, self.compile_for_device(graph, {}))

    def _sliced(self, problem: Problem) -> SlicedEvaluator:
        objective = problem.objective
        slices, scales = sliced(
            problem.weights,
            objective.taps,
            self.network_precision,
            pooling=objective.pooling,
            space=pixel_space(objective.convention),
            shape=problem.shape,
            masked=True,
        )
        return SlicedEvaluator(self.device, problem, [self._compiled(piece) for piece in slices], scales)

    def _compiled(self, piece: Slice) -> DeviceSlice:
        return DeviceSlice(
            piece, self.compile_for_device(piece.forward, {}), self.compile_for_device(piece.gradient, {})
        )


def checked_precision(backend: str, precision: str | None) -> str:
    """Return the precision, the default for None; raise `UsageError` for one that GPUs' backends do not have."""
    if precision is None:
        return GPU_PRECISIONS[0]
    if precision not in GPU_PRECISIONS:
        raise UsageError(f"backend {backend} has no precision {precision!r}: choose among {', '.join(GPU_PRECISIONS)}")
    return precision
