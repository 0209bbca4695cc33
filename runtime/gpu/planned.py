"""What the device's plans share: memory that is planned once, a gradient in range, and evaluations replayed."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import ExitStack

import numpy as np

from impasto.export.fused import GRADIENT
from impasto.models.layers import IMAGE
from impasto.runtime.gpu.gradient_scale import GradientScale
from impasto.runtime.gpu.memory import Memory, settle
from impasto.runtime.gpu.protocol import Address, Device, DeviceGraph, TensorSpec
from impasto.runtime.gpu.replay import replay
from impasto.runtime.problem import Problem


class PlannedEvaluator(ABC):
    """A `DeviceEvaluator` of a problem's structure and shape, which `load` gives the numbers of one job after another.

    It owns ``graphs`` and its memory: `IMAGE`, `GRADIENT` and ``losses`` by these names, which subclasses reserve
    when they are made. ``half`` says that cotangents need a power of two to stay in float16's range.
    """

    def __init__(self, device: Device, problem: Problem, graphs: Sequence[DeviceGraph], *, half: bool) -> None:
        self.device = device
        self.shape = problem.shape
        self.size = 3 * math.prod(problem.shape)
        self.terms = problem.objective.terms
        self._graphs = graphs
        self._memory = Memory(device)
        self._gradient_scale = GradientScale() if half else None
        self._replay: Callable[[], None] | None = None
        self._owned = ExitStack()
        self._owned.callback(self._memory.close)
        for graph in graphs:
            self._owned.callback(graph.close)
        self._owned.callback(settle, device)

    @property
    def nbytes(self) -> int:
        """Device memory that the plan holds beside its compiled graphs."""
        return self._memory.nbytes

    @property
    def image(self) -> Address:
        """Where the iterate is read, float32 (1, 3, H, W)."""
        return self._memory[IMAGE]

    @property
    def gradient(self) -> Address:
        """Where the gradient is written, float32 (1, 3, H, W)."""
        return self._memory[GRADIENT]

    @property
    def losses(self) -> Address:
        """Where the weighted terms are written, float64."""
        return self._memory["losses"]

    @abstractmethod
    def load(self, problem: Problem) -> None:
        """Take the targets and weights of a job; to be completed by subclasses."""
        if self._gradient_scale is not None:
            self._gradient_scale.restart()

    def enqueue(self) -> None:
        """Enqueue one evaluation."""
        scale = self._gradient_scale
        if scale is not None and not scale.known:
            scale.find(lambda: self._largest(scale))
            self._rescaled(scale.value)
        if self._replay is not None:
            self._replay()
            return
        # The first run loads what a capture must not load.
        self._evaluate()
        self._replay = replay(self.device, self._evaluate, self._graphs)

    def observed(self, largest: float) -> None:
        """Take note of the largest element of the last gradient; not finite where the evaluation failed."""
        scale = self._gradient_scale
        if scale is not None and scale.follow(largest * scale.value):
            self._rescaled(scale.value)

    def close(self) -> None:
        """Free memory and graphs."""
        self._replay = None
        self._owned.close()

    @abstractmethod
    def _evaluate(self) -> None:
        """Enqueue the work of one evaluation."""

    @abstractmethod
    def _rescaled(self, scale: float) -> None:
        """Have the next evaluation multiply cotangents by ``scale``."""

    def _largest(self, scale: GradientScale) -> float:
        """Evaluate and return the largest element of the gradient as it was computed, times the scale."""
        self._rescaled(scale.value)
        self._evaluate()
        gradient = self.device.download(self.gradient, TensorSpec(np.dtype(np.float32), (self.size,)))
        return float(np.abs(gradient).max()) * scale.value
