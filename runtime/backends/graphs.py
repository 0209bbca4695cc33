"""The part that all backends share which execute ONNX graphs: what to export, and what to keep warm."""

from __future__ import annotations

import math
import threading
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Any, Protocol, cast

import numpy as np

from impasto.errors import UnknownNameError, UsageError
from impasto.export.calibration import calibration_graph
from impasto.export.graph import Graph
from impasto.export.objective import Objective, Targets
from impasto.export.precision import Precision
from impasto.export.statistics import statistics_graph
from impasto.models.conventions import pixel_space
from impasto.models.layers import IMAGE, Filters
from impasto.models.weights import Weights
from impasto.runtime.backends.protocol import PLANS, Calibration, Measured, Plan
from impasto.runtime.plans.fused import FusedPlan
from impasto.runtime.plans.session import Session
from impasto.runtime.plans.sliced import SlicedPlan, SliceSessions
from impasto.runtime.plans.tiled import TiledPlan, TiledSessions
from impasto.runtime.plans.tiled_targets import TiledTargets
from impasto.runtime.plans.tiling import TILED_MEMORY, array_bytes, tile
from impasto.runtime.problem import Evaluator, FloatArray, Problem
from impasto.runtime.scratch import Allocate, in_memory, mapped

_WARM = 3
"""How many graphs are kept: those that calibrate and measure pictures, and the objective's at the last size."""


class Closeable(Protocol):
    """What is kept warm."""

    def close(self) -> None:
        """Free it."""
        ...


class GraphBackend(ABC):
    """A backend that compiles and runs ONNX graphs; subclasses say how."""

    name: str
    plans: tuple[Plan, ...] = ("fused",)
    progress: Callable[[str, int, int], None] | None = None

    def __init__(self, precision: str = "fp32") -> None:
        self.precision = precision
        self._warm: OrderedDict[Hashable, Closeable] = OrderedDict()
        self._lock = threading.Lock()

    @property
    def network_precision(self) -> Precision:
        """The type that graphs compute in; tf32 is float32 with a promise less."""
        return cast("Precision", "fp32" if self.precision == "tf32" else self.precision)

    @property
    def target_precision(self) -> Precision:
        """The type that networks compute in when they measure targets."""
        return self.network_precision

    @abstractmethod
    def compile(self, graph: Graph, *, once: bool = False) -> Session:
        """Return a session that runs the graph; one that is run ``once`` a job keeps no memory between runs."""

    @abstractmethod
    def versions(self) -> dict[str, str]:
        """Return the versions of the packages that results depend on."""

    def settle(self, weights: Weights, objective: Objective, plan: Plan | None) -> None:  # noqa: B027
        """Most have one precision for all."""

    def calibrate(self, weights: Weights, objective: Objective, image: FloatArray) -> Calibration:
        """Calibrate filters, as `Backend.calibrate` says."""
        filters = tuple(layer for layer in weights.backbone.needed(objective.taps) if isinstance(layer, Filters))
        if not filters:
            return {}

        def make() -> Session:
            graph = calibration_graph(weights, objective.taps, pixel_space(objective.convention))
            return self.compile(graph, once=True)

        key = ("calibrate", weights.sha256, objective.convention, filters)
        session: Session = self._kept(key, make)
        return session.run({IMAGE: image})

    def measure(
        self,
        weights: Weights,
        objective: Objective,
        image: FloatArray,
        content: tuple[str, ...],
        style: tuple[str, ...],
        calibration: Calibration,
    ) -> Measured:
        """Measure targets, as `Backend.measure` says."""
        every = tuple(dict.fromkeys([*objective.content, *content]))
        statistics = {tap: objective.statistic(tap) for tap in dict.fromkeys([*objective.style, *style])}

        def make() -> Session:
            # One graph for all of the objective's taps and any size: both pictures of every job share the session.
            space = pixel_space(objective.convention)
            graph = statistics_graph(
                weights, every, statistics, pooling=objective.pooling, space=space, precision=self.target_precision
            )
            return self.compile(graph, once=True)

        key = ("measure", weights.sha256, objective.pooling, objective.convention, every, tuple(statistics.items()))
        outputs = self._kept(key, make).run({IMAGE: image, **calibration})
        products, means = {}, {}
        for tap in style:
            positions = np.float32(math.prod(weights.backbone.grid(tap, image.shape[2:])))
            products[tap] = outputs[f"style.{tap}"] / positions
            if statistics[tap] == "covariance":
                means[tap] = outputs[f"style.{tap}.sum"] / positions
                products[tap] -= means[tap] @ means[tap].T
        return Measured({tap: outputs[f"content.{tap}"] for tap in content}, products, means)

    def measure_tiled(
        self,
        weights: Weights,
        objective: Objective,
        content: FloatArray,
        style: FloatArray,
        memory: int | None = None,
    ) -> Targets:
        """Measure targets, as `Backend.measure_tiled` says."""
        self._check_tiled()
        memory, precision = memory or TILED_MEMORY, self.target_precision
        allocate = _allocator(array_bytes(weights, objective, (content.shape[2], content.shape[3])), memory)
        return TiledTargets(weights, objective, self.compile, memory // 2, allocate, precision).measure(content, style)

    def prepare(self, problem: Problem, plan: Plan, memory: int | None = None) -> Evaluator:
        """Return an evaluator, as `Backend.prepare` says."""
        if plan == "tiled":
            return self._tiled(problem, memory or TILED_MEMORY)
        key = (plan, structure(problem))
        if plan == "fused":
            session: Session = self._kept(key, lambda: FusedPlan.compile(problem, self.compile, self.network_precision))
            return FusedPlan(problem, session, self.network_precision)
        if plan == "sliced":
            slices: SliceSessions = self._kept(key, lambda: SlicedPlan.compile(problem, self.compile))
            return SlicedPlan(problem, slices)
        raise UnknownNameError("plan", plan, PLANS)

    def plan_for(self, problem: Problem) -> Plan:  # noqa: ARG002 - the same for all
        """Return the fused plan: on a CPU every boundary between graphs costs copies."""
        return self.plans[0]

    def took(self, problem: Problem, plan: Plan, seconds: float) -> None:  # noqa: B027 - most have no choice
        """There is nothing to choose."""

    def _tiled(self, problem: Problem, memory: int) -> TiledPlan:
        self._check_tiled()
        precision = self.network_precision
        arrays = array_bytes(problem.weights, problem.objective, problem.shape)
        allocate = _allocator(arrays, memory)
        room = memory - arrays if allocate is in_memory else memory
        tiling = tile(problem.weights, problem.objective, problem.shape, room, precision)
        key = ("tiled", structure(problem), memory, tuple(problem.targets.content))
        # They fill the memory that they may take, so there is one set of them.
        self._drop(lambda other: isinstance(other, tuple) and other[0] == "tiled" and other != key)
        sessions: TiledSessions = self._kept(
            key, lambda: TiledPlan.compile(problem, self.compile, tiling, precision, self.target_precision)
        )
        return TiledPlan(problem, sessions, allocate)

    def _check_tiled(self) -> None:
        if self.network_precision == "fp16":
            raise UsageError(f"backend {self.name} has no plan 'tiled' in fp16: take fp32, or plan fused")

    def close(self) -> None:
        """Free the sessions that were kept warm."""
        with self._lock:
            while self._warm:
                self._warm.popitem()[1].close()

    def _drop(self, which: Callable[[Hashable], bool]) -> None:
        """Free the sessions that were kept for some keys."""
        with self._lock:
            for key in [key for key in self._warm if which(key)]:
                self._warm.pop(key).close()

    def _kept(self, key: Hashable, make: Callable[[], Any]) -> Any:
        """Return what ``make`` returned for the key before, or make it now; what was not used for longest goes."""
        with self._lock:
            if key not in self._warm:
                while len(self._warm) >= _WARM:
                    self._warm.popitem(last=False)[1].close()
                self._warm[key] = make()
            self._warm.move_to_end(key)
            return self._warm[key]


def _allocator(size: int, memory: int) -> Allocate:
    """Return what makes arrays of ``size`` bytes in all: in memory, unless that is more than half of it."""
    return in_memory if size <= memory // 2 else mapped


def structure(problem: Problem) -> Hashable:
    """Return what the graphs of a problem depend on; problems of one structure differ only in what graphs are fed."""
    objective = problem.objective
    return (
        problem.weights.sha256,
        tuple(objective.content),
        tuple((tap, objective.statistic(tap)) for tap in objective.style),
        objective.tv_form if objective.tv else None,
        objective.pooling,
        objective.convention,
        problem.shape,
    )
