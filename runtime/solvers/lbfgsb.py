"""SciPy's L-BFGS-B, in rounds, as in the Keras book's listing."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from impasto.errors import UnavailableError
from impasto.models.conventions import FloatArray
from impasto.runtime.solvers.bounds import Bounds
from impasto.runtime.solvers.callback import ask_back
from impasto.runtime.solvers.protocol import Evaluation, SolverState, Trial, Trials, flat_copy, require
from impasto.runtime.solvers.recovery import Failures

Vector = NDArray[np.float64]
_Answer = tuple[float, Vector]


class _Question(NamedTuple):
    """A point to evaluate, in which iteration; ``opens`` is the number of the round that it is the first of, or None.

    A round starts anew from its first point, so that is all there is to know for going on from there.
    """

    point: Vector
    iteration: int
    opens: int | None


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

    def minimise(self, start: FloatArray, resume: SolverState | None = None) -> Trials:
        """Yield trials and be sent evaluations, as `impasto.runtime.solvers.protocol.Solver` describes.

        The first trial of each round but the first has a state: what SciPy holds within one cannot be taken up.
        """
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
        first = _Question(x.astype(np.float64), 0, 0)
        if resume is not None:
            first = _Question(resume.arrays["x"].copy(), resume.numbers["iteration"], resume.numbers["round"])
            failures.in_a_row = resume.numbers["failures"]
            good.restore(resume)

        def work(ask: Callable[[_Question], _Answer]) -> None:
            self._rounds(optimize, first, ask)

        with closing(ask_back(work)) as worker:
            point, iteration, opens = next(worker)

            def state() -> SolverState:
                numbers = {"iteration": iteration, "round": opens, "failures": failures.in_a_row, "loss": good.loss}
                return SolverState(numbers, {"x": point, "good": good.point, "gradient": good.gradient})

            while True:
                np.copyto(trial, point)
                evaluation = yield Trial(trial, iteration, state if opens else None)
                if failures.passed(evaluation, iteration):
                    good.take(point, evaluation)
                    answer = good.loss, good.gradient.copy()
                else:
                    answer = good.mirrored(point)
                try:
                    point, iteration, opens = worker.send(answer)
                except StopIteration:
                    return

    def _rounds(self, optimize: Any, first: _Question, ask: Callable[[_Question], _Answer]) -> None:
        """Call SciPy, in the worker's thread, from that question on."""
        x, iteration, opens = first  # the iteration under way; 0 is the start's evaluation
        box = None if self.bounds is None else optimize.Bounds(*self.bounds.arrays(x.size))

        def count(_: Vector) -> None:
            nonlocal iteration
            iteration += 1

        def function(point: Vector) -> _Answer:
            nonlocal iteration, opens
            answer = ask(_Question(point, iteration, opens))
            iteration, opens = max(iteration, 1), None
            return answer

        for number in range(opens or 0, self.rounds):
            opens = number
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
        self.gradient, self.point = np.zeros(size), np.zeros(size)

    def restore(self, state: SolverState) -> None:
        """Be the tangent of a state."""
        self.loss = state.numbers["loss"]
        np.copyto(self.gradient, state.arrays["gradient"])
        np.copyto(self.point, state.arrays["good"])

    def take(self, point: Vector, evaluation: Evaluation) -> None:
        """Remember an evaluation at that point."""
        self.loss = float(evaluation.loss)
        np.copyto(self.gradient, evaluation.gradient)
        np.copyto(self.point, point)

    def mirrored(self, point: Vector) -> _Answer:
        """Return a loss and gradient at that point by which the loss rises towards it, never falls."""
        rise = float(self.gradient @ (point - self.point))
        return (self.loss + rise, self.gradient.copy()) if rise > 0 else (self.loss - rise, -self.gradient)
