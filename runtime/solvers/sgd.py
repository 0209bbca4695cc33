"""Plain gradient descent."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from impasto.models.conventions import FloatArray
from impasto.runtime.solvers.fixed_step import fixed_step
from impasto.runtime.solvers.protocol import SolverState, Trials, flat_copy, overflow_fails, require
from impasto.runtime.solvers.vectors import chunks


@dataclass(frozen=True)
class SGD:
    """Gradient descent whose rate decays as in Keras's ``ExponentialDecay(staircase=False)``, in float32.

    ``x ← x − lr·rate^(k/decay_steps)·g`` for k = 0, 1, …, with rate = ``decay_rate``: keras.io's style-transfer
    example. The steps are proportional to the loss's scale. After a failed evaluation all later steps are halved. Ends
    early only where the gradient is exactly zero. Memory: 4 vectors.

    Raises `impasto.errors.UsageError` for settings that cannot work.
    """

    iterations: int
    learning_rate: float
    decay_rate: float = 0.96
    decay_steps: float = 100

    def __post_init__(self) -> None:
        require(self.iterations >= 1, f"iterations is {self.iterations}: give at least 1")
        require(0 < self.learning_rate < math.inf, f"learning_rate is {self.learning_rate}: give a positive number")
        require(0 < self.decay_rate <= 1, f"decay_rate is {self.decay_rate}: give 0 < rate ≤ 1")
        require(0 < self.decay_steps < math.inf, f"decay_steps is {self.decay_steps}: give a positive number")

    def minimise(self, start: FloatArray, resume: SolverState | None = None) -> Trials:
        """Yield trials and be sent evaluations, as `impasto.runtime.solvers.protocol.Solver` describes."""
        yield from fixed_step(flat_copy(start), self.iterations, lambda _: _Descent(self), resume)


class _Descent:
    def __init__(self, settings: SGD) -> None:
        self._settings = settings

    def restart(self) -> None:
        """Nothing: no gradient is remembered."""

    def state(self) -> SolverState:
        return SolverState({}, {})

    def restore(self, state: SolverState) -> None:
        """Nothing, for the same reason."""

    @overflow_fails
    def step(self, x: FloatArray, gradient: FloatArray, iteration: int, shrink: float) -> None:
        settings = self._settings
        rate = settings.learning_rate * settings.decay_rate ** ((iteration - 1) / settings.decay_steps)
        for part, slope in chunks(x, gradient):
            part -= slope * np.float32(rate * shrink)
