"""What solvers without a line search share: take a step, look, and go back from a failure."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from impasto.models.conventions import FloatArray
from impasto.runtime.scratch import like
from impasto.runtime.solvers.protocol import SolverState, Trial, Trials
from impasto.runtime.solvers.recovery import Failures
from impasto.runtime.solvers.vectors import assign, is_zero


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

    def state(self) -> SolverState:
        """Return what the rule holds, in its own memory."""
        ...

    def restore(self, state: SolverState) -> None:
        """Hold what that state says."""
        ...


def fixed_step(
    x: FloatArray, iterations: int, rule_for: Callable[[FloatArray], StepRule], resume: SolverState | None = None
) -> Trials:
    """Yield x, and then ``iterations`` iterates of the rule, or fewer if a gradient is zero.

    ``rule_for`` makes the rule for a run whose first gradient is the one given. After a failed evaluation x is the last
    good iterate again, the rule starts afresh, and from there on every step is half as long. x is overwritten. Every
    trial but the first has a state, from which ``resume`` goes on.
    """
    failures = Failures("lower the learning rate or the weights")
    good, gradient = like(x), like(x)
    rule: StepRule | None = None
    iteration, shrink = 0, 1.0
    if resume is not None:
        for name, vector in (("x", x), ("good", good), ("gradient", gradient)):
            assign(vector, resume.arrays[name])
        rule = rule_for(gradient)
        rule.restore(resume)
        iteration, shrink = resume.numbers["iteration"], resume.numbers["shrink"]
        failures.in_a_row = resume.numbers["failures"]

    def state() -> SolverState:
        assert rule is not None
        held = rule.state()
        numbers = {"iteration": iteration, "shrink": shrink, "failures": failures.in_a_row, **held.numbers}
        return SolverState(numbers, {"x": x, "good": good, "gradient": gradient, **held.arrays})

    while True:
        evaluation = yield Trial(x, iteration, None if rule is None else state)
        if failures.passed(evaluation, iteration):
            assign(good, x)
            assign(gradient, evaluation.gradient)
        else:
            assign(x, good)
            shrink /= 2
            if rule is not None:
                rule.restart()
        if iteration == iterations or is_zero(gradient):
            return
        if rule is None:
            rule = rule_for(gradient)
        iteration += 1
        rule.step(x, gradient, iteration, shrink)
