"""L-BFGS with a strong Wolfe line search."""

from __future__ import annotations

import math
from collections.abc import Generator
from dataclasses import dataclass

import numpy as np

from impasto.models.conventions import FloatArray
from impasto.runtime.solvers.history import History
from impasto.runtime.solvers.protocol import (
    Evaluation,
    Trial,
    Trials,
    flat_copy,
    largest,
    overflow_fails,
    power_of_two_scale,
    require,
)
from impasto.runtime.solvers.recovery import Failures
from impasto.runtime.solvers.wolfe import Point, strong_wolfe

MIN_COSINE = 1e-6
"""Least s·y / |s||y| of a pair that is kept; below, float32 rounding of y may have decided its sign."""
MAX_STALLED = 10
"""Iterations without a new lowest loss after which the rest is rounding."""


@dataclass(frozen=True)
class LBFGS:
    """L-BFGS (Nocedal & Wright, "Numerical Optimization", 2nd ed., algorithm 7.5): vectors float32, scalars float64.

    The iterates do not depend on the loss's scale. Where torch.optim.LBFGS makes a first step of ``min(1, 1/|g|₁)·lr``,
    which vanishes or explodes with the scale, here the first trial moves the largest element by ``first_step``, in the
    units of x (one grey level in a 0–255 space by default; use 1/255 in a 0–1 space), and the line search corrects it.
    Later first trials are the quasi-Newton step.

    When a line search finds nothing lower, the pairs are dropped and steepest descent is tried once; when that fails
    too, when the gradient is zero, or after ten iterations without a new lowest loss, x is stationary to rounding and
    the solver ends. A failed evaluation shortens the step. Memory: 2·(min(history, iterations) + 1) + 6 vectors.

    Raises `impasto.errors.UsageError` for settings that cannot work.
    """

    iterations: int
    history: int = 20
    max_line_search: int = 25
    c1: float = 1e-4
    c2: float = 0.9
    first_step: float = 1.0

    def __post_init__(self) -> None:
        require(self.iterations >= 1, f"iterations is {self.iterations}: give at least 1")
        require(self.history >= 1, f"history is {self.history}: give at least 1")
        require(self.max_line_search >= 1, f"max_line_search is {self.max_line_search}: give at least 1")
        require(0 < self.c1 < self.c2 < 1, f"c1 is {self.c1} and c2 {self.c2}: give 0 < c1 < c2 < 1")
        require(0 < self.first_step < math.inf, f"first_step is {self.first_step}: give a positive length")

    def minimise(self, start: FloatArray) -> Trials:
        """Yield trials and be sent evaluations, as `impasto.runtime.solvers.protocol.Solver` describes."""
        x = flat_copy(start)
        failures = Failures("lower first_step or the weights")
        evaluation = yield Trial(x, 0)
        failures.passed(evaluation, 0)
        if not evaluation.gradient.any():
            return
        line = _Line(x, evaluation.gradient)
        loss = lowest = evaluation.loss * line.scale
        history = History(min(self.history, self.iterations), x.size)
        iteration, stalled, paired = 1, 0, False

        while iteration <= self.iterations and stalled < MAX_STALLED:
            history.direction(line.gradient, out=line.direction)
            found = yield from self._search(line, loss, None if paired else self.first_step, iteration, failures)
            if found is None:
                if len(history) == 0:
                    if failures.in_a_row:
                        failures.give_up(iteration)
                    return
                history.clear()
                continue
            loss = found
            line.pair(history.step, history.change)
            sy, ss, yy = history.curvature()
            if sy > MIN_COSINE * math.sqrt(ss * yy) > 0:
                history.keep()
                paired = True
            line.advance()
            stalled = 0 if loss < lowest else stalled + 1
            lowest = min(loss, lowest)
            iteration += 1

    def _search(
        self, line: _Line, loss: float, first_move: float | None, iteration: int, failures: Failures
    ) -> Generator[Trial, Evaluation, float | None]:
        """Search along the line; leave its trial where the step is to go and return the loss there, None if nowhere.

        The first trial is the direction's end, or moves the largest element by ``first_move``.
        """
        origin = Point(0.0, loss, line.slope(line.gradient))
        if not origin.slope < 0:
            return None  # the gradient is zero, or rounding has spoilt the direction
        first = 1.0 if first_move is None else first_move / largest(line.direction)
        search = strong_wolfe(origin, first, self.c1, self.c2, self.max_line_search)
        lowest, step = origin, next(search)
        while True:
            line.move(step)
            evaluation = yield Trial(line.trial, iteration)
            point = Point(step, math.inf, math.nan)
            if failures.passed(evaluation, iteration):
                line.receive(evaluation.gradient)
                point = Point(step, evaluation.loss * line.scale, line.slope(line.trial_gradient))
            try:
                step = search.send(point)
            except StopIteration as end:
                chosen: float | None = end.value
                break
            if point.loss < lowest.loss:
                # The search may come back to its lowest point.
                lowest = point
                np.copyto(line.kept_gradient, line.trial_gradient)
        if chosen is None or chosen == point.step:
            return None if chosen is None else point.loss
        line.move(chosen)
        np.copyto(line.trial_gradient, line.kept_gradient)
        return lowest.loss


class _Line:
    """The vectors of a line search: from x along the direction to a trial, with the scaled gradients at both."""

    def __init__(self, x: FloatArray, gradient: FloatArray) -> None:
        # Loss and gradient are used times a power of two: exact, and safe from the ends of float32's range.
        self.scale = power_of_two_scale(gradient)
        self.x, self.gradient = x, gradient * np.float32(self.scale)
        self.direction, self.trial = np.empty_like(x), np.empty_like(x)
        self.trial_gradient, self.kept_gradient = np.empty_like(x), np.empty_like(x)

    @overflow_fails
    def move(self, step: float) -> None:
        """Put the trial at that step."""
        np.multiply(self.direction, np.float32(step), out=self.trial)
        self.trial += self.x

    @overflow_fails
    def receive(self, gradient: FloatArray) -> None:
        """Take the trial's gradient."""
        np.multiply(gradient, np.float32(self.scale), out=self.trial_gradient)

    @overflow_fails
    def slope(self, gradient: FloatArray) -> float:
        """Return the slope, scaled loss per unit of step, where the scaled gradient is that."""
        return float(gradient @ self.direction)

    def pair(self, step: FloatArray, change: FloatArray) -> None:
        """Write the step to the trial, as x took it after rounding, and the gradient's change over it."""
        np.subtract(self.trial, self.x, out=step)
        np.subtract(self.trial_gradient, self.gradient, out=change)

    def advance(self) -> None:
        """Make the trial the point to go on from."""
        self.x, self.trial = self.trial, self.x
        self.gradient, self.trial_gradient = self.trial_gradient, self.gradient
