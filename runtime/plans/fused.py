"""The fused plan: one graph gives every loss term and the pixel gradient."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from impasto.export.fused import GRADIENT, GRADIENT_SCALE, fused_graph
from impasto.export.objective import coefficients, style_target
from impasto.export.precision import Precision
from impasto.models.layers import IMAGE
from impasto.runtime.gpu.gradient_scale import GradientScale
from impasto.runtime.plans.session import Compile, Session
from impasto.runtime.problem import FloatArray, Losses, Problem


class FusedPlan:
    """An `Evaluator` that runs the fused graph once an evaluation."""

    def __init__(self, problem: Problem, session: Session, precision: Precision = "fp32") -> None:
        """Take a session that `compile` made for a problem of the same structure and shape, at that precision."""
        self._session = session
        self._scale = GradientScale() if precision == "fp16" else None
        self._terms = problem.objective.terms
        self._inputs = graph_inputs(problem)

    @staticmethod
    def compile(problem: Problem, compile: Compile, precision: Precision = "fp32") -> Session:
        """Export the problem's fused graph at a precision and compile it."""
        return compile(fused_graph(problem.objective, problem.weights, problem.shape, precision))

    def evaluate(self, image: FloatArray) -> Losses:
        """Return losses and gradient, as `Evaluator.evaluate` says."""
        scale = self._scale
        if scale is not None and not scale.known:
            scale.find(lambda: _largest(self._run(image)) * scale.value)
        outputs = self._run(image)
        if scale is not None:
            scale.follow(_largest(outputs) * scale.value)
        return Losses({term: float(outputs[f"loss.{term}"]) for term in self._terms}, outputs[GRADIENT])

    def _run(self, image: FloatArray) -> dict[str, NDArray[Any]]:
        inputs: dict[str, NDArray[Any]] = {IMAGE: image}
        if self._scale is not None:
            inputs[GRADIENT_SCALE] = np.asarray(self._scale.value, np.float32)
        return self._session.run(inputs, self._inputs)


def graph_inputs(problem: Problem) -> dict[str, NDArray[Any]]:
    """Return every input of the problem's fused graph but the image, float32."""
    objective, targets = problem.objective, problem.targets
    positions = {tap: problem.positions(tap) for tap in objective.style}
    inputs: dict[str, NDArray[Any]] = dict(targets.calibration)
    for name, value in coefficients(objective, targets, positions, problem.shape).items():
        inputs[name] = np.asarray(value, np.float32)
    for tap in objective.content:
        inputs[f"content.{tap}"] = targets.content[tap]
    for tap, count in positions.items():
        inputs[f"style.{tap}"] = style_target(objective, targets, tap, count)
        inputs[f"style.{tap}.scale"] = np.asarray(1 / count, np.float32)
    for tap, mean in targets.means.items():
        inputs[f"style.{tap}.mean"] = mean
    return inputs


def _largest(outputs: Mapping[str, NDArray[Any]]) -> float:
    """Return the largest element of the gradient, not finite where any is not."""
    return float(np.abs(outputs[GRADIENT]).max())
