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


def saturating(seed, size):
    """Σ √(1 + (Ax − b)²): smooth, convex, with gradients that saturate; float64 and rounded."""
    stream = np.random.default_rng(seed)
    matrix, offset = stream.standard_normal((size, size)) / np.sqrt(size) + np.eye(size), stream.standard_normal(size)

    def function(x):
        residual = matrix @ x.astype(np.float64) - offset
        root = np.sqrt(1 + residual**2)
        return float(root.sum()), (matrix.T @ (residual / root)).astype(np.float32)

    return function, 3 * stream.standard_normal(size).astype(np.float32)


OPTIONS = [{}, {"max_iter": 3}, {"max_iter": 1}, {"max_iter": 7, "max_eval": 4}, {"lr": 0.5, "history_size": 4}]
NAMES = {"lr": "learning_rate", "history_size": "history"}


@pytest.mark.parametrize("box", [None, (-1.0, 1.5)])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("case", ["quadratic-1", "quadratic-50", "saturating-3", "saturating-40"])
def test_evaluates_the_points_that_torch_does(case, options, box, quadratic, recorder):
    kind, size = case.split("-")
    if kind == "quadratic":
        function, start = quadratic(int(size)), np.random.default_rng(0).standard_normal(int(size)).astype(np.float32)
    else:
        function, start = saturating(1, int(size))
    bounds = None if box is None else Bounds(box[:1], box[1:])
    recorded = recorder(function)
    drive(TorchLBFGS(bounds=bounds, **{NAMES.get(k, k): v for k, v in options.items()}), start, recorded, 60)
    expected = torch_points(function, start, 60, box, **options)
    worst = max(np.abs(a - b).max() for a, b in zip(recorded.points, expected, strict=False))
    print(len(recorded.points), worst)
    for number, (point, other) in enumerate(zip(recorded.points, expected, strict=False)):
        assert np.abs(point - other).max() <= 2e-4, number
    # We end where torch would evaluate the same point for ever.
    for other in expected[len(recorded.points) :]:
        assert np.abs(recorded.points[-1] - other).max() <= 2e-4


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
