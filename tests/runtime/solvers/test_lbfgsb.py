from __future__ import annotations

import sys
import threading

import numpy as np
import pytest

from impasto.errors import UnavailableError
from impasto.runtime.solvers import LBFGSB, Bounds, Evaluation, drive

optimize = pytest.importorskip("scipy.optimize")


@pytest.mark.parametrize("box", [None, (-0.7, 0.8)])
def test_evaluates_the_points_of_the_book_s_loop(rosenbrock, recorder, box):
    start = np.random.default_rng(0).uniform(-0.6, 0.7, 30).astype(np.float32)
    points = []

    def function(x):
        points.append(x.astype(np.float32))
        loss, gradient = rosenbrock(points[-1])
        return loss, gradient.astype(np.float64)

    x = start.astype(np.float64)
    bounds, pairs = None, None
    if box is not None:
        bounds = Bounds(box[:1], box[1:])
        pairs = list(zip(*(side.tolist() for side in bounds.arrays(30)), strict=True))
    for _ in range(6):
        x, _, _ = optimize.fmin_l_bfgs_b(function, x, bounds=pairs, maxfun=20)
    recorded = recorder(rosenbrock)
    _, _, count = drive(LBFGSB(rounds=6, bounds=bounds), start, recorded, 1000)
    assert count == len(points) > 50
    # The same SciPy on the same numbers: the same bits.
    assert np.array_equal(recorded.points, points)


def test_ends_when_a_round_changes_nothing(quadratic):
    _, loss, count = drive(LBFGSB(rounds=1000), np.zeros(4, np.float32), quadratic(4, 10), 10_000)
    assert loss < 1e-8
    assert count < 100


def test_a_failed_evaluation_shortens_the_step(quadratic, recorder):
    function = quadratic(5, 10)
    start = np.full(5, -3, np.float32)

    def cliff(x):
        loss, gradient = function(x)
        return (np.inf if (x > start + 0.05).any() else loss), gradient

    recorded = recorder(cliff)
    _, loss, _ = drive(LBFGSB(), start, recorded, 30)
    failed = [not np.isfinite(value) for value in recorded.losses]
    assert failed[1]
    away = [np.abs(point - start).max() for point in recorded.points]
    assert 0 < away[2] < 0.5 * away[1]
    assert loss < function(start)[0]


def test_threads_end_with_their_generators(quadratic):
    function = quadratic(3)
    before = set(threading.enumerate())
    running = [LBFGSB().minimise(np.full(3, k, np.float32)) for k in (2, 3, 4)]
    for trials in running:
        trials.send(None)
        trials.send(Evaluation(*function(np.full(3, 2, np.float32))))
    assert len(set(threading.enumerate()) - before) == 3
    for trials in running:
        trials.close()
    assert set(threading.enumerate()) == before


def test_without_scipy_the_remedy_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "scipy", None)
    with pytest.raises(UnavailableError, match=r"pip install 'impasto\[scipy\]'"):
        next(LBFGSB().minimise(np.zeros(2, np.float32)))
