from __future__ import annotations

import numpy as np
import pytest

from impasto.runtime.solvers import Bounds, Evaluation, TorchLBFGS, drive

torch = pytest.importorskip("torch")


def torch_points(function, start, evaluations, box=None, **options):
    """The points that a loop of torch.optim.LBFGS.step evaluates, clamped in place by the closure."""
    x = torch.from_numpy(start.copy()).requires_grad_()
    optimiser = torch.optim.LBFGS([x], **options)
    points = []

    def closure():
        if box is not None:
            with torch.no_grad():
                x.clamp_(*box)
        points.append(x.detach().numpy().copy())
        loss, gradient = function(points[-1])
        x.grad = torch.from_numpy(gradient)
        return loss

    while len(points) < evaluations:
        optimiser.step(closure)
    return points[:evaluations]


def rootlike(seed, size):
    """Σ √(1 + (Ax − b)²) + 0.1·Σx²: smooth, convex, not quadratic; float64 and rounded."""
    stream = np.random.default_rng(seed)
    matrix, offset = (
        0.3 * stream.standard_normal((size, size)) / np.sqrt(size) + np.eye(size),
        stream.standard_normal(size),
    )

    def function(x):
        x64 = x.astype(np.float64)
        residual = matrix @ x64 - offset
        root = np.sqrt(1 + residual**2)
        return float(root.sum() + 0.1 * x64 @ x64), (matrix.T @ (residual / root) + 0.2 * x64).astype(np.float32)

    return function, 3 * stream.standard_normal(size).astype(np.float32)


OPTIONS = [{}, {"max_iter": 3}, {"max_iter": 1}, {"max_iter": 7, "max_eval": 4}, {"lr": 0.5, "history_size": 4}]
NAMES = {"lr": "learning_rate", "history_size": "history"}


@pytest.mark.parametrize("box", [None, (-1.0, 1.5)])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("case", ["quadratic-1", "quadratic-50", "rootlike-3", "rootlike-40"])
def test_evaluates_the_points_that_torch_does(case, options, box, quadratic, recorder):
    kind, size = case.split("-")
    if kind == "quadratic":
        function, start = quadratic(int(size)), np.random.default_rng(0).standard_normal(int(size)).astype(np.float32)
    else:
        function, start = rootlike(1, int(size))
    bounds = None if box is None else Bounds(box[:1], box[1:])
    recorded = recorder(function)
    drive(TorchLBFGS(bounds=bounds, **{NAMES.get(k, k): v for k, v in options.items()}), start, recorded, 40)
    expected = torch_points(function, start, 40, box, **options)

    def shaken(x):
        loss, gradient = function(x)
        return loss, gradient * np.float32(1 + 2e-7)

    # What rounding may do to such a run (a clamped one may stall, and break out again) is what it does to torch itself,
    # here by three roundings of the gradient; ours has some more of them, in its inner products.
    sensitivity = np.maximum.accumulate(distances(torch_points(shaken, start, 40, box, **options), expected))
    assert sensitivity[20] < 1e-3
    # We end where torch would evaluate the same point for ever.
    points = recorded.points + recorded.points[-1:] * (40 - len(recorded.points))
    assert (distances(points, expected) <= 1e-6 + 30 * sensitivity).all()


def distances(points, others):
    return np.array([np.abs(point - other).max() for point, other in zip(points, others, strict=True)])


def test_evaluates_torch_s_points_on_a_style_loss(style, recorder):
    for seed in range(4):
        function, start = style(seed)
        recorded = recorder(function)
        drive(TorchLBFGS(max_iter=5), start, recorded, 12)
        expected = torch_points(function, start, 12, max_iter=5)
        # Rounding grows from step to step, here until ReLUs flip after some twenty evaluations.
        for point, other in zip(recorded.points, expected, strict=True):
            assert np.abs(point - other).max() <= 1e-3


def test_goes_back_and_starts_afresh_after_a_failure(quadratic):
    function = quadratic(6, 10)
    trials = TorchLBFGS().minimise(np.zeros(6, np.float32))
    trial = next(trials)
    for _ in range(4):
        good = trial.x.copy()
        gradient = function(good)[1]
        trial = trials.send(Evaluation(*function(good)))
    for failures in (1, 2, 3):
        trial = trials.send(Evaluation(float("inf"), gradient))
        expected = good - gradient * min(1, 1 / np.abs(gradient).sum()) * 0.5**failures
        assert np.allclose(trial.x, expected, rtol=1e-6, atol=1e-7)
    trials.close()
