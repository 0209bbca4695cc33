"""What every solver promises, whatever its method."""

from __future__ import annotations

import dataclasses
import gc
import json
import math
import threading

import numpy as np
import pytest

from impasto.errors import DivergenceError, UsageError
from impasto.runtime.solvers import LBFGS, LBFGSB, SGD, SOLVERS, Adam, Bounds, Evaluation, TorchLBFGS, drive
from impasto.runtime.solvers.recovery import MAX_FAILURES

MADE = {
    "lbfgs": LBFGS(300, first_step=0.1),
    "torch-lbfgs": TorchLBFGS(),
    "lbfgs-b": LBFGSB(rounds=10, maxfun=30),
    "adam": Adam(300, 0.5, decay=((150, 0.05),)),
    "sgd": SGD(300, 1.5),
}
BOUNDED = {
    "torch-lbfgs": lambda bounds: TorchLBFGS(bounds=bounds),
    "lbfgs-b": lambda bounds: LBFGSB(bounds=bounds),
    "adam": lambda bounds: Adam(100, 0.3, bounds=bounds),
}


@pytest.fixture(params=SOLVERS)
def solver(request):
    if request.param == "lbfgs-b":
        pytest.importorskip("scipy")
    return MADE[request.param]


def test_every_name_has_its_class():
    assert {name: type(made) for name, made in MADE.items()} == SOLVERS


@pytest.mark.parametrize("size", [1, 2, 97])
def test_a_quadratic_is_minimised(solver, quadratic, size):
    start = np.random.default_rng(size).normal(scale=3, size=size).astype(np.float32)
    untouched = start.copy()
    function = quadratic(size, condition=10)
    best, loss, count = drive(solver, start, function, 300)
    assert np.array_equal(start, untouched)
    # The slowest, SGD at rate ~1.5 × 0.96^(k/100) on a curvature of 0.1, contracts by 0.86 an iteration; Adam circles
    # the minimum at a fraction of its learning rate. The others are at rounding.
    assert loss <= 1e-5 * function(start)[0]
    assert math.isclose(loss, function(best)[0])
    assert count <= 300


def test_the_start_comes_first_and_iterations_never_go_back(solver, quadratic):
    function = quadratic(40, 1e4)
    start = np.linspace(-2, 2, 40, dtype=np.float32)
    trials = solver.minimise(start)
    trial = next(trials)
    assert np.array_equal(trial.x, start)
    numbers = []
    for _ in range(30):
        assert trial.x.dtype == np.float32
        assert trial.x.shape == (40,)
        numbers.append(trial.iteration)
        trial = trials.send(Evaluation(*function(trial.x)))
    trials.close()
    assert numbers[0] == 0
    assert numbers == sorted(numbers)
    assert numbers[-1] > 10


def test_pictures_are_flattened(solver, quadratic):
    start = np.random.default_rng(0).standard_normal((3, 2, 5)).astype(np.float32)
    trials = solver.minimise(start)
    assert np.array_equal(next(trials).x, start.ravel())
    trials.close()


@pytest.mark.parametrize("size", [1, 8])
def test_a_start_without_gradient_ends_at_once(solver, size):
    count = drive(solver, np.ones(size, np.float32), lambda _: (0.5, np.zeros(size, np.float32)), 50)[2]
    # L-BFGS-B evaluates once a round, and its round that changes nothing is the last.
    assert count == 1


def test_a_start_that_is_not_finite_raises_at_once(solver):
    evaluated = []

    def function(x):
        evaluated.append(1)
        return math.nan, x

    with pytest.raises(DivergenceError, match="at the start"):
        drive(solver, np.ones(3, np.float32), function, 50)
    assert len(evaluated) == 1


def test_failures_here_and_there_are_survived(solver, quadratic):
    function = quadratic(20, condition=10)
    start = np.random.default_rng(1).normal(scale=3, size=20).astype(np.float32)
    for seed in range(5):
        stream = np.random.default_rng(seed)
        calls = iter(range(1000))

        def flaky(x, stream=stream, calls=calls):
            loss, gradient = function(x)
            if next(calls) and stream.random() < 0.02:
                return (math.nan, gradient) if stream.random() < 0.5 else (loss, gradient * np.float32(math.nan))
            return loss, gradient

        # Adam and SGD keep their steps halved after each failure, so they get less far.
        assert drive(solver, start, flaky, 300)[1] < 0.02 * function(start)[0], seed


def test_a_region_of_failures_is_avoided(solver, quadratic, recorder):
    function = quadratic(6, condition=10)

    def cliff(x):
        loss, gradient = function(x)
        return (math.inf if x.max() > 1.02 else loss), gradient

    recorded = recorder(cliff)
    start = np.full(6, -3, np.float32)
    assert drive(solver, start, recorded, 300)[1] < 0.02 * function(start)[0]


def test_failures_everywhere_raise(solver, quadratic, recorder):
    function = quadratic(4)
    start = np.full(4, 3, np.float32)

    def failing_later(x):
        loss, gradient = function(x)
        return (loss if len(recorded.points) <= 3 else math.nan), gradient

    recorded = recorder(failing_later)
    with pytest.raises(DivergenceError, match="lower"):
        drive(solver, start, recorded, 200)
    assert len(recorded.points) <= 3 + MAX_FAILURES


@pytest.mark.parametrize("collected", [False, True])
def test_stopping_midway_leaves_nothing_behind(solver, quadratic, collected):
    function = quadratic(3)
    before = threading.active_count()
    for length in (0, 1, 7):
        trials = solver.minimise(np.full(3, 5, np.float32))
        trial = next(trials)
        for _ in range(length):
            trial = trials.send(Evaluation(*function(trial.x)))
        if collected:
            del trials
            gc.collect()
        else:
            trials.close()
            with pytest.raises(StopIteration):
                next(trials)
        assert threading.active_count() == before


@pytest.mark.parametrize("name", BOUNDED)
def test_points_stay_in_their_bounds(name, quadratic, recorder):
    if name == "lbfgs-b":
        pytest.importorskip("scipy")
    # The minimum, at 1, is outside the box of the second block; 0.1 and 0.9 are not float32 numbers.
    bounds = Bounds((-0.5, -0.1), (2.0, 0.9))
    recorded = recorder(quadratic(12, condition=10))
    start = np.random.default_rng(3).normal(scale=3, size=12).astype(np.float32)
    best, _, _ = drive(BOUNDED[name](bounds), start, recorded, 100)
    low, high = bounds.arrays(12)
    for point in recorded.points:
        assert (low <= point).all()
        assert (point <= high).all()
    # On the box the minimum of a separable quadratic is the projected one. Adam circles it a little; torch's L-BFGS
    # remembers unclamped steps and may stop anywhere.
    if name != "torch-lbfgs":
        assert np.abs(best - np.clip(1, low, high)).max() < 0.05


@pytest.mark.parametrize("name", SOLVERS)
def test_settings_go_to_json_and_back(name):
    made = MADE[name]
    fields = json.loads(json.dumps(dataclasses.asdict(made), allow_nan=False))
    assert SOLVERS[name](**fields) == made


@pytest.mark.parametrize(
    ("cls", "settings"),
    [
        (LBFGS, {"iterations": 0}),
        (LBFGS, {"iterations": 5, "history": 0}),
        (LBFGS, {"iterations": 5, "max_line_search": 0}),
        (LBFGS, {"iterations": 5, "c1": 0.9, "c2": 0.1}),
        (LBFGS, {"iterations": 5, "first_step": math.nan}),
        (TorchLBFGS, {"learning_rate": 0.0}),
        (TorchLBFGS, {"max_iter": 0}),
        (TorchLBFGS, {"max_eval": 0}),
        (TorchLBFGS, {"history": 0}),
        (TorchLBFGS, {"tolerance_grad": -1.0}),
        (TorchLBFGS, {"tolerance_change": math.nan}),
        (LBFGSB, {"rounds": 0}),
        (LBFGSB, {"maxfun": 0}),
        (Adam, {"iterations": 0, "learning_rate": 1.0}),
        (Adam, {"iterations": 5, "learning_rate": math.inf}),
        (Adam, {"iterations": 5, "learning_rate": 1.0, "beta1": 1.0}),
        (Adam, {"iterations": 5, "learning_rate": 1.0, "eps": 0.0}),
        (Adam, {"iterations": 5, "learning_rate": 1.0, "decay": ((0, 1.0),)}),
        (Adam, {"iterations": 5, "learning_rate": 1.0, "decay": ((3, 1.0), (2, 0.5))}),
        (Adam, {"iterations": 5, "learning_rate": 1.0, "bounds_until": 3}),
        (SGD, {"iterations": 0, "learning_rate": 1.0}),
        (SGD, {"iterations": 5, "learning_rate": -1.0}),
        (SGD, {"iterations": 5, "learning_rate": 1.0, "decay_rate": 1.1}),
        (SGD, {"iterations": 5, "learning_rate": 1.0, "decay_steps": 0}),
    ],
)
def test_settings_that_cannot_work_are_refused(cls, settings):
    with pytest.raises(UsageError, match=r"give|without"):
        cls(**settings)
