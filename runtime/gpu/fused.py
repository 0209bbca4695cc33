"""The fused plan on the device: one compiled graph gives every loss term and the pixel gradient."""

from __future__ import annotations

import numpy as np

from impasto.export.fused import GRADIENT_SCALE
from impasto.runtime.gpu.planned import PlannedEvaluator
from impasto.runtime.gpu.protocol import Device, DeviceGraph
from impasto.runtime.kernels.solver import VectorKernels
from impasto.runtime.plans.fused import graph_inputs
from impasto.runtime.problem import Problem

_STRIDE = 256
"""Bytes from one scalar output to the next: compiled graphs want their tensors aligned."""


class FusedEvaluator(PlannedEvaluator):
    """The evaluator of a fused graph, compiled."""

    def __init__(self, device: Device, problem: Problem, graph: DeviceGraph) -> None:
        super().__init__(device, problem, [graph], half=GRADIENT_SCALE in graph.inputs)
        self._graph = graph
        try:
            self._plan()
        except BaseException:
            self.close()
            raise

    def load(self, problem: Problem) -> None:
        """Take the targets and weights of a job."""
        super().load(problem)
        for name, values in graph_inputs(problem).items():
            if name in self._graph.inputs:
                self._memory.upload(name, values)

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

    def _rescaled(self, scale: float) -> None:
        self._memory.upload(GRADIENT_SCALE, np.asarray(scale, np.float32))
