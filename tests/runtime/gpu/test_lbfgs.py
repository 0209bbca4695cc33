"""L-BFGS on an emulated device, against the host's."""

from __future__ import annotations

import math

import numpy as np
import pytest

from impasto.errors import DivergenceError
from impasto.runtime.gpu.loop import DeviceBest, descend_on_device
from impasto.runtime.kernels.solver import REPORT_HEAD
from impasto.runtime.solvers import LBFGS, drive
from impasto.runtime.solvers.recovery import MAX_FAILURES
from tests.emulation.host import compiler
from tests.runtime.gpu.functions import CountingDevice, FunctionEvaluator, quadratic, rosenbrock, view

pytestmark = pytest.mark.skipif(compiler() is None, reason="no g++ to compile kernels for the host")


def run(solver, function, start, evaluations, device=None):
    """Descend on a device; return the evaluator, what was observed, and the best."""
    evaluator = FunctionEvaluator(function, start.size, device)
    best = DeviceBest(start.reshape(1, 1, 1, -1))
    seen = list(descend_on_device(evaluator, solver, best, max_evaluations=evaluations))
    evaluator.device.close()
    return evaluator, seen, best


def host_points(solver, function, start, evaluations):
    points = []

    def noting(x):
        points.append(x.copy())
        return function(x)

    return points, drive(solver, start, noting, evaluations)


def normal(size, seed=0):
    return np.random.default_rng(seed).standard_normal(size).astype(np.float32)


@pytest.mark.parametrize(
    ("function", "start", "history"),
    [
        (quadratic(1), normal(1), 20),
        (quadratic(2), normal(2), 1),
        (quadratic(97), 3 * normal(97), 20),
        (quadratic(2500, 10), normal(2500), 4),
        (rosenbrock, normal(10), 3),
        (rosenbrock, normal(105) / 2, 20),
    ],
)
def test_evaluates_the_points_that_the_host_does(function, start, history):
    solver = LBFGS(100, history=history, first_step=0.1)
    points, _ = host_points(solver, function, start, 12)
    evaluator, seen, _ = run(solver, function, start, len(points))
    assert [observation.evaluation for observation in seen] == list(range(1, len(points) + 1))
    # Sums are float32's on the host and float64's here: directions differ by some 1e-7 of their size, which the
    # curvatures, up to 1 : 100 (and worse in Rosenbrock's valley), amplify from step to step.
    for point, other in zip(evaluator.points, points, strict=True):
        assert np.abs(point - other).max() <= 1e-3 * max(1, np.abs(other).max())
    for point, other in zip(evaluator.points[:4], points, strict=False):
        assert np.abs(point - other).max() <= 1e-5 * max(1, np.abs(other).max())


@pytest.mark.parametrize("history", [3, 20])
@pytest.mark.parametrize("condition", [1.0, 1e2])
def test_quadratics_are_solved_to_rounding(condition, history):
    function, start = quadratic(50, condition), normal(50)
    solver = LBFGS(1000, history=history, first_step=0.1)
    _, seen, best = run(solver, function, start, 400)
    # Float32 x near 1 is off by 6e-8 at best, so losses of 50 · (6e-8)² / 2 ≈ 1e-13 are what can be had.
    assert best.loss < 1e-11
    assert function(best.image.reshape(-1))[0] == best.loss
    # The end is noticed: by a zero gradient, a line without descent, or ten iterations that lower nothing.
    assert len(seen) < 400


@pytest.mark.parametrize("size", [2, 30])
def test_as_low_as_the_host_gets(size):
    start = np.tile(np.float32([-1.2, 1.0]), size)[:size]
    solver = LBFGS(300, first_step=0.1)
    _, seen, best = run(solver, rosenbrock, start, 300)
    _, (_, loss, _) = host_points(solver, rosenbrock, start, 300)
    # Both end at a minimum (30 has two: 0, and 3.98… that this start leads to), up to rounding.
    assert best.loss == pytest.approx(loss, rel=1e-3, abs=1e-5)
    # About one evaluation an iteration.
    assert len(seen) <= 1.5 * seen[-1].iteration


@pytest.mark.parametrize("factor", [2.0**-60, 2.0**60, 1e-8, 1e8])
def test_the_loss_s_scale_changes_only_rounding(factor):
    start = normal(60)

    def scaled(x):
        loss, gradient = rosenbrock(x)
        return factor * loss, gradient * np.float32(factor)

    plain, other = (run(LBFGS(100), function, start, 40)[0].points for function in (rosenbrock, scaled))
    if factor in (2.0**-60, 2.0**60):
        # Powers of two round nothing.
        np.testing.assert_array_equal(plain, other)
    for one, another in zip(plain[:10], other[:10], strict=True):
        assert np.abs(one - another).max() < 1e-3


def test_the_first_trial_moves_the_largest_element_by_first_step():
    for size in (1, 30):
        start = np.full(size, -7, np.float32)
        first, second = run(LBFGS(5, first_step=0.25), quadratic(size), start, 2)[0].points
        assert np.abs(second - first).max() == pytest.approx(0.25, rel=1e-5)


def test_one_download_an_evaluation_and_one_for_the_picture():
    device = CountingDevice()
    evaluator, seen, _ = run(LBFGS(50, history=3), rosenbrock, normal(10), 60, device)
    assert device.downloads == len(evaluator.points) + 1 == len(seen) + 1


@pytest.mark.parametrize("size", [1, 8])
def test_a_start_without_gradient_ends_at_once(size):
    seen = run(LBFGS(50), lambda x: (0.5, np.zeros_like(x)), np.ones(size, np.float32), 50)[1]
    assert len(seen) == 1


def test_a_point_without_gradient_is_the_end():
    def flat_bottomed(x):
        away = np.maximum(np.abs(x) - 1, 0) * np.sign(x)
        return 0.5 * float(away @ away), away

    evaluator, seen, best = run(LBFGS(50, first_step=1.0), flat_bottomed, np.full(4, 3, np.float32), 50)
    assert best.loss == 0
    # There it looks along the direction, and along steepest descent, which both are none: it stays where it is.
    last = [observation.loss for observation in seen].index(0.0)
    assert len(seen) == last + 3
    np.testing.assert_array_equal(evaluator.points[-3:], [best.image.reshape(-1)] * 3)


class _Spoiling(CountingDevice):
    """Says at some direction that it does not descend."""

    def __init__(self, which):
        super().__init__()
        self._left = which

    def kernel(self, source, entry):
        kernel = super().kernel(source, entry)
        if entry != "aim":
            return kernel

        def aim(grid, block, *arguments):
            kernel(grid, block, *arguments)
            self._left -= 1
            if self._left == 0:
                report = view(arguments[-1], len(REPORT_HEAD), np.float64)
                report[REPORT_HEAD.index("origin_slope")] = math.nan
                report[REPORT_HEAD.index("first_step")] = 0

        return aim


def test_a_direction_that_rounding_has_spoilt_costs_an_evaluation_and_the_pairs():
    function, start = quadratic(20), normal(20)
    evaluator, seen, best = run(LBFGS(200), function, start, 200, _Spoiling(6))
    losses = [observation.loss for observation in seen]
    unused = next(i for i in range(1, len(losses)) if losses[i] == losses[i - 1])
    assert not seen[unused].improved
    np.testing.assert_array_equal(evaluator.points[unused], evaluator.points[unused - 1])
    # Then steepest descent: the step is along the gradient there.
    moved = (evaluator.points[unused + 1] - evaluator.points[unused]).astype(np.float64)
    gradient = function(evaluator.points[unused])[1]
    assert moved @ gradient <= -0.99999 * np.linalg.norm(moved) * np.linalg.norm(gradient)
    assert seen[unused + 1].iteration == seen[unused].iteration
    assert best.loss < 1e-10


def test_noise_alone_ends_the_run():
    # A loss that is constant up to noise, with a gradient that is noise.
    stream = np.random.default_rng(0)

    def function(x):
        return 1 + 1e-8 * stream.random(), stream.standard_normal(5).astype(np.float32) * np.float32(1e-8)

    assert len(run(LBFGS(10_000), function, np.zeros(5, np.float32), 300)[1]) < 300


def test_the_budget_of_iterations_is_kept():
    seen = run(LBFGS(7, first_step=0.1), rosenbrock, np.zeros(10, np.float32), 1000)[1]
    numbers = [observation.iteration for observation in seen]
    assert numbers[0] == 0
    assert numbers == sorted(numbers)
    assert numbers[-1] == 7


def test_the_search_may_go_back_to_its_lowest_point():
    # A parabola, 1/2 · 0.1 · (t − 10)², with a wall from 0.5 on.
    def function(x):
        t = float(x[0])
        beyond = max(0.0, t - 0.5)
        return 0.05 * (t - 10) ** 2 + 5 * beyond**2, np.float32([0.1 * (t - 10) + 10 * beyond])

    solver = LBFGS(3, first_step=0.3, max_line_search=2)
    start = np.zeros(1, np.float32)
    points, _ = host_points(solver, function, start, 100)
    evaluator, _, _ = run(solver, function, start, 100)
    np.testing.assert_allclose(evaluator.points, points, rtol=1e-5)
    # 0.3 is too short and what follows, ten times as long, behind the wall. With two trials that is the end of the
    # search; from 0.3, with the gradient that was there, the parabola's minimum is next.
    np.testing.assert_allclose(np.ravel(evaluator.points[:4]), [0, 0.3, 3, 10], rtol=1e-5)


def test_a_pair_without_curvature_is_not_kept():
    # A slope of −1 that turns into a parabola at 2; where one trial is all that a search has, it takes what it gets.
    def function(x):
        beyond = np.maximum(x.astype(np.float64) - 2, 0)
        return 10 + float((0.5 * beyond**2 - x).sum()), (beyond - 1).astype(np.float32)

    solver = LBFGS(12, first_step=0.3, max_line_search=1, history=2)
    start = np.float32([0, 0.1])
    points, _ = host_points(solver, function, start, 100)
    evaluator, _, _ = run(solver, function, start, 100)
    np.testing.assert_allclose(evaluator.points[: len(points)], points, rtol=1e-5)
    # Without a pair every step is one of 0.3; with some, it is at the minimum at once.
    moves = np.diff([point[0] for point in evaluator.points])
    np.testing.assert_allclose(moves[:6], 0.3, rtol=1e-5)
    np.testing.assert_allclose(evaluator.points[-1], 3, rtol=1e-5)


def test_failures_here_and_there_are_survived():
    function, start = quadratic(20, condition=10), 3 * normal(20)
    for seed in range(5):
        stream, calls = np.random.default_rng(seed), iter(range(1000))

        def flaky(x, stream=stream, calls=calls):
            loss, gradient = function(x)
            if next(calls) and stream.random() < 0.05:
                return (math.nan, gradient) if stream.random() < 0.5 else (loss, gradient * np.float32(math.nan))
            return loss, gradient

        assert run(LBFGS(100, first_step=0.1), flaky, start, 100)[2].loss < 0.02 * function(start)[0], seed


def test_a_region_of_failures_is_avoided():
    function, start = quadratic(6, condition=10), np.full(6, -3, np.float32)

    def cliff(x):
        loss, gradient = function(x)
        return (math.inf if x.max() > 1.02 else loss), gradient

    assert run(LBFGS(100), cliff, start, 300)[2].loss < 0.02 * function(start)[0]


def test_failures_everywhere_raise():
    function, evaluated = quadratic(4), []

    def failing_later(x):
        evaluated.append(1)
        loss, gradient = function(x)
        return (loss if len(evaluated) <= 3 else math.nan), gradient

    with pytest.raises(DivergenceError, match="lower first_step"):
        run(LBFGS(100, first_step=0.1), failing_later, np.full(4, 3, np.float32), 200)
    assert len(evaluated) <= 3 + MAX_FAILURES
