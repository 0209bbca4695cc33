from __future__ import annotations

import numpy as np
import pytest

from impasto.runtime.solvers import Adam, Bounds, Evaluation, drive


def torch_points(function, start, steps, rates, box=None, **options):
    """The points that torch.optim.Adam evaluates; a rate given for a step makes a new optimiser there."""
    torch = pytest.importorskip("torch")
    x = torch.from_numpy(start.copy()).requires_grad_()
    points = []
    for step in range(steps + 1):
        if box is not None:
            with torch.no_grad():
                x.clamp_(*box)
        points.append(x.detach().numpy().copy())
        if step in rates:
            optimiser = torch.optim.Adam([x], lr=rates[step], **options)
        x.grad = torch.from_numpy(function(points[-1])[1])
        optimiser.step()
    return points


def normal(size):
    """A quadratic whose gradients are about 1, so that torch's absolute ε is ours."""
    curvatures = np.linspace(0.5, 2, size).astype(np.float32)
    return lambda x: (float(curvatures @ (x - 1) ** 2) / 2, curvatures * (x - 1))


@pytest.mark.parametrize("size", [1, 40])
@pytest.mark.parametrize("betas", [(0.9, 0.999), (0.9, 0.99), (0.0, 0.5)])
def test_takes_torch_s_steps(size, betas, recorder):
    function = normal(size)
    start = np.random.default_rng(size).standard_normal(size).astype(np.float32)
    recorded = recorder(function)
    drive(Adam(100, 0.05, beta1=betas[0], beta2=betas[1]), start, recorded, 1000)
    expected = torch_points(function, start, 100, {0: 0.05}, betas=betas)
    # A few roundings (6e-8 of x about 1) each step; ε, 1e-8 of the denominator, is less. Where v has all but forgotten
    # (β₂ = ½), m/√v is of order 1 however small the gradient is, and amplifies its rounding.
    for point, other in zip(recorded.points, expected, strict=True):
        assert np.abs(point - other).max() <= (1e-4 if betas[1] == 0.5 else 2e-5)


def test_the_cs231n_recipe(recorder):
    # Rate 3.0 and then 0.1, by a new optimiser, at 180; ±1.5 clamped before evaluations 0 to 189.
    function = normal(30)
    start = 2 * np.random.default_rng(0).standard_normal(30).astype(np.float32)
    recorded = recorder(lambda x: (function(x)[0], function(x)[1] - np.float32(2)))
    box = Bounds((-1.5,), (1.5,))
    drive(Adam(200, 3.0, decay=((180, 0.1),), bounds=box, bounds_until=190), start, recorded, 1000)
    torch = pytest.importorskip("torch")
    x = torch.from_numpy(start.copy()).requires_grad_()
    optimiser = torch.optim.Adam([x], lr=3.0)
    for step in range(200):
        if step < 190:
            with torch.no_grad():
                x.clamp_(-1.5, 1.5)
        point = x.detach().numpy()
        assert np.abs(recorded.points[step] - point).max() <= 1e-4, step
        x.grad = torch.from_numpy(function(point)[1] - np.float32(2))
        if step == 180:
            optimiser = torch.optim.Adam([x], lr=0.1)
        optimiser.step()
    assert np.abs(recorded.points[189]).max() <= 1.5 < np.abs(recorded.points[200]).max()


@pytest.mark.parametrize("factor", [1e-8, 2.0**-80, 2.0**80, 1e8])
def test_the_loss_s_scale_changes_nothing(recorder, factor):
    function = normal(25)

    def scaled(x):
        loss, gradient = function(x)
        return factor * loss, gradient * np.float32(factor)

    start = np.random.default_rng(0).standard_normal(25).astype(np.float32)
    plain, other = recorder(function), recorder(scaled)
    for recorded in (plain, other):
        drive(Adam(60, 0.1, eps=1e-2), start, recorded, 100)
    # Powers of two round nothing; others, each gradient element once.
    tolerance = 0 if factor in (2.0**-80, 2.0**80) else 2e-5
    for one, another in zip(plain.points, other.points, strict=True):
        assert np.abs(one - another).max() <= tolerance


def test_after_a_failure_the_step_is_half_and_the_moments_are_fresh():
    function = normal(8)
    trials = Adam(50, 0.2).minimise(np.full(8, 5, np.float32))
    trial = next(trials)
    for _ in range(5):
        good = trial.x.copy()
        trial = trials.send(Evaluation(*function(good)))
    for halvings in (1, 2):
        trial = trials.send(Evaluation(float("nan"), function(good)[1]))
        # Adam's first step is lr·sign(g).
        assert np.allclose(trial.x, good - 0.2 * 0.5**halvings, rtol=1e-6)
    trials.close()
