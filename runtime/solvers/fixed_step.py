"""What solvers without a line search share: take a step, look, and go back from a failure."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import numpy as np

from impasto.models.conventions import FloatArray
from impasto.runtime.solvers.protocol import Trial, Trials
from impasto.runtime.solvers.recovery import Failures


class StepRule(Protocol):
    """Computes the iterates of one run."""

    def step(self, x: FloatArray, gradient: FloatArray, iteration: int, shrink: float) -> None:
        """Turn x in place into iterate number ``iteration`` (from 1), by ``shrink`` times the rule's own step.

        ``gradient`` is the one at x.
        """
        ...

    def restart(self) -> None:
        """Forget what was learnt from earlier gradients."""
        ...


def fixed_step(x: FloatArray, iterations: int, rule_for: Callable[[FloatArray], StepRule]) -> Trials:
    """Yield x, and then ``iterations`` iterates of the rule, or fewer if a gradient is zero.

    ``rule_for`` makes the rule for a run whose first gradient is the one given. After a failed evaluation x is the last
    good iterate again, the rule starts afresh, and from there on every step is half as long. x is overwritten.
    """
    failures = Failures("lower the learning rate or the weights")
    evaluation = yield Trial(x, 0)
    failures.passed(evaluation, 0)
    good, gradient = x.copy(), evaluation.gradient.copy()
    rule, shrink = rule_for(gradient), 1.0
    for iteration in range(1, iterations + 1):
        if not gradient.any():
            return
        rule.step(x, gradient, iteration, shrink)
        evaluation = yield Trial(x, iteration)
        if failures.passed(evaluation, iteration):
            np.copyto(good, x)
            np.copyto(gradient, evaluation.gradient)
        else:
            np.copyto(x, good)
            rule.restart()
            shrink /= 2
