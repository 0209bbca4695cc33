"""The loop on an emulated device: what it keeps, counts, survives, and gives back."""

from __future__ import annotations

import math

import numpy as np
import pytest

from impasto.errors import DeviceError, DivergenceError, LimitError
from impasto.runtime.gpu.loop import DeviceBest, descend_on_device
from impasto.runtime.solvers import LBFGS, Adam
from tests.emulation.host import compiler
from tests.runtime.gpu.functions import CountingDevice, FunctionEvaluator

pytestmark = pytest.mark.skipif(compiler() is None, reason="no g++ to compile kernels for the host")

SHAPE = (1, 3, 4, 5)
SIZE = math.prod(SHAPE)
CURVATURES = np.linspace(0.2, 1, SIZE, dtype=np.float32)
START = np.random.RandomState(1).standard_normal(SHAPE).astype(np.float32) * 5
# Each of them brings the bowl below a hundredth of where it starts, with room to spare.
SOLVERS = {"lbfgs": LBFGS(iterations=20), "adam": Adam(iterations=80, learning_rate=0.3)}
BUDGET = 100
solvers = pytest.mark.parametrize("solver", SOLVERS.values(), ids=SOLVERS)


def true(x):
    """½Σc·(x - 1)²."""
    offset = x.reshape(-1) - 1
    return 0.5 * float(CURVATURES.astype(np.float64) @ offset.astype(np.float64) ** 2), CURVATURES * offset


def bowl(spoil=lambda _, found: found, device=None):
    """An evaluator of it; ``spoil`` maps the number of an evaluation, from 1, and what was found to something else."""
    evaluator = FunctionEvaluator(lambda x: spoil(len(evaluator.points), true(x)), SIZE, device)
    return evaluator


def spoiled(found, kind):
    loss, gradient = found
    match kind:
        case "nan":
            return math.nan, gradient
        case "infinite":
            return math.inf, gradient
        case "gradient":
            gradient = gradient.copy()
            gradient[33] = math.nan
            return loss, gradient
        case "exploded":
            return 1e9, gradient * np.float32(1e6)


def owned(evaluator):
    """How much memory is in use beside the evaluator's own three buffers."""
    return evaluator.device.held - 3


@solvers
def test_keeps_the_best_iterate_and_counts(solver):
    evaluator, start = bowl(), START.copy()
    best = DeviceBest(start)
    assert best.image is start
    lowest, iteration = math.inf, 0
    for count, seen in enumerate(descend_on_device(evaluator, solver, best, max_evaluations=BUDGET), 1):
        assert seen.evaluation == count == len(evaluator.points)
        assert seen.loss == sum(seen.terms.values()) == pytest.approx(true(evaluator.points[-1])[0], rel=1e-15)
        assert seen.improved == (seen.loss < lowest)
        lowest = min(lowest, seen.loss)
        assert seen.iteration >= iteration
        iteration = seen.iteration
        # While it runs the best picture can be had too.
        assert best.loss == lowest
        assert best.image.shape == SHAPE
        if count % 5 == 0 or seen.improved:
            assert true(best.image)[0] == pytest.approx(best.loss, rel=1e-15)
    assert best.loss < 0.01 * true(START)[0]
    assert best.terms == {"style.a": 0.25 * best.loss, "tv": 0.75 * best.loss}
    assert tuple(best.terms) == evaluator.terms
    np.testing.assert_array_equal(start, START)
    evaluator.device.close()


@solvers
def test_the_picture_is_fetched_only_when_it_is_asked_for(solver):
    evaluator, best = bowl(), DeviceBest(START)
    steps = descend_on_device(evaluator, solver, best)
    for count in range(1, 6):
        next(steps)
        assert evaluator.device.downloads == count
    first = best.image
    assert best.image is first
    assert evaluator.device.downloads == 6
    steps.close()
    assert evaluator.device.downloads == 6
    assert best.image is first


@solvers
@pytest.mark.parametrize("budget", [1, 2, 7])
def test_stops_after_so_many_evaluations_and_frees_its_memory(solver, budget):
    evaluator = bowl()
    steps = descend_on_device(evaluator, solver, DeviceBest(START), max_evaluations=budget)
    assert owned(evaluator) == 0
    next(steps)
    assert owned(evaluator) > 0
    assert len(list(steps)) == budget - 1
    assert len(evaluator.points) == budget
    assert owned(evaluator) == 0


@solvers
@pytest.mark.parametrize("kind", ["nan", "infinite", "gradient", "exploded"])
@pytest.mark.parametrize("seed", [3, 4])
def test_recovers_from_failures_here_and_there(solver, kind, seed):
    # Never the first; few, because after each Adam takes steps of half the length for good.
    failing = set(np.random.RandomState(seed).choice(np.arange(2, 16), 3, replace=False).tolist())
    evaluator = bowl(lambda count, found: spoiled(found, kind) if count in failing else found)
    best = DeviceBest(START)
    seen = list(descend_on_device(evaluator, solver, best, max_evaluations=BUDGET))
    failed = [observation for observation in seen if observation.evaluation in failing]
    assert len(failed) == 3
    assert not any(observation.improved for observation in failed)
    good = [observation.loss for observation in seen if observation.evaluation not in failing]
    assert best.loss == min(good)
    assert true(best.image)[0] == pytest.approx(best.loss, rel=1e-15)
    assert best.loss < 0.5 * good[0]
    assert any(observation.improved for observation in seen[max(failing) :])


@solvers
def test_the_evaluator_hears_how_large_the_gradient_is(solver):
    evaluator = bowl(lambda count, found: spoiled(found, "gradient") if count == 3 else found)
    list(descend_on_device(evaluator, solver, DeviceBest(START), max_evaluations=6))
    expected = [np.abs(true(point)[1]).max() for point in evaluator.points]
    expected[2] = math.nan
    np.testing.assert_array_equal(evaluator.largest, expected)


@solvers
def test_gives_up_where_nothing_helps_and_keeps_the_best(solver):
    evaluator = bowl(lambda count, found: found if count <= 4 else spoiled(found, "nan"))
    best, losses = DeviceBest(START), []
    with pytest.raises(DivergenceError, match="10 times in a row"):
        losses.extend(o.loss for o in descend_on_device(evaluator, solver, best, max_evaluations=BUDGET))
    assert best.loss == min(losses[:4])
    assert true(best.image)[0] == pytest.approx(best.loss, rel=1e-15)
    assert owned(evaluator) == 0


@solvers
def test_a_start_that_fails_is_an_error_at_once(solver):
    evaluator, best = bowl(lambda _, found: spoiled(found, "nan")), DeviceBest(START)
    with pytest.raises(DivergenceError, match="at the start"):
        list(descend_on_device(evaluator, solver, best))
    assert len(evaluator.points) == 1
    assert best.terms is None
    np.testing.assert_array_equal(best.image, START)
    assert owned(evaluator) == 0


@solvers
def test_leaving_an_optimum_is_no_explosion(solver):
    """At the optimum but for rounding any step raises the loss a lot; an ordinary loss is the measure."""
    start = np.ones(SHAPE, np.float32)
    start[0, 0, 0, 0] += 1e-6
    best = DeviceBest(start)
    list(descend_on_device(bowl(), solver, best, scale=true(np.zeros(SHAPE))[0], max_evaluations=40))
    assert best.loss <= true(start)[0]


@solvers
@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError, DeviceError])
def test_what_an_evaluation_raises_comes_through_and_leaves_the_best(solver, error):
    def spoil(count, found):
        if count == 4:
            raise error
        return found

    evaluator = bowl(spoil)
    best, losses = DeviceBest(START), []
    with pytest.raises(error):
        losses.extend(observation.loss for observation in descend_on_device(evaluator, solver, best))
    assert len(losses) == 3
    assert best.loss == min(losses)
    assert true(best.image)[0] == pytest.approx(best.loss, rel=1e-15)
    assert owned(evaluator) == 0


class _Failing(CountingDevice):
    """Fails for good from some download on, or has no memory after some allocations."""

    def __init__(self, downloads=1000, allocations=1000):
        super().__init__()
        self._downloads, self._allocations = downloads, allocations

    def download(self, address, spec):
        if self.downloads == self._downloads:
            raise DeviceError("the GPU has failed")
        return super().download(address, spec)

    def allocate(self, nbytes):
        if self.held == self._allocations:
            raise LimitError("no memory left on the device")
        return super().allocate(nbytes)


@solvers
def test_a_picture_that_was_lost_with_the_device_says_so(solver):
    evaluator, best = bowl(device=_Failing(downloads=3)), DeviceBest(START)
    seen = []
    with pytest.raises(DeviceError, match="the GPU has failed"):
        seen.extend(descend_on_device(evaluator, solver, best))
    assert len(seen) == 3
    with pytest.raises(DeviceError, match="lost with the device: paint it again"):
        _ = best.image
    assert owned(evaluator) == 0


@solvers
@pytest.mark.parametrize("allocations", [3, 4, 6, 9])
def test_too_little_memory_leaves_none_in_use(solver, allocations):
    evaluator, best = bowl(device=_Failing(allocations=allocations)), DeviceBest(START)
    with pytest.raises(LimitError, match="no memory left"):
        next(descend_on_device(evaluator, solver, best))
    assert owned(evaluator) == 0
    np.testing.assert_array_equal(best.image, START)
