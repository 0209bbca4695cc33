"""The pairs on an emulated device, against the two-loop recursion as it stands."""

from __future__ import annotations

import numpy as np
import pytest

from impasto.runtime.gpu.history import DeviceHistory
from impasto.runtime.gpu.memory import Memory
from impasto.runtime.kernels.solver import REPORT_HEAD, SolverKernels
from tests.emulation.host import HostDevice, compiler
from tests.runtime.gpu.functions import view

pytestmark = pytest.mark.skipif(compiler() is None, reason="no g++ to compile kernels for the host")


def two_loops(gradient, pairs, scale):
    """Algorithm 7.4 in float64."""
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
    """Random steps on a random convex quadratic, in a device's history and in float64 beside it."""

    def __init__(self, size, length, seed):
        self.stream = np.random.default_rng(seed)
        root = self.stream.standard_normal((size, size)) / np.sqrt(size)
        self.hessian = root @ root.T + 0.1 * np.eye(size)
        self.device, self.size, self.length = HostDevice(), size, length
        memory = Memory(self.device)
        self.kernels = SolverKernels(self.device, size, 0, memory)
        self.history = DeviceHistory(self.kernels, length)
        self.places = [memory.reserve(name, 4 * size) for name in ("trial", "x", "there", "here", "direction")]
        self.trial, self.x, self.there, self.here, self.direction = (view(place, size) for place in self.places)
        self.x[:] = 0
        self.gradient = self.here[:] = self.stream.standard_normal(size)
        self.pairs = []
        self.scale = 1.0

    def step(self, convex=True):
        """Go somewhere; a step against the curvature makes a pair that is not kept."""
        self.trial[:] = self.x + self.stream.standard_normal(self.size).astype(np.float32)
        step = self.trial - self.x
        self.there[:] = self.here + (self.hessian @ step if convex else -self.hessian @ step)
        if convex:
            self.pairs.append((step.astype(np.float64), (self.there - self.here).astype(np.float64)))
            self.pairs = self.pairs[-self.length :]
            s, y = self.pairs[-1]
            self.scale = (s @ y) / (y @ y)
        self.history.add(*self.places[:4])
        assert self.report("kept") == convex
        assert np.array_equal(self.x, self.trial)
        self.history.learn(convex)
        self.here[:] = self.there

    def report(self, name):
        return view(self.kernels.report, len(REPORT_HEAD), np.float64)[REPORT_HEAD.index(name)]

    def check(self, paired=True):
        self.history.aim(self.places[3], self.places[4], 0.25)
        expected = two_loops(self.here, self.pairs, self.scale)
        # Inner products are nearly float64's; the direction is a sum of 2·length + 1 vectors in float32, whose size the
        # recursion lets exceed the result's by the condition of the quadratic, at most about 4 / 0.1.
        assert np.linalg.norm(self.direction - expected) <= 1e-7 * 40 * 5 * np.linalg.norm(expected)
        slope, largest = self.here.astype(np.float64) @ self.direction, np.abs(self.direction).max()
        assert self.report("origin_slope") == pytest.approx(slope, rel=1e-12)
        assert self.report("first_step") == (1 if paired else np.float64(0.25) / np.float64(largest))


@pytest.mark.parametrize(("size", "length"), [(1, 1), (3, 2), (17, 5), (60, 20), (1201, 7)])
def test_the_direction_is_the_two_loop_recursion_s(size, length):
    walk = Walk(size, length, seed=size)
    walk.check(paired=False)
    for turn in range(3 * length + 2):
        # Pairs that are not kept leave the others as they are, and the oldest in place.
        walk.step(convex=turn % 4 != 3)
        walk.check()
        assert len(walk.history) == len(walk.pairs)
    assert len(walk.history) == length
    walk.device.close()


def test_more_pairs_than_a_block_has_threads_are_combined():
    size, count, first = 3, 299, 7
    walk = Walk(size, 1, seed=1)
    kernels = SolverKernels(walk.device, size, 0, Memory(walk.device))
    pairs = kernels.reserve_pairs(count + 2)
    slots = [(first + k) % pairs.slots for k in range(count)]
    steps = walk.stream.standard_normal((count, size)).astype(np.float32)
    changes = (steps @ walk.hessian).astype(np.float32)
    numbers = view(pairs.numbers, 3 + 6 * pairs.slots + 2 * pairs.slots**2, np.float64)
    before = numbers[3 : 3 + 2 * pairs.slots].reshape(-1, 2)
    matrices = numbers[3 + 6 * pairs.slots :].reshape(2, pairs.slots, pairs.slots)
    for slot, step, change in zip(slots, steps.astype(np.float64), changes.astype(np.float64), strict=True):
        for address, row in zip(pairs.pair(slot), (step, change), strict=True):
            view(address, size)[:] = row
        before[slot] = step @ walk.here, change @ walk.here
        matrices[:, slot, slots] = changes @ step, changes @ change
    walk.trial[:] = 0.5
    walk.there[:] = walk.here + walk.hessian @ walk.trial
    walk.pairs = [*zip(steps.astype(float), changes.astype(float), strict=True)]
    walk.pairs.append((walk.trial.astype(float), (walk.there - walk.here).astype(float)))
    s, y = walk.pairs[-1]
    trial, x, there, here, direction = walk.places
    kernels.pair(trial, x, (there, here), *pairs.pair((first + count) % pairs.slots))
    kernels.products(pairs, first, count + 1, there)
    kernels.recursion(pairs, first, count, 1e-6)
    kernels.combine(pairs, there, direction)
    expected = two_loops(walk.there, walk.pairs, (s @ y) / (y @ y))
    assert np.linalg.norm(walk.direction - expected) <= 1e-7 * 40 * 5 * np.linalg.norm(expected)
    walk.device.close()


def test_before_any_pair_is_kept_the_first_step_is_a_move():
    walk = Walk(9, 3, seed=2)
    for _ in range(2):
        walk.step(convex=False)
        walk.check(paired=False)
    assert len(walk.history) == 0
    walk.step()
    walk.check()
    walk.device.close()


def test_clear_forgets_the_pairs_and_not_the_scale():
    walk = Walk(9, 3, seed=0)
    for _ in range(5):
        walk.step()
        walk.check()
    walk.history.clear()
    walk.pairs.clear()
    assert len(walk.history) == 0
    # Steepest descent, with a first step of 1: what was learnt of the scale is not lost.
    walk.check()
    assert np.array_equal(walk.direction, -np.float32(walk.scale) * walk.here)
    for _ in range(5):
        walk.step()
        walk.check()
    walk.device.close()


def test_a_direction_that_does_not_descend_has_no_step():
    walk = Walk(5, 2, seed=3)
    for gradient in (np.zeros(5), np.full(5, np.nan)):
        walk.here[:] = gradient
        walk.history.aim(walk.places[3], walk.places[4], 1.0)
        assert not walk.report("origin_slope") < 0
        assert walk.report("first_step") == 0
    walk.device.close()


def test_a_pair_that_overflows_is_not_kept():
    walk = Walk(5, 2, seed=4)
    walk.step()
    walk.trial[:] = walk.x + 1
    walk.there[:], walk.here[:] = 3e38, -3e38
    walk.history.add(*walk.places[:4])
    assert walk.report("kept") == 0
    walk.device.close()


def test_a_direction_has_the_same_bits_again():
    found = []
    for _ in range(2):
        walk = Walk(700, 6, seed=5)
        for _ in range(9):
            walk.step()
        walk.history.aim(walk.places[3], walk.places[4], 1.0)
        found.append(walk.direction.tobytes())
    assert found[0] == found[1]
