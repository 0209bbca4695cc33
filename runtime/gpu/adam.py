"""Adam on the device."""

from __future__ import annotations

import math

import numpy as np

from impasto.models.conventions import FloatArray
from impasto.runtime.gpu.evaluator import DeviceEvaluator
from impasto.runtime.gpu.memory import Memory
from impasto.runtime.gpu.protocol import Address
from impasto.runtime.gpu.report import DeviceTrial, DeviceTrials
from impasto.runtime.kernels.solver import AdamVectors, SolverKernels
from impasto.runtime.solvers.adam import Adam
from impasto.runtime.solvers.bounds import Bounds
from impasto.runtime.solvers.protocol import flat_copy
from impasto.runtime.solvers.recovery import Failures
from impasto.runtime.solvers.vectors import power_of_two_scale


def minimise(
    settings: Adam, start: FloatArray, evaluator: DeviceEvaluator, kernels: SolverKernels, memory: Memory
) -> DeviceTrials:
    """Yield trials, each of them enqueued to the evaluator's image, and be sent evaluations.

    Start, trials and end are those of `Adam.minimise`: to the bit where ε rounds alike, since a step is the same
    float32 operations. Memory: 5 vectors. Raises `DivergenceError`, and `LimitError` where the memory is not to be had.
    """
    device, nbytes = evaluator.device, 4 * evaluator.size
    good, gradient, spare, m, v = (memory.reserve(name, nbytes) for name in ("good", "gradient", "spare", "m", "v"))
    box = _Box(settings.bounds, evaluator.size, memory)
    failures = Failures("lower the learning rate or the weights")
    x = flat_copy(start)
    settings.clamp(x, 0)
    device.upload(evaluator.image, x)
    # The slope along itself is the sum of squares.
    found = yield DeviceTrial(0, direction=evaluator.gradient, scaled=gradient)
    failures.passed(found, 0)
    largest, scale = found.report.largest, 1.0
    if largest > 0:
        scale = power_of_two_scale(np.array([largest], np.float32))
    eps = settings.eps * scale * math.sqrt(found.report.slope / evaluator.size)

    def restart() -> int:
        device.clear(m, nbytes)
        device.clear(v, nbytes)
        return 0

    rates, rate, shrink = dict(settings.decay), settings.learning_rate, 1.0
    origin, steps = evaluator.image, restart()
    for iteration in range(1, settings.iterations + 1):
        if largest == 0:
            return
        if iteration - 1 in rates:
            rate, steps = rates[iteration - 1], restart()
        steps += 1
        kernels.adam(
            AdamVectors(origin, good, evaluator.image, gradient, m, v),
            scale=scale,
            betas=(settings.beta1, settings.beta2),
            bias=math.sqrt(1 - settings.beta2**steps),
            eps=eps,
            rate=shrink * rate / (1 - settings.beta1**steps),
            bounds=box.sides if settings.bounds_until is None or iteration < settings.bounds_until else (0, 0),
            bound_size=box.block,
        )
        found = yield DeviceTrial(iteration, scaled=spare)
        if failures.passed(found, iteration):
            largest, origin = found.report.largest, evaluator.image
            gradient, spare = spare, gradient
        else:
            origin, steps = good, restart()
            shrink /= 2


class _Box:
    """Bounds on the device: the addresses of low and high, 0 where open, and how many elements share one value."""

    def __init__(self, bounds: Bounds | None, size: int, memory: Memory) -> None:
        low, high = (None, None) if bounds is None else (bounds.low, bounds.high)
        self.sides = self._side("low", low, memory), self._side("high", high, memory)
        self.block = size // len(low or high or (0,))

    @staticmethod
    def _side(name: str, values: tuple[float, ...] | None, memory: Memory) -> Address:
        if values is None:
            return 0
        side = np.array(values, np.float32)
        address = memory.reserve(name, side.nbytes)
        memory.upload(name, side)
        return address
