"""L-BFGS on the device: the host decides, by a report an evaluation, and sees no vector."""

from __future__ import annotations

import math
from collections.abc import Generator

import numpy as np

from impasto.models.conventions import FloatArray
from impasto.runtime.gpu.evaluator import DeviceEvaluator
from impasto.runtime.gpu.history import DeviceHistory
from impasto.runtime.gpu.memory import Memory
from impasto.runtime.gpu.report import DeviceEvaluation, DeviceTrial, DeviceTrials
from impasto.runtime.kernels.solver import SolverKernels
from impasto.runtime.solvers.lbfgs import LBFGS, MAX_STALLED
from impasto.runtime.solvers.recovery import Failures
from impasto.runtime.solvers.vectors import power_of_two_scale
from impasto.runtime.solvers.wolfe import Point, strong_wolfe


def minimise(
    settings: LBFGS, start: FloatArray, evaluator: DeviceEvaluator, kernels: SolverKernels, memory: Memory
) -> DeviceTrials:
    """Yield trials, each of them enqueued to the evaluator's image, and be sent evaluations.

    Start, trials and end are those of `LBFGS.minimise` but for rounding, with one exception. The new direction and the
    first trial along it are enqueued before the host knows the slope there. If that turns out not to be negative, the
    trial was the line's origin once more, and the evaluation is not used. Memory: 2·(min(history, iterations) + 1) + 5
    vectors. Raises `DivergenceError`, and `LimitError` where the memory is not to be had.
    """
    line = _Line(evaluator, kernels, memory)
    history = DeviceHistory(kernels, min(settings.history, settings.iterations))
    failures = Failures("lower first_step or the weights")
    evaluator.device.upload(evaluator.image, start)
    found = yield DeviceTrial(0)
    failures.passed(found, 0)
    if found.report.largest == 0:
        return
    line.begin(found.report.largest)
    loss = lowest = found.loss * line.scale
    iteration, stalled = 1, 0

    while True:
        history.aim(line.gradient, line.direction, settings.first_step)
        reached = yield from _search(settings, line, history, loss, iteration, failures)
        if reached is None:
            if len(history) == 0:
                if failures.in_a_row:
                    failures.give_up(iteration)
                return
            history.clear()
            continue
        loss = reached
        stalled = 0 if loss < lowest else stalled + 1
        lowest = min(loss, lowest)
        iteration += 1
        if iteration > settings.iterations or stalled == MAX_STALLED:
            return
        history.add(line.trial, line.x, line.trial_gradient, line.gradient)
        line.advance()


def _search(
    settings: LBFGS, line: _Line, history: DeviceHistory, loss: float, iteration: int, failures: Failures
) -> Generator[DeviceTrial, DeviceEvaluation, float | None]:
    """Search along the line; leave its trial where the step is to go and return the loss there, None if nowhere."""
    line.move(None)
    found = yield line.there(iteration)
    history.learn(found.report.kept)
    origin = Point(0.0, loss, found.report.origin_slope)
    if not origin.slope < 0:
        return None  # the gradient is zero, or rounding has spoilt the direction
    search = strong_wolfe(origin, found.report.first_step, settings.c1, settings.c2, settings.max_line_search)
    lowest, step = origin, next(search)
    while True:
        point = Point(step, math.inf, math.nan)
        if failures.passed(found, iteration):
            point = Point(step, found.loss * line.scale, found.report.slope)
        try:
            step = search.send(point)
        except StopIteration as end:
            chosen: float | None = end.value
            break
        if point.loss < lowest.loss:
            # The search may come back to its lowest point.
            lowest = point
            line.swap_kept()
        line.move(step)
        found = yield line.there(iteration)
    if chosen is None or chosen == point.step:
        return None if chosen is None else point.loss
    line.move(chosen)
    line.swap_kept()
    return lowest.loss


class _Line:
    """The vectors of a line search: from x along the direction to the trial, with the scaled gradients at both."""

    def __init__(self, evaluator: DeviceEvaluator, kernels: SolverKernels, memory: Memory) -> None:
        self._evaluator, self._kernels = evaluator, kernels
        self._nbytes = 4 * evaluator.size
        self.trial = evaluator.image
        self.x = memory.reserve("x", self._nbytes)
        self.direction = memory.reserve("direction", self._nbytes)
        self.gradient = memory.reserve("gradient", self._nbytes)
        self.trial_gradient = memory.reserve("trial gradient", self._nbytes)
        self._kept_gradient = memory.reserve("kept gradient", self._nbytes)
        self.scale = 1.0

    def begin(self, largest: float) -> None:
        """Make the trial the line's origin, and scale by that largest element of the gradient there."""
        # Loss and gradient are used times a power of two: exact, and safe from the ends of float32's range.
        self.scale = power_of_two_scale(np.array([largest], np.float32))
        self._kernels.receive(self._evaluator.gradient, self.scale, 0, self.gradient)
        self._evaluator.device.copy(self.x, self.trial, self._nbytes)

    def move(self, step: float | None) -> None:
        """Put the trial at that step, or at the first one."""
        self._kernels.move(self.x, self.direction, step, self.trial)

    def there(self, iteration: int) -> DeviceTrial:
        """Ask for the gradient and the slope at the trial."""
        return DeviceTrial(iteration, self.scale, self.direction, self.trial_gradient)

    def swap_kept(self) -> None:
        """Put the trial's gradient aside, or fetch it from there."""
        self.trial_gradient, self._kept_gradient = self._kept_gradient, self.trial_gradient

    def advance(self) -> None:
        """Go on from the trial, which x has become."""
        self.gradient, self.trial_gradient = self.trial_gradient, self.gradient
