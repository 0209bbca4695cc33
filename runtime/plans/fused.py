"""The fused plan: one graph gives every loss term and the pixel gradient."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from impasto.export.fused import GRADIENT, fused_graph
from impasto.export.objective import coefficients, style_target
from impasto.models.layers import IMAGE
from impasto.runtime.plans.session import Compile, Session
from impasto.runtime.problem import FloatArray, Losses, Problem


class FusedPlan:
    """An `Evaluator` that runs the fused graph once an evaluation."""

    def __init__(self, problem: Problem, session: Session) -> None:
        """Take a session that `compile` made for a problem of the same structure and shape."""
        self._session = session
        self._terms = problem.objective.terms
        self._inputs = graph_inputs(problem)

    @staticmethod
    def compile(problem: Problem, compile: Compile) -> Session:
        """Export the problem's fused graph and compile it."""
        return compile(fused_graph(problem.objective, problem.weights, problem.shape))

    def evaluate(self, image: FloatArray) -> Losses:
        """Return losses and gradient, as `Evaluator.evaluate` says."""
        outputs = self._session.run({IMAGE: image}, self._inputs)
        return Losses({term: float(outputs[f"loss.{term}"]) for term in self._terms}, outputs[GRADIENT])


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
