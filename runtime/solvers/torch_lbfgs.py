"""torch.optim.LBFGS without a line search, to the number, for the recipes that were tuned on it."""

from __future__ import annotations

import math
from collections.abc import Generator
from dataclasses import dataclass

import numpy as np

from impasto.models.conventions import FloatArray
from impasto.runtime.solvers.bounds import Bounds
from impasto.runtime.solvers.history import History
from impasto.runtime.solvers.protocol import Evaluation, Trial, Trials, flat_copy, largest, overflow_fails, require
from impasto.runtime.solvers.recovery import Failures

_MIN_CURVATURE = 1e-10
"""torch's threshold on s·y for keeping a pair; absolute, as in torch."""


@dataclass(frozen=True)
class TorchLBFGS:
    """A loop of ``torch.optim.LBFGS(...).step(closure)``, with ``line_search_fn=None`` and the state kept.

    Fields and defaults are torch's; ``max_eval`` None means ``max_iter·5 // 4``. Each step first evaluates the point
    that it starts from, and leaves the last of its ``max_iter`` moves to the next step's first evaluation. The
    tolerances are absolute, and so is the first move, ``min(1, 1/|g|₁)·learning_rate`` times the gradient: unlike
    `LBFGS`, this solver depends on the loss's scale. With ``bounds`` the iterate is clamped in place as each evaluation
    begins, as in PyTorch's style-transfer tutorial; the solver's memory of its last step stays that of the unclamped
    one, which can make it explode.

    There is no budget of iterations: the driver stops it, or it ends when a whole step leaves x as it was. Departure:
    after a failed evaluation it goes back to the last good iterate, forgets its pairs, and starts again with half the
    first move (a quarter after two failures in a row, and so on). Memory: 2·(history + 1) + 7 vectors.

    Raises `impasto.errors.UsageError` for settings that cannot work.
    """

    learning_rate: float = 1.0
    max_iter: int = 20
    max_eval: int | None = None
    history: int = 100
    tolerance_grad: float = 1e-7
    tolerance_change: float = 1e-9
    bounds: Bounds | None = None

    def __post_init__(self) -> None:
        require(0 < self.learning_rate < math.inf, f"learning_rate is {self.learning_rate}: give a positive number")
        require(self.max_iter >= 1, f"max_iter is {self.max_iter}: give at least 1")
        require(self.max_eval is None or self.max_eval >= 1, f"max_eval is {self.max_eval}: give at least 1, or None")
        require(self.history >= 1, f"history is {self.history}: give at least 1")
        require(self.tolerance_grad >= 0, f"tolerance_grad is {self.tolerance_grad}: give 0 or more")
        require(self.tolerance_change >= 0, f"tolerance_change is {self.tolerance_change}: give 0 or more")

    def minimise(self, start: FloatArray) -> Trials:
        """Yield trials and be sent evaluations, as `impasto.runtime.solvers.protocol.Solver` describes."""
        state = _State(flat_copy(start), self.bounds, self.history)
        opening = np.full_like(state.x, math.nan)
        while True:
            state.clamp()
            if np.array_equal(state.x, opening):
                if state.failures.in_a_row:
                    state.failures.give_up(state.iterations)
                return
            np.copyto(opening, state.x)
            yield from self._step(state)

    def _step(self, state: _State) -> Generator[Trial, Evaluation, None]:
        """Do what one call of torch's ``step`` does."""
        max_eval = self.max_iter * 5 // 4 if self.max_eval is None else self.max_eval
        yield from state.evaluate()
        if largest(state.gradient) <= self.tolerance_grad:
            return
        for move in range(1, self.max_iter + 1):
            first = state.turn()
            size = self.learning_rate
            if first:
                size *= min(1.0, 1.0 / float(np.abs(state.gradient).sum())) * 0.5**state.failures.in_a_row
            if state.slope() > -self.tolerance_change:
                return
            before = state.loss
            state.move(size)
            if move == self.max_iter:
                return
            if not (yield from state.evaluate()):
                continue
            if move + 1 >= max_eval or largest(state.gradient) <= self.tolerance_grad:
                return
            if size * largest(state.direction) <= self.tolerance_change:
                return
            if abs(state.loss - before) < self.tolerance_change:
                return


class _State:
    """What torch keeps between steps, and the last good iterate, whose loss and gradient these are."""

    def __init__(self, x: FloatArray, bounds: Bounds | None, pairs: int) -> None:
        self.x, self.good = x, x.copy()
        self.loss, self.gradient = math.inf, np.empty_like(x)
        self.failures = Failures("lower learning_rate or the weights")
        self.iterations = 0
        self._bounds = bounds
        self._history = History(pairs, x.size)
        self._restart = True
        self._size = 0.0
        self.direction, self._last_gradient = np.empty_like(x), np.empty_like(x)

    def clamp(self) -> None:
        """Project x onto the bounds, if there are any."""
        if self._bounds is not None:
            self._bounds.clamp(self.x)

    def evaluate(self) -> Generator[Trial, Evaluation, bool]:
        """Evaluate x and return whether that went well; if not, x is back at the last good iterate."""
        self.clamp()
        evaluation = yield Trial(self.x, self.iterations)
        if self.failures.passed(evaluation, self.iterations):
            self.loss = evaluation.loss
            np.copyto(self.gradient, evaluation.gradient)
            np.copyto(self.good, self.x)
            return True
        np.copyto(self.x, self.good)
        self._restart = True
        return False

    @overflow_fails
    def turn(self) -> bool:
        """Take in the last move and find the next direction; return whether it is a first one, by the gradient only."""
        self.iterations += 1
        first = self._restart
        if first:
            self._history.clear()
            self._history.scale = 1.0
            self._restart = False
        else:
            np.multiply(self.direction, np.float32(self._size), out=self._history.step)
            np.subtract(self.gradient, self._last_gradient, out=self._history.change)
            if self._history.curvature()[0] > _MIN_CURVATURE:
                self._history.keep()
        self._history.direction(self.gradient, out=self.direction)
        np.copyto(self._last_gradient, self.gradient)
        return first

    @overflow_fails
    def slope(self) -> float:
        """Return the loss's derivative along the direction."""
        return float(self.gradient @ self.direction)

    @overflow_fails
    def move(self, size: float) -> None:
        """Go that multiple of the direction."""
        self._size = size
        self.x += self.direction * np.float32(size)
