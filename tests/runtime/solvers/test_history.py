from __future__ import annotations

import numpy as np
import pytest

from impasto.runtime.solvers.history import History


def two_loops(gradient, pairs, scale):
    """Algorithm 7.4 as it stands, in float64."""
    q = gradient.astype(np.float64)
    alphas = []
    for s, y in reversed(pairs):
        alphas.append((s @ q) / (s @ y))
        q -= alphas[-1] * y
    r = scale * q
    for (s, y), alpha in zip(pairs, reversed(alphas), strict=True):
        r += s * (alpha - (y @ r) / (s @ y))
    return -r


class Walk:
    """Random steps on a random convex quadratic, in a history and in float64 beside it."""

    def __init__(self, size: int, length: int, seed: int) -> None:
        self.stream = np.random.default_rng(seed)
        root = self.stream.standard_normal((size, size)) / np.sqrt(size)
        self.hessian = root @ root.T + 0.1 * np.eye(size)
        self.history, self.length = History(length, np.zeros(size, np.float32)), length
        self.gradient = self.stream.standard_normal(size).astype(np.float32)
        self.pairs: list[tuple[np.ndarray, np.ndarray]] = []
        self.out = np.empty(size, np.float32)

    def step(self, keep: bool = True) -> None:
        step = self.stream.standard_normal(len(self.out)).astype(np.float32)
        gradient = (self.gradient + self.hessian @ step).astype(np.float32)
        self.history.step[:] = step
        np.subtract(gradient, self.gradient, out=self.history.change)
        if keep:
            self.pairs.append((step.astype(np.float64), self.history.change.astype(np.float64)))
            self.pairs = self.pairs[-self.length :]
            self.history.keep()
        self.gradient = gradient

    def check(self) -> None:
        self.history.direction(self.gradient, out=self.out)
        scale = 1.0
        if self.pairs:
            s, y = self.pairs[-1]
            scale = (s @ y) / (y @ y)
        expected = two_loops(self.gradient, self.pairs, scale)
        # Inner products are float32 sums (error about 1e-7 of the norms); the recursion amplifies them by the
        # condition of the quadratic, at most about 4 / 0.1.
        assert np.linalg.norm(self.out - expected) <= 1e-7 * 40 * 5 * np.linalg.norm(expected)


@pytest.mark.parametrize(("size", "length"), [(1, 1), (3, 2), (17, 5), (60, 20), (301, 7)])
def test_direction_is_the_two_loop_recursion_s(size, length):
    walk = Walk(size, length, seed=size)
    walk.check()
    for turn in range(3 * length + 2):
        # Pairs that are not kept leave the others as they are, and the oldest in place.
        walk.step(keep=turn % 4 != 3)
        walk.check()
    assert len(walk.history) == len(walk.pairs) == length


def test_clear_forgets_the_pairs_and_not_the_scale():
    walk = Walk(9, 3, seed=0)
    walk.check()
    for _ in range(5):
        walk.step()
        walk.check()
    scale = walk.history.scale
    walk.history.clear()
    assert len(walk.history) == 0
    walk.history.direction(walk.gradient, out=walk.out)
    assert np.array_equal(walk.out, -np.float32(scale) * walk.gradient)
    walk.pairs.clear()
    for _ in range(5):
        walk.step()
        walk.check()


def test_curvature_is_that_of_the_pair_written():
    history = History(2, np.zeros(3, np.float32))
    history.step[:], history.change[:] = [1, 2, 3], [4, 5, 6]
    assert history.curvature() == (32, 14, 77)
    history.keep()
    assert history.scale == 32 / 77
