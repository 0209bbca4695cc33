"""The tiled plan: loss and gradient of a whole picture, computed window by window, in memory that the window sets.

Style terms are functions of sums over positions, so two passes are enough and nothing is approximated. The first adds
up every tap's statistics over the interiors of windows (`impasto.export.windows`). They give the cotangent of a style
term at any position as a linear function of the features there,

    ∂L/∂F = 4c/N·(G - A)·F                               for  L = c·Σ(G - A)²,  G = F·Fᵀ/N,
    ∂L/∂F = 4c/N·(V - A)·(F - μ) + 2d/N·(μ - m)          for  L = c·Σ(V - A)² + d·Σ(μ - m)²,  V = F·Fᵀ/N - μμᵀ,

so that the second pass can seed each window's vector-Jacobian product on its interior alone, and add the gradients up.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from impasto.export.objective import Targets, coefficients, style_target
from impasto.export.precision import Precision
from impasto.export.windowed import GRADIENT, gradient_window, statistics_window, values_window, window_network
from impasto.export.windows import Window
from impasto.models.layers import IMAGE
from impasto.runtime.plans import kernels
from impasto.runtime.plans.session import Compile
from impasto.runtime.plans.tiling import Tiling
from impasto.runtime.plans.windows import Totals, WindowSession, allocate_levels, cut, forward
from impasto.runtime.problem import FloatArray, Losses, Problem
from impasto.runtime.scratch import Allocate, clear, in_memory, release

_STRIPE = 1 << 20
"""Pixels of which the total variation is taken at a time."""


@dataclass(frozen=True, eq=False)
class TiledSessions:
    """The sessions of a problem, in the order of the data.

    ``statistics`` has those pieces that have style taps or levels, ``values`` those whose content targets are computed
    again, ``gradient`` every one.
    """

    statistics: tuple[WindowSession, ...]
    values: tuple[WindowSession, ...]
    gradient: tuple[WindowSession, ...]

    def close(self) -> None:
        """Free every session."""
        for session in (*self.statistics, *self.values, *self.gradient):
            session.close()


class TiledPlan:
    """An `Evaluator` that runs graphs on the windows of a `Tiling`.

    ``allocate`` makes the arrays that are as large as the picture: its gradient, and for a filter bank its levels and
    theirs. An image that is mapped from a file is read window by window, and its pages are released.
    """

    def __init__(self, problem: Problem, sessions: TiledSessions, allocate: Allocate = in_memory) -> None:
        """Take sessions that `compile` made for a problem of the same structure and shape."""
        self._sessions = sessions
        self._objective = problem.objective
        self._targets = targets = problem.targets
        self._positions = {tap: problem.positions(tap) for tap in problem.objective.style}
        self._weights = coefficients(problem.objective, targets, self._positions, problem.shape)
        layouts = [session.layout for session in sessions.gradient]
        self._levels = allocate_levels(layouts, allocate)
        self._gradients = {layout.piece.source: allocate((1, 3, *layout.shape)) for layout in layouts}
        self._again = {session.layout.piece.source: session for session in sessions.values}
        self._content_levels = self._levels_of_content(targets, allocate)

    @staticmethod
    def compile(
        problem: Problem,
        compile: Compile,
        tiling: Tiling,
        precision: Precision = "fp32",
        target_precision: Precision = "fp32",
    ) -> TiledSessions:
        """Export the graphs of the problem's windows and compile them.

        ``precision`` is the network's, ``target_precision`` that by which targets are computed again.
        """
        objective, layouts = problem.objective, tiling.layouts
        parts = [layout.piece for layout in layouts]
        network = window_network(problem.weights, objective, parts, precision)
        target_network = window_network(problem.weights, objective, parts, target_precision)
        style = {tap: objective.statistic(tap) for tap in objective.style}
        again = [tap for tap in objective.content if tap not in problem.targets.content]
        statistics, values, gradient = [], [], []
        for layout in layouts:
            piece, window = layout.piece, layout.window
            if piece.levels or not style.keys().isdisjoint(piece.taps):
                graph = statistics_window(network, piece, window, style)
                statistics.append(WindowSession(layout, graph, compile))
            if not set(again).isdisjoint(piece.taps):
                values.append(WindowSession(layout, values_window(target_network, piece, window, again), compile))
            graph = gradient_window(network, piece, window, objective)
            gradient.append(WindowSession(layout, graph, compile))
        return TiledSessions(tuple(statistics), tuple(values), tuple(gradient))

    def evaluate(self, image: FloatArray) -> Losses:
        """Return losses and gradient, as `Evaluator.evaluate` says."""
        totals = Totals()
        calibration = self._targets.calibration
        forward(self._sessions.statistics, image, self._levels, calibration, totals.add)
        # A run that explodes overflows here; the loop sees what is not finite and deals with it.
        with np.errstate(over="ignore", invalid="ignore"):
            terms, factors = self._style_terms(totals)
            squares = self._backward(image, {**calibration, **factors})
            for tap in self._objective.content:
                terms[f"content.{tap}"] = self._weights[f"content.{tap}.weight"] * squares[tap]
            if self._objective.tv:
                terms["tv"] = self._total_variation(image)
        return Losses({term: terms[term] for term in self._objective.terms}, self._gradients[IMAGE])

    def _style_terms(self, totals: Totals) -> tuple[dict[str, float], dict[str, NDArray[Any]]]:
        """Return the style terms, and the factor and shift of each tap's cotangent."""
        terms: dict[str, float] = {}
        factors: dict[str, NDArray[Any]] = {}
        for tap, count in self._positions.items():
            target = style_target(self._objective, self._targets, tap, count)
            weight = self._weights[f"style.{tap}.weight"]
            difference = totals.products[tap] / count - target
            loss = 0.0
            if tap in totals.sums:
                mean_weight = self._weights[f"style.{tap}.mean.weight"]
                mean = totals.sums[tap] / count
                difference -= mean @ mean.T
                level = mean - self._targets.means[tap]
                loss = mean_weight * float(np.sum(level * level))
                shift = 2 * mean_weight / count * level - 4 * weight / count * (difference @ mean)
                factors[f"style.{tap}.shift"] = shift.astype(np.float32)
            terms[f"style.{tap}"] = loss + weight * float(np.sum(difference * difference))
            factors[f"style.{tap}.factor"] = (4 * weight / count * difference).astype(np.float32)
        for tap in self._objective.content:
            factors[f"content.{tap}.factor"] = np.asarray(2 * self._weights[f"content.{tap}.weight"], np.float32)
        return terms, factors

    def _backward(self, image: FloatArray, given: Mapping[str, NDArray[Any]]) -> dict[str, float]:
        """Add up the gradient of every piece's source, from the last to the first; return Σ(F - P)² of each tap."""
        squares = dict.fromkeys(self._objective.content, 0.0)
        for session in reversed(self._sessions.gradient):
            piece = session.layout.piece
            source = image if piece.source == IMAGE else self._levels[piece.source]
            gradient = self._gradients[piece.source]
            clear(gradient)
            for band in session.layout.bands():
                for window in band:
                    inputs = {**given, piece.source: cut(source, window), **self._content(session, window)}
                    for level in piece.levels:
                        inputs[f"cotangent.{level}"] = self._cotangent(session, window, level)
                    outputs = session.run(window, inputs)
                    gradient[(..., *window.box)] += outputs[GRADIENT]
                    for tap in squares.keys() & piece.taps:
                        squares[tap] += float(outputs[f"squares.{tap}"])
                release(source, gradient, *(self._gradients[level] for level in piece.levels))
                release(*self._targets.content.values(), *self._content_sources())
        return squares

    def _cotangent(self, session: WindowSession, window: Window, level: str) -> FloatArray:
        """Return a level's cotangent on a window, zero outside of its interior."""
        reach = session.layout.piece.reach[level]
        whole, own = session.interior(window, level)
        shape = (-(-side // reach.stride) for side in session.layout.window)
        cotangent = np.zeros((1, 3, *shape), np.float32)
        cotangent[(..., *own)] = self._gradients[level][(..., *whole)]
        return cotangent

    def _content(self, session: WindowSession, window: Window) -> dict[str, NDArray[Any]]:
        """Return the content targets on the interior of a window of a piece."""
        piece, targets = session.layout.piece, self._targets
        found: dict[str, NDArray[Any]] = {}
        for tap in targets.content.keys() & piece.taps:
            found[f"content.{tap}"] = targets.content[tap][(..., *session.interior(window, tap)[0])]
        if piece.source in self._again:
            source = self._content_source(piece.source)
            given = {**targets.calibration, piece.source: cut(source, window)}
            found |= self._again[piece.source].run(window, given)
        return found

    def _levels_of_content(self, targets: Targets, allocate: Allocate) -> dict[str, FloatArray]:
        """Return the levels of the content picture that the content targets are computed from."""
        wanted = [name for name in self._again if name != IMAGE]
        if not wanted or targets.content_image is None:
            return {}
        sessions = self._sessions.statistics
        makers = [index for index, each in enumerate(sessions) if not set(wanted).isdisjoint(each.layout.piece.levels)]
        sessions = sessions[: makers[-1] + 1]
        levels = allocate_levels([session.layout for session in sessions], allocate)
        forward(sessions, targets.content_image, levels, targets.calibration, Totals().add)
        return levels

    def _content_source(self, name: str) -> FloatArray:
        if name != IMAGE:
            return self._content_levels[name]
        assert self._targets.content_image is not None
        return self._targets.content_image

    def _content_sources(self) -> list[FloatArray]:
        return [self._content_source(name) for name in self._again]

    def _total_variation(self, image: FloatArray) -> float:
        """Return the total variation, and add its gradient.

        Stripes share a row with the next, by which alone they differ from a partition of the differences: what that row
        says on its own is taken back.
        """
        weight, form = self._weights["tv.weight"], self._objective.tv_form
        total, gradient = 0.0, self._gradients[IMAGE]
        height, width = image.shape[2:]
        rows = max(1, _STRIPE // width)
        for top in range(0, height, rows):
            stripe = slice(top, min(top + rows + 1, height))
            loss, slope = kernels.total_variation(image[:, :, stripe], weight, form)
            if top + rows < height:
                shared, excess = kernels.total_variation(image[:, :, stripe][:, :, -1:], weight, form)
                loss -= shared
                slope[:, :, -1:] -= excess
            total += loss
            gradient[:, :, stripe] += slope
            release(image, gradient)
        return total
