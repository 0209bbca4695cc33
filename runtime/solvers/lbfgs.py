"""L-BFGS with a strong Wolfe line search."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from impasto.models.conventions import FloatArray
from impasto.runtime.solvers.history import History
from impasto.runtime.solvers.protocol import Evaluation, Trial, Trials, flat_copy, largest, power_of_two_scale, require
from impasto.runtime.solvers.recovery import Failures
from impasto.runtime.solvers.wolfe import Point, strong_wolfe

_MIN_COSINE = 1e-6
"""Least s·y / |s||y| of a pair that is kept; below, float32 rounding of y may have decided its sign."""
_MAX_STALLED = 10
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
        # Everything below works on loss and gradient times this: exact, and safe from float32's ends.
        scale = power_of_two_scale(evaluation.gradient)
        gradient, loss = evaluation.gradient * np.float32(scale), evaluation.loss * scale
        trial, direction, kept = np.empty_like(x), np.empty_like(x), np.empty_like(x)
        history = History(min(self.history, self.iterations), x.size)
        lowest, stalled, first_pair = loss, 0, True

        iteration = 1
        while iteration <= self.iterations and stalled < _MAX_STALLED:
            history.direction(gradient, out=direction)
            slope = float(gradient @ direction)
            first = self.first_step / largest(direction) if first_pair else 1.0
            step = None
            if slope < 0:
                search = strong_wolfe(Point(0.0, loss, slope), first, self.c1, self.c2, self.max_line_search)
                low, tried = loss, next(search)
                while True:
                    np.multiply(direction, np.float32(tried), out=trial)
                    trial += x
                    evaluation = yield Trial(trial, iteration)
                    point = self._point(tried, evaluation, direction, scale, failures.passed(evaluation, iteration))
                    try:
                        following = search.send(point)
                    except StopIteration as end:
                        step = end.value
                        break
                    if point.loss < low:
                        # The search may come back to the lowest point, when its gradient will be gone.
                        low = point.loss
                        np.copyto(kept, evaluation.gradient)
                    tried = following
            if step is None:
                if len(history) == 0:
                    if failures.in_a_row:
                        failures.give_up(iteration)
                    return
                history.clear()
                continue
