"""Adam on an emulated device, against the host's, whose every operation it repeats."""

from __future__ import annotations

import math

import numpy as np
import pytest

from impasto.errors import DivergenceError, UsageError
from impasto.runtime.gpu.loop import DeviceBest, descend_on_device
from impasto.runtime.solvers import Adam, Bounds, drive
from tests.emulation.host import compiler
from tests.runtime.gpu.functions import FunctionEvaluator, quadratic, rosenbrock

pytestmark = pytest.mark.skipif(compiler() is None, reason="no g++ to compile kernels for the host")


def points_of(solver, function, start, evaluations=1000):
    """The points evaluated on the device."""
    evaluator = FunctionEvaluator(function, start.size)
    best = DeviceBest(start.reshape(1, 1, 1, -1))
    list(descend_on_device(evaluator, solver, best, max_evaluations=evaluations))
    evaluator.device.close()
    return evaluator.points


def host_points(solver, function, start):
    points = []

    def noting(x):
        points.append(x.copy())
        return function(x)

    drive(solver, start, noting, 1000)
    return points


def normal(size, seed=0):
    return np.random.default_rng(seed).standard_normal(size).astype(np.float32)


@pytest.mark.parametrize("size", [1, 2, 45, 3001])
@pytest.mark.parametrize("betas", [(0.9, 0.999), (0.0, 0.5)])
def test_takes_the_host_s_steps(size, betas):
    solver, function = Adam(25, 0.05, beta1=betas[0], beta2=betas[1]), quadratic(size, 10)
    # ε alone may round otherwise, in the last bit: nothing beside denominators of 1 in 10⁸ of it.
    np.testing.assert_array_equal(
        points_of(solver, function, normal(size)), host_points(solver, function, normal(size))
    )


BOXES = {
    "both": Bounds((-0.5,), (0.75,)),
    "blocks": Bounds((-0.5, -0.1, 0.1), (2.0, 0.9, 0.2)),
    "low": Bounds(low=(0.1, 0.2, 1.5)),
    "high": Bounds(high=tuple(np.linspace(0.3, 1.2, 12).tolist())),
}


@pytest.mark.parametrize("until", [None, 7])
@pytest.mark.parametrize("box", BOXES)
def test_keeps_to_the_box_as_the_host_does(box, until):
    solver = Adam(20, 0.3, bounds=BOXES[box], bounds_until=until, decay=((10, 0.1),))
    function, start = quadratic(12, 10), 3 * normal(12)
    points = points_of(solver, function, start)
    np.testing.assert_array_equal(points, host_points(solver, function, start))
    low, high = BOXES[box].arrays(12)
    kept = [bool(((low <= point) & (point <= high)).all()) for point in points]
    assert all(kept if until is None else kept[:until])
    assert len(points) == 21


def test_a_box_that_does_not_divide_the_picture_is_refused():
    with pytest.raises(UsageError, match="bounds: 2 values for 5 elements"):
        points_of(Adam(3, 0.1, bounds=Bounds((0.0, 0.1))), quadratic(5), normal(5))


def test_the_rate_falls_and_the_moments_start_afresh_as_on_the_host():
    solver, start = Adam(30, 0.2, decay=((5, 0.05), (12, 0.5))), normal(9)
    np.testing.assert_array_equal(points_of(solver, rosenbrock, start), host_points(solver, rosenbrock, start))


@pytest.mark.parametrize("factor", [2.0**-80, 2.0**80])
def test_a_power_of_two_on_the_loss_changes_no_bit(factor):
    def scaled(x):
        loss, gradient = rosenbrock(x)
        return factor * loss, gradient * np.float32(factor)

    solver, start = Adam(30, 0.1, eps=1e-2), normal(25)
    np.testing.assert_array_equal(points_of(solver, rosenbrock, start), points_of(solver, scaled, start))


def test_goes_back_from_failures_as_the_host_does():
    function, solver, start = quadratic(8, 10), Adam(30, 0.2, decay=((6, 0.1),)), 3 * normal(8)
    failing = {4, 7, 8, 20}

    def flaky():
        calls = iter(range(1, 1000))

        def evaluate(x):
            count = next(calls)
            loss, gradient = function(x)
            if count not in failing:
                return loss, gradient
            return (math.nan, gradient) if count % 2 else (loss, gradient * np.float32(math.inf))

        return evaluate

    points = points_of(solver, flaky(), start)
    np.testing.assert_array_equal(points, host_points(solver, flaky(), start))
    # Adam's first step is the learning rate for each element: half of it from where it was good.
    assert np.allclose(np.abs(points[4] - points[2]), 0.1, rtol=1e-4)


def test_failures_everywhere_raise():
    with pytest.raises(DivergenceError, match="lower the learning rate"):
        points_of(Adam(100, 0.1), lambda x: (1.0 if x[0] == 1 else math.nan, x), np.ones(3, np.float32))


@pytest.mark.parametrize("size", [1, 8])
def test_a_gradient_of_zero_is_the_end(size):
    assert len(points_of(Adam(50, 0.1), lambda x: (0.5, np.zeros_like(x)), np.ones(size, np.float32))) == 1

    def flat(x):
        gradient = np.where(x > 0.75, x, 0)
        return float(gradient @ gradient) / 2, gradient

    # Steps of 0.1 from 1: at 0.7 there is no gradient any more.
    assert len(points_of(Adam(50, 0.1), flat, np.ones(size, np.float32))) == 4
