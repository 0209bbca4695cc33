from __future__ import annotations

import numpy as np
import pytest

from impasto.runtime.solvers import SGD, Evaluation, drive


@pytest.mark.parametrize("size", [1, 33])
def test_takes_keras_s_steps(size, quadratic, recorder):
    function = quadratic(size, 10)
    start = np.random.default_rng(size).standard_normal(size).astype(np.float32)
    recorded = recorder(function)
    drive(SGD(150, 0.7, decay_rate=0.8, decay_steps=30), start, recorded, 1000)
    assert len(recorded.points) == 151
    x = start.astype(np.float64)
    for step, point in enumerate(recorded.points):
        # Each step rounds x, about 1, by 6e-8 and contracts what came before.
        assert np.abs(point - x).max() <= 5e-6
        x = x - 0.7 * 0.8 ** (step / 30) * function(x.astype(np.float32))[1]


def test_after_a_failure_every_step_is_half():
    trials = SGD(50, 0.5, decay_rate=1.0).minimise(np.float32([8.0]))
    trial = next(trials)
    gradient = np.float32([4.0])
    trial = trials.send(Evaluation(1.0, gradient))
    assert trial.x.tolist() == [6]
    trial = trials.send(Evaluation(1.0, gradient))
    assert trial.x.tolist() == [4]
    trial = trials.send(Evaluation(float("inf"), gradient))
    assert trial.x.tolist() == [5]
    trial = trials.send(Evaluation(1.0, gradient))
    assert trial.x.tolist() == [4]
    trials.close()


def test_too_high_a_rate_recovers(quadratic):
    # Diverges tenfold an iteration until float32 overflows; then the rate is halved until it contracts.
    start = np.full(4, 3, np.float32)
    assert drive(SGD(400, 11.0, decay_rate=1.0), start, quadratic(4, 2), 400)[1] < 1e-6
