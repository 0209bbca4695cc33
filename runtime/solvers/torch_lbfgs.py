"""torch.optim.LBFGS without a line search, to the number, for the recipes that were tuned on it."""

from __future__ import annotations

import math
from collections.abc import Generator
from dataclasses import dataclass

import numpy as np

from impasto.models.conventions import FloatArray
from impasto.runtime.scratch import like
from impasto.runtime.solvers.bounds import Bounds
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
from impasto.runtime.solvers.vectors import are_equal, assign, chunks, copied, dot, largest

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

    def minimise(self, start: FloatArray, resume: SolverState | None = None) -> Trials:
        """Yield trials and be sent evaluations, as `impasto.runtime.solvers.protocol.Solver` describes.

        Every trial from the first iteration on has a state.
        """
        state = _State(flat_copy(start), self.bounds, self.history)
        if resume is None:
            state.open()
        else:
            state.restore(resume)
        while True:
            yield from self._step(state)
            state.clamp()
            if are_equal(state.x, state.opening):
                if state.failures.in_a_row:
                    state.failures.give_up(state.iterations)
                return
            state.open()

    def _step(self, state: _State) -> Generator[Trial, Evaluation, None]:
        """Do what one call of torch's ``step`` does, or what is left of it."""
        while True:
            passed = yield from state.evaluate()
            if state.moves == 0:
                if largest(state.gradient) <= self.tolerance_grad:
                    return
            elif passed and self._ends(state):
                return
            state.moves += 1
            first = state.turn()
            size = self.learning_rate
            if first:
                size *= min(1.0, 1.0 / state.gradient_sum()) * 0.5**state.failures.in_a_row
            if state.slope() > -self.tolerance_change:
                return
            state.move(size)
            if state.moves == self.max_iter:
                return

    def _ends(self, state: _State) -> bool:
        """Tell whether the step ends after a move that was evaluated."""
        max_eval = self.max_iter * 5 // 4 if self.max_eval is None else self.max_eval
        return (
            state.moves + 1 >= max_eval
            or largest(state.gradient) <= self.tolerance_grad
            or state.size * largest(state.direction) <= self.tolerance_change
            or abs(state.loss - state.before) < self.tolerance_change
        )


class _State:
    """What torch keeps between steps and ``moves``, how many of the step's are done.

    ``good`` is the last good iterate, whose loss and gradient these are.
    """

    _NUMBERS = ("loss", "before", "iterations", "moves", "size")

    def __init__(self, x: FloatArray, bounds: Bounds | None, pairs: int) -> None:
        self.x, self.good, self.opening = x, copied(x), like(x)
        self.loss, self.gradient = math.inf, like(x)
        self.before = math.inf  # the loss that the last move started from
        self.failures = Failures("lower learning_rate or the weights")
        self.iterations = self.moves = 0
        self._bounds = bounds
        self._history = History(pairs, x)
        self._restart = True
        self.size = 0.0
        self.direction, self._last_gradient = like(x), like(x)

    def save(self) -> SolverState:
        """Return everything."""
        pairs = self._history.state()
        numbers = {name: getattr(self, name) for name in self._NUMBERS}
        more = {"restart": self._restart, "failures": self.failures.in_a_row}
        return SolverState({**numbers, **more, **pairs.numbers}, {**self._vectors(), **pairs.arrays})

    def restore(self, state: SolverState) -> None:
        """Hold what a state says."""
        for name in self._NUMBERS:
            setattr(self, name, state.numbers[name])
        self._restart, self.failures.in_a_row = state.numbers["restart"], state.numbers["failures"]
        self._history.restore(state)
        for name, vector in self._vectors().items():
            assign(vector, state.arrays[name])

    def _vectors(self) -> dict[str, FloatArray]:
        return {
            "x": self.x,
            "good": self.good,
            "opening": self.opening,
            "gradient": self.gradient,
            "last_gradient": self._last_gradient,
            "direction": self.direction,
        }

    def open(self) -> None:
        """Begin a step of torch's."""
        self.clamp()
        assign(self.opening, self.x)
        self.moves = 0

    def clamp(self) -> None:
        """Project x onto the bounds, if there are any."""
        if self._bounds is not None:
            self._bounds.clamp(self.x)

    def evaluate(self) -> Generator[Trial, Evaluation, bool]:
        """Evaluate x and return whether that went well; if not, x is back at the last good iterate."""
        self.clamp()
        evaluation = yield Trial(self.x, self.iterations, self.save if self.iterations else None)
        if self.failures.passed(evaluation, self.iterations):
            self.loss = evaluation.loss
            assign(self.gradient, evaluation.gradient)
            assign(self.good, self.x)
            return True
        assign(self.x, self.good)
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
            for direction, step in chunks(self.direction, self._history.step):
                np.multiply(direction, np.float32(self.size), out=step)
            for after, before, change in chunks(self.gradient, self._last_gradient, self._history.change):
                np.subtract(after, before, out=change)
            if self._history.curvature()[0] > _MIN_CURVATURE:
                self._history.keep()
        self._history.direction(self.gradient, out=self.direction)
        assign(self._last_gradient, self.gradient)
        return first

    def gradient_sum(self) -> float:
        """Return the sum of the gradient's absolute values."""
        return sum(float(np.abs(part).sum()) for (part,) in chunks(self.gradient))

    @overflow_fails
    def slope(self) -> float:
        """Return the loss's derivative along the direction."""
        return dot(self.gradient, self.direction)

    @overflow_fails
    def move(self, size: float) -> None:
        """Go that multiple of the direction."""
        self.before, self.size = self.loss, size
        for x, direction in chunks(self.x, self.direction):
            x += direction * np.float32(size)
