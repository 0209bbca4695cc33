"""The sliced plan: slice by slice forward, the terms' kernels at the taps, slice by slice back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from impasto.export.forward import forward_graph
from impasto.export.objective import coefficients, style_target
from impasto.export.slices import Slice, cotangent, slice_graph
from impasto.models.conventions import pixel_space
from impasto.models.layers import IMAGE
from impasto.runtime.plans import kernels
from impasto.runtime.plans.session import Compile, Session
from impasto.runtime.problem import FloatArray, Losses, Problem


@dataclass(frozen=True, eq=False)
class SliceSession:
    """A slice and what runs its two graphs."""

    slice: Slice
    forward: Session
    gradient: Session


class SliceSessions(list[SliceSession]):
    """The slices of a problem, in the order of the data."""

    def close(self) -> None:
        """Free every session."""
        for piece in self:
            piece.forward.close()
            piece.gradient.close()


class SlicedPlan:
    """An `Evaluator` that runs a forward and a gradient graph for each tap, and kernels between them."""

    def __init__(self, problem: Problem, slices: SliceSessions) -> None:
        """Take sessions that `compile` made for a problem of the same structure and shape."""
        self._slices = slices
        self._objective = problem.objective
        self._targets = problem.targets
        positions = {tap: problem.positions(tap) for tap in self._objective.style}
        self._weights = coefficients(self._objective, problem.targets, positions, problem.shape)
        self._style = {tap: style_target(self._objective, problem.targets, tap, n) for tap, n in positions.items()}

    @staticmethod
    def compile(problem: Problem, compile: Compile) -> SliceSessions:
        """Export the problem's slices and compile them."""
        objective, weights = problem.objective, problem.weights
        graph = forward_graph(
            weights,
            objective.taps,
            pooling=objective.pooling,
            space=pixel_space(objective.convention),
            shape=problem.shape,
        )
        pieces = slice_graph(graph, graph.outputs)
        return SliceSessions(SliceSession(piece, compile(piece.forward), compile(piece.gradient)) for piece in pieces)

    def evaluate(self, image: FloatArray) -> Losses:
        """Return losses and gradient, as `Evaluator.evaluate` says."""
        tensors: dict[str, NDArray[Any]] = {IMAGE: image, **self._targets.calibration}
        for piece in self._slices:
            names = (*piece.slice.inputs, *piece.slice.parameters)
            tensors |= piece.forward.run({name: tensors[name] for name in names})
        # A run that explodes overflows here; the loop sees what is not finite and deals with it.
        with np.errstate(over="ignore", invalid="ignore"):
            terms, cotangents = self._terms(tensors)
        for piece in reversed(self._slices):
            inputs = {name: tensors[name] for name in piece.slice.residuals}
            inputs |= {cotangent(name): cotangents.pop(name) for name in piece.slice.outputs}
            for name, value in piece.gradient.run(inputs).items():
                _accumulate(cotangents, name.removeprefix(cotangent("")), value)
        return Losses(terms, cotangents[IMAGE])

    def _terms(self, tensors: dict[str, NDArray[Any]]) -> tuple[dict[str, float], dict[str, FloatArray]]:
        terms: dict[str, float] = {}
        cotangents: dict[str, FloatArray] = {}
        for tap in self._objective.content:
            weight = self._weights[f"content.{tap}.weight"]
            terms[f"content.{tap}"], seed = kernels.content(tensors[tap], self._targets.content[tap], weight)
            _accumulate(cotangents, tap, seed)
        for tap, target in self._style.items():
            weight = self._weights[f"style.{tap}.weight"]
            if self._objective.statistic(tap) == "covariance":
                means = self._targets.means[tap], self._weights[f"style.{tap}.mean.weight"]
                terms[f"style.{tap}"], seed = kernels.covariance(tensors[tap], target, weight, *means)
            else:
                terms[f"style.{tap}"], seed = kernels.style(tensors[tap], target, weight)
            _accumulate(cotangents, tap, seed)
        if self._objective.tv:
            form = self._objective.tv_form
            terms["tv"], seed = kernels.total_variation(tensors[IMAGE], self._weights["tv.weight"], form)
            _accumulate(cotangents, IMAGE, seed)
        return terms, cotangents


def _accumulate(cotangents: dict[str, FloatArray], tensor: str, value: FloatArray) -> None:
    known = cotangents.get(tensor)
    cotangents[tensor] = value if known is None else known + value
