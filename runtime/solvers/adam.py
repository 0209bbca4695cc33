"""Adam."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from impasto.models.conventions import FloatArray
from impasto.runtime.scratch import like
from impasto.runtime.solvers.bounds import Bounds
from impasto.runtime.solvers.fixed_step import fixed_step
from impasto.runtime.solvers.protocol import (
    SolverState,
    Trials,
    flat_copy,
    overflow_fails,
    require,
)
from impasto.runtime.solvers.vectors import assign, chunks, power_of_two_scale


@dataclass(frozen=True)
class Adam:
    """Adam (Kingma & Ba, arXiv:1412.6980) by the formula of ``torch.optim.Adam``, without its weight decay.

    ``m ← β₁m + (1−β₁)g``, ``v ← β₂v + (1−β₂)g²``, ``x ← x − lr/(1−β₁ᵗ) · m / (√(v/(1−β₂ᵗ)) + ε)``, in float32.
    Departure: ε is ``eps`` times the root mean square of the first gradient (torch: ``eps`` itself), so that the
    iterates do not depend on the loss's scale. Where gradients are near 1 the two are equal.

    ``decay`` holds ``(iterations, rate)`` pairs: once that many iterations are done, the learning rate is that, and the
    moments start afresh (the cs231n notebook, whose 3.0 falls to 0.1 so, makes a new optimiser there). With ``bounds``
    the start and every iterate are clamped; with ``bounds_until`` k only the iterates before number k (cs231n clamps
    before number 190 of 200). After a failed evaluation the moments start afresh too, and all later steps are halved.
    Ends early only where the gradient is exactly zero. Memory: 5 vectors.

    Raises `impasto.errors.UsageError` for settings that cannot work.
    """

    iterations: int
    learning_rate: float
    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8
    decay: tuple[tuple[int, float], ...] = ()
    bounds: Bounds | None = None
    bounds_until: int | None = None

    def __post_init__(self) -> None:
        require(self.iterations >= 1, f"iterations is {self.iterations}: give at least 1")
        require(0 < self.learning_rate < math.inf, f"learning_rate is {self.learning_rate}: give a positive number")
        require(0 <= self.beta1 < 1 and 0 <= self.beta2 < 1, f"betas are {self.beta1}, {self.beta2}: give 0 ≤ β < 1")
        require(0 < self.eps < math.inf, f"eps is {self.eps}: give a positive number")
        # From JSON the pairs come as lists.
        object.__setattr__(self, "decay", tuple((after, rate) for after, rate in self.decay))
        for after, rate in self.decay:
            require(after >= 1 and 0 < rate < math.inf, f"decay has {(after, rate)}: give (iterations ≥ 1, rate > 0)")
        starts = [after for after, _ in self.decay]
        require(starts == sorted(set(starts)), f"decay starts at {starts}: give increasing iterations")
        require(
            self.bounds_until is None or self.bounds is not None, "bounds_until without bounds: give both or neither"
        )

    def minimise(self, start: FloatArray, resume: SolverState | None = None) -> Trials:
        """Yield trials and be sent evaluations, as `impasto.runtime.solvers.protocol.Solver` describes."""
        x = flat_copy(start)
        self.clamp(x, 0)
        yield from fixed_step(x, self.iterations, lambda gradient: _Moments(self, gradient), resume)

    def clamp(self, x: FloatArray, iteration: int) -> None:
        """Clamp iterate number ``iteration`` in place, where it is to be."""
        if self.bounds is not None and (self.bounds_until is None or iteration < self.bounds_until):
            self.bounds.clamp(x)


class _Moments:
    """Adam's running moments, of gradients scaled by a power of two so that their squares stay in float32's range."""

    def __init__(self, settings: Adam, first: FloatArray) -> None:
        self._settings = settings
        self._rates = dict(settings.decay)
        self._rate = settings.learning_rate
        self._scale = np.float32(power_of_two_scale(first))
        self._m, self._v = like(first), like(first)
        self._steps = 0
        squares = sum(float(np.square(part * self._scale).sum(dtype=np.float64)) for (part,) in chunks(first))
        self._eps = settings.eps * math.sqrt(squares / first.size)

    def restart(self) -> None:
        for m, v in chunks(self._m, self._v):
            m.fill(0)
            v.fill(0)
        self._steps = 0

    def state(self) -> SolverState:
        numbers = {"rate": self._rate, "scale": float(self._scale), "steps": self._steps, "eps": self._eps}
        return SolverState(numbers, {"m": self._m, "v": self._v})

    def restore(self, state: SolverState) -> None:
        numbers = state.numbers
        self._rate, self._steps, self._eps = numbers["rate"], numbers["steps"], numbers["eps"]
        self._scale = np.float32(numbers["scale"])
        assign(self._m, state.arrays["m"])
        assign(self._v, state.arrays["v"])

    @overflow_fails
    def step(self, x: FloatArray, gradient: FloatArray, iteration: int, shrink: float) -> None:
        settings = self._settings
        if iteration - 1 in self._rates:
            self._rate = self._rates[iteration - 1]
            self.restart()
        self._steps += 1
        deviation = np.float32(math.sqrt(1 - settings.beta2**self._steps))
        rate = np.float32(shrink * self._rate / (1 - settings.beta1**self._steps))
        for point, slope, m, v in chunks(x, gradient, self._m, self._v):
            scaled = slope * self._scale
            denominator = np.square(scaled)
            denominator *= np.float32(1 - settings.beta2)
            v *= np.float32(settings.beta2)
            v += denominator
            scaled *= np.float32(1 - settings.beta1)
            m *= np.float32(settings.beta1)
            m += scaled
            np.sqrt(v, out=denominator)
            denominator /= deviation
            denominator += np.float32(self._eps)
            np.divide(m, denominator, out=scaled)
            scaled *= rate
            point -= scaled
        settings.clamp(x, iteration)
