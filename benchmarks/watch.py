"""Seeing what a backend evaluates, whatever backend it is: what a worker needs and the library does not."""

from __future__ import annotations

import time
from collections.abc import Callable

from impasto.runtime.backends.protocol import Backend, Plan
from impasto.runtime.problem import Evaluator, FloatArray, Losses, Problem

After = Callable[[FloatArray, float], None]


def watch(backend: Backend, after: After) -> None:
    """Have ``after`` called after each evaluation: with the image, valid until the next step, and the seconds taken."""
    prepare = backend.prepare

    def watched(problem: Problem, plan: Plan, memory: int | None = None) -> Evaluator:
        return _Watched(prepare(problem, plan, memory), after)

    backend.prepare = watched  # of this backend alone


class _Watched:
    def __init__(self, evaluator: Evaluator, after: After) -> None:
        self._evaluator = evaluator
        self._after = after

    def evaluate(self, image: FloatArray) -> Losses:
        start = time.perf_counter()
        losses = self._evaluator.evaluate(image)
        self._after(image, time.perf_counter() - start)
        return losses
