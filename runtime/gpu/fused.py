"""The fused plan on the device: one compiled graph gives every loss term and the pixel gradient."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import ExitStack

import numpy as np

from impasto.export.fused import GRADIENT, GRADIENT_SCALE
from impasto.models.layers import IMAGE
from impasto.runtime.gpu.gradient_scale import GradientScale
from impasto.runtime.gpu.memory import Memory, settle
from impasto.runtime.gpu.protocol import Address, Device, DeviceGraph, TensorSpec
from impasto.runtime.gpu.replay import replay
from impasto.runtime.kernels.solver import VectorKernels
from impasto.runtime.plans.fused import graph_inputs
from impasto.runtime.problem import Problem

_STRIDE = 256
"""Bytes from one scalar output to the next: compiled graphs want their tensors aligned."""


class FusedEvaluator:
    """A `DeviceEvaluator`; memory is planned when it is made, and `load` takes one job's numbers after another."""

    def __init__(self, device: Device, problem: Problem, graph: DeviceGraph) -> None:
        self.device = device
        self.shape = problem.shape
        self.size = 3 * math.prod(problem.shape)
        self.terms = problem.objective.terms
        self._graph = graph
        self._gradient_scale = GradientScale() if GRADIENT_SCALE in graph.inputs else None
        self._replay: Callable[[], None] | None = None
        self._memory = Memory(device)
        self._owned = ExitStack()
        self._owned.callback(self._memory.close)
        self._owned.callback(graph.close)
        self._owned.callback(settle, device)
        try:
            self._plan()
        except BaseException:
            self._owned.close()
            raise

    @property
    def nbytes(self) -> int:
        """Device memory that the plan holds beside its compiled graph."""
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

    def load(self, problem: Problem) -> None:
        """Take the targets and weights of a job."""
        for name, values in graph_inputs(problem).items():
            if name in self._graph.inputs:
                self._memory.upload(name, values)
        if self._gradient_scale is not None:
            self._gradient_scale.restart()

    def enqueue(self) -> None:
        """Enqueue one evaluation."""
        scale = self._gradient_scale
        if scale is not None and not scale.known:
            scale.find(lambda: self._largest(scale.value))
            self._upload_scale(scale.value)
        if self._replay is not None:
            self._replay()
            return
        # The first run loads what a capture must not load.
        self._evaluate()
        self._replay = replay(self.device, self._evaluate, [self._graph])

    def observed(self, largest: float) -> None:
        """Take note of the largest element of the last gradient; not finite where the evaluation failed."""
        scale = self._gradient_scale
        if scale is not None and scale.follow(largest * scale.value):
            self._upload_scale(scale.value)

    def close(self) -> None:
        """Free memory and the graph."""
        self._replay = None
        self._owned.close()

    def _plan(self) -> None:
        memory, graph = self._memory, self._graph
        scalars = [f"loss.{term}" for term in self.terms]
        for name, spec in {**graph.inputs, **graph.outputs}.items():
            if name not in scalars:
                memory.tensor(name, spec)
        memory.reserve("scalars", _STRIDE * len(scalars))
        memory.reserve("losses", 8 * len(scalars))
        memory.reserve("scratch", graph.scratch_bytes)
        places = {name: memory["scalars"] + _STRIDE * i for i, name in enumerate(scalars)}
        addresses = {name: memory[name] for name in (*graph.inputs, *graph.outputs) if name not in places}
        graph.bind({**addresses, **places}, memory["scratch"])
        self._vectors = VectorKernels(self.device)

    def _evaluate(self) -> None:
        self._graph.enqueue()
        self._vectors.gather_scalars(self._memory["scalars"], _STRIDE, len(self.terms), self.losses)

    def _largest(self, scale: float) -> float:
        """Evaluate and return the largest element of the gradient as it was computed, times ``scale``."""
        self._upload_scale(scale)
        self._evaluate()
        gradient = self.device.download(self.gradient, TensorSpec(np.dtype(np.float32), (self.size,)))
        return float(np.abs(gradient).max()) * scale

    def _upload_scale(self, scale: float) -> None:
        self._memory.upload(GRADIENT_SCALE, np.asarray(scale, np.float32))
