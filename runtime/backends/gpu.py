"""What the backends share whose loop stays on a GPU: graphs by one compiler or another, kernels and solver by ours."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Hashable
from contextlib import suppress
from typing import Any, cast

from impasto.errors import LimitError, UnknownNameError, UsageError
from impasto.export.fused import fused_graph
from impasto.export.graph import Graph
from impasto.export.slices import Slice, sliced
from impasto.models.conventions import pixel_space
from impasto.optimize.cache import EngineCache
from impasto.runtime.backends.graphs import GraphBackend, structure
from impasto.runtime.backends.protocol import PLANS, Plan
from impasto.runtime.gpu.evaluator import DeviceEvaluator
from impasto.runtime.gpu.fused import FusedEvaluator
from impasto.runtime.gpu.hosted import HostedEvaluator
from impasto.runtime.gpu.protocol import Device, DeviceGraph
from impasto.runtime.gpu.session import DeviceSession, Shapes
from impasto.runtime.gpu.sliced import DeviceSlice, SlicedEvaluator
from impasto.runtime.plans.session import Session
from impasto.runtime.plans.times import PlanTimes
from impasto.runtime.problem import Problem

GPU_PRECISIONS = ("tf32", "fp32", "fp16", "bf16")
"""The first is the default: float32 whose products may be rounded to TensorFloat-32, as PyTorch's convolutions are."""


class GpuBackend(GraphBackend):
    """Paints on ``device``, which it owns; subclasses compile the graphs.

    ``precision`` is that of the network and its gradient; Gram matrices, losses and the solver are float32 and float64
    in each.
    """

    plans: tuple[Plan, ...] = ("fused", "sliced")

    def __init__(self, device: Device, precision: str, cache: EngineCache | None = None) -> None:
        """Take the device, the precision, and the cache among whose engines the times of plans are kept."""
        super().__init__(precision)
        self.device = device
        self._times = PlanTimes(cache.root / "plans.json" if cache else None)

    @abstractmethod
    def compile_for_device(self, graph: Graph, shapes: Shapes) -> DeviceGraph:
        """Compile a graph for inputs of these shapes; raise as the compiler does."""

    def compile(self, graph: Graph, *, once: bool = False) -> Session:  # noqa: ARG002 - nothing is kept on the device
        """Return a session that measures targets on the device."""
        return DeviceSession(self.device, graph, self.compile_for_device)

    def prepare(self, problem: Problem, plan: Plan, memory: int | None = None) -> HostedEvaluator:  # noqa: ARG002 - of tiles
        """Return an evaluator, as `Backend.prepare` says.

        Raises `LimitError` where the device has no room for it, when what was kept warm is gone already.
        """
        if plan not in PLANS:
            raise UnknownNameError("plan", plan, PLANS)
        if plan not in self.plans:
            raise UsageError(
                f"backend {self.name} has no plan {plan!r}: choose fused or sliced, or backend onnxruntime"
            )
        make = self._fused if plan == "fused" else self._sliced
        key = (plan, structure(problem))
        evaluator = self._room_for(key, lambda: make(problem))
        evaluator.load(problem)
        return HostedEvaluator(cast("DeviceEvaluator", evaluator))

    def plan_for(self, problem: Problem) -> Plan:
        """Return the plan that was faster for problems like this here; sliced until both were timed."""
        return self._times.fastest(self._kind(problem), self.plans) or "sliced"

    def took(self, problem: Problem, plan: Plan, seconds: float) -> None:
        """Take note of the time."""
        self._times.record(self._kind(problem), plan, seconds)

    def _kind(self, problem: Problem) -> Hashable:
        return self.name, self.precision, tuple(sorted(self.versions().items())), structure(problem)

    def close(self) -> None:
        """Free what was kept warm, and the device."""
        super().close()
        self.device.close()

    def _room_for(self, key: Hashable, make: Callable[[], FusedEvaluator | SlicedEvaluator]) -> Any:
        """Make what is kept under the key, if need be in the room of all that was kept before."""
        # Not in an except clause, whose traceback would keep the first attempt's memory.
        with suppress(LimitError):
            return self._kept(key, make)
        GraphBackend.close(self)
        return self._kept(key, make)

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
