"""L-BFGS with a strong Wolfe line search."""

from __future__ import annotations

import math
from collections.abc import Callable, Generator
from dataclasses import asdict, dataclass

import numpy as np

from impasto.models.conventions import FloatArray
from impasto.runtime.scratch import like
from impasto.runtime.solvers.history import History
from impasto.runtime.solvers.protocol import (
    Evaluation,
    SolverState,
    Trial,
    Trials,
    flat_copy,
    overflow_fails,
    require,
)
from impasto.runtime.solvers.recovery import Failures
from impasto.runtime.solvers.vectors import assign, chunks, dot, is_zero, largest, power_of_two_scale
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

    def minimise(self, start: FloatArray, resume: SolverState | None = None) -> Trials:
        """Yield trials and be sent evaluations, as `impasto.runtime.solvers.protocol.Solver` describes.

        The first trial of each line search has a state.
        """
        x = flat_copy(start)
        failures = Failures("lower first_step or the weights")
        history = History(min(self.history, self.iterations), x)
        if resume is None:
            evaluation = yield Trial(x, 0)
            failures.passed(evaluation, 0)
            if is_zero(evaluation.gradient):
                return
            # Loss and gradient are used times a power of two: exact, and safe from the ends of float32's range.
            scale = power_of_two_scale(evaluation.gradient)
            line = _Line(x, scale)
            line.receive(evaluation.gradient, line.gradient)
            loss = evaluation.loss * line.scale
            at = _Progress(loss, lowest=loss)
        else:
            line = _Line(x, resume.numbers["scale"])
            for name, vector in line.vectors().items():
                assign(vector, resume.arrays[name])
            history.restore(resume)
            at = _Progress(**resume.numbers["at"])
            failures.in_a_row = resume.numbers["failures"]

        def state() -> SolverState:
            pairs = history.state()
            numbers = {"at": asdict(at), "failures": failures.in_a_row, "scale": line.scale, **pairs.numbers}
            return SolverState(numbers, {**line.vectors(), **pairs.arrays})

        aimed = resume is not None  # a state has the direction already
        while at.iteration <= self.iterations and at.stalled < MAX_STALLED:
            if not aimed:
                history.direction(line.gradient, out=line.direction)
            aimed = False
            found = yield from self._search(line, at, failures, state)
            if found is None:
                if len(history) == 0:
                    if failures.in_a_row:
                        failures.give_up(at.iteration)
                    return
                history.clear()
                continue
            line.pair(history.step, history.change)
            sy, ss, yy = history.curvature()
            if sy > MIN_COSINE * math.sqrt(ss * yy) > 0:
                history.keep()
                at.paired = True
            line.advance()
            at.advance(found)

    def _search(
        self, line: _Line, at: _Progress, failures: Failures, state: Callable[[], SolverState]
    ) -> Generator[Trial, Evaluation, float | None]:
        """Search along the line; leave its trial where the step is to go and return the loss there, None if nowhere.

        The first trial is the direction's end or, before there was a pair, moves the largest element by ``first_step``.
        """
        origin = Point(0.0, at.loss, line.slope(line.gradient))
        if not origin.slope < 0:
            return None  # the gradient is zero, or rounding has spoilt the direction
        first = 1.0 if at.paired else self.first_step / largest(line.direction)
        search = strong_wolfe(origin, first, self.c1, self.c2, self.max_line_search)
        lowest, step = origin, next(search)
        # From the same line the same search begins anew; what it learns from its trials is in no state.
        resumable: Callable[[], SolverState] | None = state
        while True:
            line.move(step)
            evaluation = yield Trial(line.trial, at.iteration, resumable)
            resumable = None
            point = Point(step, math.inf, math.nan)
            if failures.passed(evaluation, at.iteration):
                line.receive(evaluation.gradient, line.trial_gradient)
                point = Point(step, evaluation.loss * line.scale, line.slope(line.trial_gradient))
            try:
                step = search.send(point)
            except StopIteration as end:
                chosen: float | None = end.value
                break
            if point.loss < lowest.loss:
                # The search may come back to its lowest point.
                lowest = point
                assign(line.kept_gradient, line.trial_gradient)
        if chosen is None or chosen == point.step:
            return None if chosen is None else point.loss
        line.move(chosen)
        assign(line.trial_gradient, line.kept_gradient)
        return lowest.loss


@dataclass
class _Progress:
    """How far a run is: the loss at x and the lowest one, scaled, the iteration under way and what it goes by."""

    loss: float
    lowest: float
    iteration: int = 1
    stalled: int = 0
    paired: bool = False

    def advance(self, loss: float) -> None:
        """Go on to the next iteration, from a point of that loss."""
        self.loss = loss
        self.stalled = 0 if loss < self.lowest else self.stalled + 1
        self.lowest = min(loss, self.lowest)
        self.iteration += 1


class _Line:
    """The vectors of a line search: from x along the direction to a trial, with the scaled gradients at both."""

    def __init__(self, x: FloatArray, scale: float) -> None:
        self.x, self.scale = x, scale
        self.gradient, self.direction, self.trial = like(x), like(x), like(x)
        self.trial_gradient, self.kept_gradient = like(x), like(x)

    def vectors(self) -> dict[str, FloatArray]:
        """Return what a new search along the line begins with."""
        return {"x": self.x, "gradient": self.gradient, "direction": self.direction}

    @overflow_fails
    def move(self, step: float) -> None:
        """Put the trial at that step."""
        for direction, x, trial in chunks(self.direction, self.x, self.trial):
            np.multiply(direction, np.float32(step), out=trial)
            trial += x

    @overflow_fails
    def receive(self, gradient: FloatArray, into: FloatArray) -> None:
        """Take a gradient, scaled, as one of these vectors."""
        for found, scaled in chunks(gradient, into):
            np.multiply(found, np.float32(self.scale), out=scaled)

    @overflow_fails
    def slope(self, gradient: FloatArray) -> float:
        """Return the slope, scaled loss per unit of step, where the scaled gradient is that."""
        return dot(gradient, self.direction)

    def pair(self, step: FloatArray, change: FloatArray) -> None:
        """Write the step to the trial, as x took it after rounding, and the gradient's change over it."""
        for trial, x, into in chunks(self.trial, self.x, step):
            np.subtract(trial, x, out=into)
        for after, before, into in chunks(self.trial_gradient, self.gradient, change):
            np.subtract(after, before, out=into)

    def advance(self) -> None:
        """Make the trial the point to go on from."""
        self.x, self.trial = self.trial, self.x
        self.gradient, self.trial_gradient = self.trial_gradient, self.gradient
