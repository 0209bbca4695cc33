from __future__ import annotations

import math

import numpy as np
import pytest

from impasto.errors import UsageError
from impasto.runtime.solvers import SGD, Evaluation, Trial, drive
from impasto.runtime.solvers.protocol import flat_copy
from impasto.runtime.solvers.vectors import largest, power_of_two_scale


class Scripted:
    """Yields 0, 1, 2, … and notes what it was sent and that it was closed."""

    def __init__(self, length: int) -> None:
        self.length, self.sent, self.closed = length, [], False

    def minimise(self, start, resume=None):  # noqa: ARG002 - it has no state
        try:
            for k in range(self.length):
                self.sent.append((yield Trial(np.full(start.size, k, dtype=np.float32), k)))
        finally:
            self.closed = True


def test_drive_keeps_the_best_point_and_stops_at_its_budget():
    solver = Scripted(10)
    best, loss, count = drive(solver, np.zeros(3, np.float32), lambda x: (abs(float(x[0]) - 2), x), 5)
    assert (best.tolist(), loss, count) == ([2, 2, 2], 0.0, 5)
    assert solver.closed


def test_drive_ends_with_the_solver():
    assert drive(Scripted(3), np.zeros(1, np.float32), lambda x: (1.0, x), 100)[2] == 3


@pytest.mark.parametrize(("loss", "element"), [(math.nan, 1.0), (-math.inf, 1.0), (1.0, math.inf), (1.0, math.nan)])
def test_drive_passes_anything_not_finite_on_as_failed(loss, element):
    solver = Scripted(2)
    best, lowest, _ = drive(solver, np.full(2, 7, np.float32), lambda _: (loss, np.array([0, element], np.float32)), 3)
    assert [evaluation.loss for evaluation in solver.sent] == [math.inf] * 2
    assert best.tolist() == [7, 7]
    assert lowest == math.inf


def test_drive_closes_the_solver_when_the_function_raises():
    solver = Scripted(2)
    with pytest.raises(ZeroDivisionError):
        drive(solver, np.zeros(1, np.float32), lambda x: (1 / 0, x), 3)
    assert solver.closed


def test_no_evaluations_and_no_elements_are_refused():
    with pytest.raises(UsageError, match="evaluations is 0"):
        drive(Scripted(1), np.zeros(1, np.float32), lambda x: (0.0, x), 0)
    with pytest.raises(UsageError, match="no elements"):
        next(SGD(1, 1.0).minimise(np.zeros((0, 3), np.float32)))


def test_flat_copy_is_contiguous_in_the_start_s_order():
    start = np.arange(6, dtype=np.float32).reshape(2, 3).T
    flat = flat_copy(start)
    assert flat.tolist() == [0, 3, 1, 4, 2, 5]
    assert flat.flags.c_contiguous
    assert not np.shares_memory(flat, start)


@pytest.mark.parametrize("size", [1e-45, 1e-38, 3e-8, 0.5, 1.0, 7.0, 1e20, 3e38])
def test_scaling_by_the_power_of_two_rounds_nothing(size):
    gradient = np.array([0.1, -1, 0.3], np.float32) * np.float32(size)
    scale = power_of_two_scale(gradient)
    assert math.frexp(scale)[0] == 0.5
    scaled = gradient * np.float32(scale)
    # float32's own rounding of the tiniest (subnormal) gradients happened before; the scaling adds none.
    assert np.array_equal(scaled.astype(np.float64), gradient.astype(np.float64) * scale)
    if 2.0**-126 <= size <= 2.0**126:
        assert 0.5 <= largest(scaled) <= 1


def test_an_evaluation_is_a_value():
    gradient = np.zeros(1, np.float32)
    with pytest.raises(AttributeError):
        Evaluation(1.0, gradient).loss = 2.0
