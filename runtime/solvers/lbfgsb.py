"""SciPy's L-BFGS-B, in rounds, as in the Keras book's listing."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from impasto.errors import UnavailableError
from impasto.models.conventions import FloatArray
from impasto.runtime.solvers.bounds import Bounds
from impasto.runtime.solvers.callback import ask_back
from impasto.runtime.solvers.protocol import Evaluation, Trial, Trials, flat_copy, require
from impasto.runtime.solvers.recovery import Failures

Vector = NDArray[np.float64]
_Question = tuple[Vector, int]
_Answer = tuple[float, Vector]


@dataclass(frozen=True)
class LBFGSB:
    """``rounds`` runs of SciPy's L-BFGS-B (Byrd, Lu, Nocedal & Zhu 1995) of about ``maxfun`` evaluations each.

    As in the Keras book's ``fmin_l_bfgs_b(loss, x, fprime=grads, maxfun=20)``: each round starts anew from the last
    one's x, with SciPy's own settings (10 pairs; its tolerances are absolute in the gradient, 1e-5, so the loss's scale
    matters), and ends after the iteration in which it passes ``maxfun``. Float64 inside, float32 trials. The
    iterations of all rounds are numbered on. Ends early when a round leaves x as it was.

    A failed evaluation is answered to SciPy's line search with the mirror image of the last good one's tangent, which
    rises as steeply as that fell: its interpolation then shortens the step.

    Raises `impasto.errors.UsageError` for settings that cannot work and, when run, `impasto.errors.UnavailableError` if
    SciPy is not installed.
    """

    rounds: int = 20
    maxfun: int = 20
    bounds: Bounds | None = None

    def __post_init__(self) -> None:
        require(self.rounds >= 1, f"rounds is {self.rounds}: give at least 1")
        require(self.maxfun >= 1, f"maxfun is {self.maxfun}: give at least 1")

    def minimise(self, start: FloatArray) -> Trials:
        """Yield trials and be sent evaluations, as `impasto.runtime.solvers.protocol.Solver` describes."""
        x = flat_copy(start)
        if self.bounds is not None:
            self.bounds.clamp(x)
        try:
            from scipy import optimize
        except ImportError as error:
            raise UnavailableError(
                "SciPy is not installed, and lbfgs-b needs it: pip install 'impasto[scipy]'"
            ) from error

        failures = Failures("lower the weights, or use the solver lbfgs")
        trial = np.empty_like(x)
        good = _Tangent(x.size)

        def work(ask: Callable[[_Question], _Answer]) -> None:
            self._rounds(optimize, x, ask)

        with closing(ask_back(work)) as worker:
            point, iteration = next(worker)
            while True:
                np.copyto(trial, point)
                evaluation = yield Trial(trial, iteration)
                if failures.passed(evaluation, iteration):
                    good.take(point, evaluation)
                    answer = good.loss, good.gradient.copy()
                else:
                    answer = good.mirrored(point)
                try:
                    point, iteration = worker.send(answer)
                except StopIteration:
                    return

    def _rounds(self, optimize: Any, start: FloatArray, ask: Callable[[_Question], _Answer]) -> None:
        """Call SciPy, in the worker's thread."""
        x = start.astype(np.float64)
        box = None if self.bounds is None else optimize.Bounds(*self.bounds.arrays(x.size))
        iteration = 0  # under way; 0 is the start's evaluation

        def count(_: Vector) -> None:
            nonlocal iteration
            iteration += 1

        def function(point: Vector) -> _Answer:
            nonlocal iteration
            answer = ask((point, iteration))
            iteration = max(iteration, 1)
            return answer

        for _ in range(self.rounds):
            before = x.copy()
            options = {"maxfun": self.maxfun}
            result = optimize.minimize(
                function, x, jac=True, method="L-BFGS-B", bounds=box, callback=count, options=options
            )
            x = result.x
            if np.array_equal(x, before):
                return


class _Tangent:
    """The last good evaluation, as a linear function."""

    def __init__(self, size: int) -> None:
        self.loss = 0.0
        self.gradient, self._point = np.zeros(size), np.zeros(size)

    def take(self, point: Vector, evaluation: Evaluation) -> None:
        """Remember an evaluation at that point."""
        self.loss = float(evaluation.loss)
        np.copyto(self.gradient, evaluation.gradient)
        np.copyto(self._point, point)

    def mirrored(self, point: Vector) -> _Answer:
        """Return a loss and gradient at that point by which the loss rises towards it, never falls."""
        rise = float(self.gradient @ (point - self._point))
        return (self.loss + rise, self.gradient.copy()) if rise > 0 else (self.loss - rise, -self.gradient)
