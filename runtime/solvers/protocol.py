"""How a solver and whoever evaluates the objective talk: by reverse communication.

A solver never calls the objective. `Solver.minimise` is a generator that yields points to evaluate (`Trial`) and is
sent what was found there (`Evaluation`); whoever drives it owns the evaluations, shows progress, keeps the best
iterate, and may stop at any time with ``generator.close()``. `drive` is the smallest such driver.

A driver that finds a loss or a gradient not finite, or a loss that exploded, sends ``loss=math.inf``. Solvers answer
with a shorter step from a point that was good and raise `impasto.errors.DivergenceError` after
`impasto.runtime.solvers.recovery.MAX_FAILURES` such evaluations in a row, or at once if the start is such a point.

A run can be left and taken up in another process: `Trial.state` is what `Solver.minimise` needs to go on from there.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Mapping
from contextlib import closing
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from impasto.errors import UsageError
from impasto.models.conventions import FloatArray
from impasto.runtime.scratch import like
from impasto.runtime.solvers.vectors import assign


@dataclass(frozen=True, slots=True)
class SolverState:
    """What a solver holds at a trial: ``numbers``, JSON's types, and ``arrays``, float32 and float64 of any shape.

    The arrays of a state that a solver gives are its own memory, valid until the next send. Those of a state that it
    is given are read one after the other, each once, and may be made as they are asked for.
    """

    numbers: Mapping[str, Any]
    arrays: Mapping[str, NDArray[Any]]


@dataclass(frozen=True, slots=True)
class Trial:
    """A point to evaluate: ``x``, flat float32, valid (and not to be written to) until the next send.

    ``iteration`` is 0 for the start; the trials of one line search share theirs. ``state`` makes the state from which
    the solver yields this trial again, with the same bits, and then all that follow; None where it has none, such as
    amid a line search. It is to be called before the next send.
    """

    x: FloatArray
    iteration: int
    state: Callable[[], SolverState] | None = None


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What was found at a trial: the loss, and the flat float32 gradient of the trial's size.

    The gradient needs to be valid only until the next trial: solvers copy what they keep. A loss that is not finite
    says that the trial failed, and then the gradient is not read.
    """

    loss: float
    gradient: FloatArray


Trials = Generator[Trial, Evaluation, None]

overflow_fails = np.errstate(over="ignore", invalid="ignore")
"""Decorates arithmetic that may overflow when a run explodes: no warning, the next evaluation fails and says so."""


class Solver(Protocol):
    """The settings of a solver: a frozen dataclass, checked when made, JSON-able by `dataclasses.asdict`."""

    def minimise(self, start: FloatArray, resume: SolverState | None = None) -> Trials:
        """Yield trials, the start first; return when stationary to rounding or at the end of the own budget.

        ``start`` is float32 of any shape, and is left as it is. Where it is kept, in memory or in a mapped file, the
        solver keeps its own vectors (`impasto.runtime.solvers.vectors`). With ``resume``, a trial's state from a run of
        the same settings and size, that trial comes first and only the size of ``start`` counts. Raises
        `impasto.errors.DivergenceError`.
        """
        ...


def drive(
    solver: Solver, start: FloatArray, function: Callable[[FloatArray], tuple[float, FloatArray]], evaluations: int
) -> tuple[FloatArray, float, int]:
    """Minimise ``function`` (flat x to loss and flat gradient) with at most that many evaluations, at least one.

    Returns the best point, its loss, and the number of evaluations made. Evaluations with anything not finite are
    passed on as failed. Raises `impasto.errors.DivergenceError`.
    """
    require(evaluations >= 1, f"evaluations is {evaluations}: give at least 1")
    best, best_loss, count = np.array(start, dtype=np.float32).reshape(-1), math.inf, 0
    with closing(solver.minimise(start)) as trials:
        trial = next(trials)
        while True:
            loss, gradient = function(trial.x)
            count += 1
            if not (math.isfinite(loss) and np.isfinite(gradient).all()):
                loss = math.inf
            if loss < best_loss:
                best_loss = loss
                np.copyto(best, trial.x)
            if count == evaluations:
                break
            try:
                trial = trials.send(Evaluation(loss, gradient))
            except StopIteration:
                break
    return best, best_loss, count


def require(condition: bool, complaint: str) -> None:
    """Raise `impasto.errors.UsageError` with that complaint unless the condition holds."""
    if not condition:
        raise UsageError(complaint)


def flat_copy(start: FloatArray) -> FloatArray:
    """Return a flat, contiguous float32 copy of a start, kept where that is.

    Raises `impasto.errors.UsageError` if it is empty.
    """
    require(start.size > 0, "the start has no elements: give at least 1")
    x = like(start, (start.size,))
    assign(x, start)
    return x
