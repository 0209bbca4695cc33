from __future__ import annotations

import math

import numpy as np
import pytest

from impasto.runtime.solvers.wolfe import ROUNDING, Point, strong_wolfe

C1, C2 = 1e-4, 0.9


def search(function, first, c2=C2, max_trials=25):
    """Run a search on step -> (loss, slope); return the step taken and the points tried."""
    origin = Point(0.0, *function(0.0))
    trials = strong_wolfe(origin, first, C1, c2, max_trials)
    tried = []
    step = next(trials)
    while True:
        tried.append(Point(step, *function(step)))
        try:
            step = trials.send(tried[-1])
        except StopIteration as end:
            return end.value, tried


def bumpy(seed):
    """A random smooth function that falls at 0 and grows at the end."""
    stream = np.random.default_rng(seed)
    waves, phases, heights = stream.uniform(0.2, 3, 4), stream.uniform(0, 6, 4), stream.normal(size=4)
    tilt = float(heights @ (waves * np.cos(phases))) + stream.uniform(0.1, 2)

    def function(t):
        loss = heights @ np.sin(waves * t + phases) - tilt * t + 0.05 * t**2
        slope = heights @ (waves * np.cos(waves * t + phases)) - tilt + 0.1 * t
        return float(loss), float(slope)

    return function


@pytest.mark.parametrize("first", [1e-4, 0.1, 1.0, 30.0, 1e4])
@pytest.mark.parametrize("c2", [0.1, 0.9])
def test_the_step_satisfies_the_strong_wolfe_conditions(first, c2):
    for seed in range(40):
        function = bumpy(seed)
        loss, slope = function(0.0)
        assert slope < 0
        step, tried = search(function, first, c2)
        there = function(step)
        assert there[0] <= loss + C1 * step * slope + ROUNDING * abs(loss), seed
        assert abs(there[1]) <= c2 * abs(slope), seed
        assert step == tried[-1].step


def test_a_good_first_step_costs_one_trial():
    step, tried = search(lambda t: ((t - 1) ** 2, 2 * (t - 1)), 1.2)
    assert (step, len(tried)) == (1.2, 1)


@pytest.mark.parametrize("factor", [2.0**-60, 2.0**60])
def test_the_loss_s_scale_changes_nothing(factor):
    for seed in range(20):
        function = bumpy(seed)
        plain = search(function, 5.0, 0.1)[1]
        scaled = search(lambda t, f=function: tuple(factor * value for value in f(t)), 5.0, 0.1)[1]
        assert [point.step for point in scaled] == [point.step for point in plain]


@pytest.mark.parametrize("edge", [1e-3, 0.3, 0.99])
def test_a_failing_region_is_left_by_shorter_steps(edge):
    def function(t):
        return (math.inf, math.nan) if t > edge else ((t - 1) ** 2, 2 * (t - 1))

    step, tried = search(function, 1.0)
    assert 0 < step <= edge
    assert function(step)[0] < 1
    # Each failure quarters the step.
    assert len(tried) <= 2 + math.log(1 / edge, 4)


def test_failures_beyond_a_good_point_still_end_at_a_lower_loss():
    # The first step is too short (the slope has hardly changed), the longer ones fail.
    def function(t):
        return (math.inf, math.nan) if t > 0.02 else ((t - 1) ** 2, 2 * (t - 1))

    step, tried = search(function, 0.01)
    assert 0.01 <= step <= 0.02
    assert len(tried) < 10


def test_noise_in_the_loss_is_no_obstacle():
    # Near its minimum a float32 loss is constant up to rounding; the slopes still say where the minimum is.
    stream = np.random.default_rng(0)
    for _ in range(50):
        steepness = 10 ** stream.uniform(-9, -6)

        def function(t, steepness=steepness):
            noise = stream.uniform(-1, 1) * 2.0**-23
            return 1 + steepness * ((t - 1) ** 2 - 1) + noise, 2 * steepness * (t - 1)

        step, tried = search(function, 1.3)
        assert (step, len(tried)) == (1.3, 1)


def test_the_search_ends_where_rounding_hides_every_difference():
    # A slope that promises a decrease that never shows.
    step, tried = search(lambda t: (1.0 + (1e-6 if t else 0), -1e-8), 1.0)
    assert step is None
    assert len(tried) == 1


def test_out_of_trials_the_lowest_point_is_taken():
    # Ever steeper: no step is flat enough.
    step, tried = search(lambda t: (-math.expm1(t / 1e3), -math.exp(t / 1e3) / 1e3), 1.0, max_trials=3)
    assert len(tried) == 3
    assert step == max(point.step for point in tried)


def test_no_step_if_nothing_is_lower():
    step, tried = search(lambda t: (0.0 if t == 0 else 1.0, -1.0), 1.0, max_trials=6)
    assert step is None
    assert len(tried) == 6
