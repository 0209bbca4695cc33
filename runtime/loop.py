"""The loop: a solver descends an evaluator's loss, and tells what it sees, evaluation by evaluation."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Generator, Mapping
from contextlib import closing
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from impasto.runtime.problem import Evaluator, FloatArray
from impasto.runtime.solvers import Evaluation, Solver, SolverState
from impasto.runtime.solvers.vectors import assign, copied, is_finite

_EXPLODED = 1e3
"""A loss this many times an ordinary one counts as a failed evaluation: solvers go back and step shorter."""


@dataclass(frozen=True, slots=True)
class Step:
    """One evaluation of the loss and its gradient.

    ``iteration`` of the solver (0: the start) and ``evaluation`` (from 1) count over all stages, ``seconds`` since
    the loop began. ``loss`` is the sum of ``terms``, weighted; both are infinite or NaN where the evaluation failed.
    ``best`` tells whether this is the lowest loss of its stage so far. ``size`` is (width, height) of the stage.
    ``preview()`` makes the best picture so far, (H, W, 3) uint8 RGB; call it only when it is to be shown.
    """

    iteration: int
    evaluation: int
    seconds: float
    loss: float
    terms: Mapping[str, float]
    best: bool
    size: tuple[int, int]
    preview: Callable[[], NDArray[np.uint8]]


@dataclass(slots=True)
class Best:
    """The best iterate so far: the image, (1, 3, H, W) float32, and its losses."""

    image: FloatArray
    loss: float = math.inf
    terms: Mapping[str, float] | None = None


@dataclass(frozen=True, slots=True)
class LoopState:
    """What a loop goes on from, beside its `Best`: the evaluation last made, `Judge.ceiling`, and the solver's state.

    That evaluation is made once more, since the solver has not been told of it.
    """

    evaluation: int
    ceiling: float
    solver: SolverState


@dataclass(frozen=True, slots=True)
class Observation:
    """What the loop saw at one evaluation; counts are its own, from 0 and 1. ``loss`` is the sum of ``terms``.

    ``state`` makes the state from which the loop goes on after this evaluation, None where the solver has none. Call
    it, and use what it returns, before the next observation.
    """

    iteration: int
    evaluation: int
    loss: float
    terms: Mapping[str, float]
    improved: bool
    state: Callable[[], LoopState] | None = None


class Judge:
    """Tells the evaluations that failed: not finite, or exploded.

    An explosion is measured by the first loss, or by ``scale``, the size of an ordinary one, if that is larger.
    ``ceiling`` is the largest loss that passes, None before the first.
    """

    def __init__(self, scale: float, ceiling: float | None = None) -> None:
        self._scale = scale
        self.ceiling = ceiling

    def passes(self, loss: float, finite: bool) -> bool:
        """Tell whether an evaluation is good, by its loss and whether its gradient is finite; the start comes first."""
        if self.ceiling is None:
            self.ceiling = _EXPLODED * max(loss, self._scale) or math.inf
        return finite and math.isfinite(loss) and loss <= self.ceiling


def descend(
    evaluator: Evaluator,
    solver: Solver,
    best: Best,
    *,
    scale: float = 0.0,
    max_evaluations: int | None = None,
    resume: LoopState | None = None,
) -> Generator[Observation, None, None]:
    """Minimise from ``best.image``, keeping the best iterate in ``best`` after every evaluation.

    Closing the generator between evaluations stops it. Loss or gradient that are not finite, and losses that
    explode, are passed to the solver as failed; it steps shorter, and raises `DivergenceError` when that does not
    help. ``scale`` is the size of an ordinary loss (`Problem.scale`), against which one that starts near zero is
    measured: a start that is the optimum can only get worse, and that is no explosion.

    With ``resume``, the state of an observation, and ``best`` as it was then, what follows is what followed there, to
    the bit, if the evaluator gives the same bits for the same image.
    """
    shape = best.image.shape
    best.image = copied(best.image)  # from here on it is written to in place
    judge = Judge(scale, None if resume is None else resume.ceiling)
    with closing(solver.minimise(best.image.reshape(-1), None if resume is None else resume.solver)) as trials:
        trial = next(trials)
        count = 0 if resume is None else resume.evaluation - 1

        def state() -> LoopState:
            assert judge.ceiling is not None
            assert trial.state is not None
            return LoopState(count, judge.ceiling, trial.state())

        while True:
            losses = evaluator.evaluate(trial.x.reshape(shape))
            count += 1
            loss = losses.total
            passed = judge.passes(loss, is_finite(losses.gradient.reshape(-1)))
            improved = passed and loss < best.loss
            if improved:
                assign(best.image, trial.x)
                best.loss, best.terms = loss, losses.terms
            if resume is None or count > resume.evaluation:
                resumable = None if trial.state is None else state
                yield Observation(trial.iteration, count, loss, losses.terms, improved, resumable)
            if count == max_evaluations:
                return
            try:
                trial = trials.send(Evaluation(loss if passed else math.inf, losses.gradient.reshape(-1)))
            except StopIteration:
                return


def clock(elapsed: float = 0.0) -> Callable[[], float]:
    """Return a function that tells the seconds since now, after ``elapsed`` ones that count too."""
    start = time.perf_counter() - elapsed
    return lambda: time.perf_counter() - start
