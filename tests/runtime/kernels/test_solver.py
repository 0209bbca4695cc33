"""The kernels of solver.cu, run on the host, against NumPy."""

from __future__ import annotations

import math

import ml_dtypes
import numpy as np
import pytest

from impasto.runtime.gpu.memory import Memory
from impasto.runtime.gpu.protocol import TensorSpec
from impasto.runtime.kernels.solver import REPORT_HEAD, AdamVectors, SegmentSums, SolverKernels, VectorKernels
from tests.emulation.host import HostDevice, compiler

pytestmark = pytest.mark.skipif(compiler() is None, reason="no g++ to compile kernels for the host")

F32, F64 = np.dtype(np.float32), np.dtype(np.float64)
TYPES = pytest.mark.parametrize("dtype", [F32, np.dtype(np.float16), np.dtype(ml_dtypes.bfloat16)], ids=str)
# One element; less than a warp, a block, and a block's share; more than all take at once (8 blocks of 256, four each).
SIZES = pytest.mark.parametrize("size", [1, 3, 31, 257, 1025, 9001])


class Room:
    """Arrays on an emulated device."""

    def __init__(self):
        self.device = HostDevice(multiprocessors=1)

    def put(self, values):
        buffer = self.device.allocate(values.nbytes)
        self.device.upload(buffer.address, np.ascontiguousarray(values))
        return buffer.address

    def empty(self, size, dtype=F32):
        return self.device.allocate(size * dtype.itemsize).address

    def get(self, address, size, dtype=F32):
        return self.device.download(address, TensorSpec(dtype, (size,)))


@pytest.fixture
def room():
    room = Room()
    yield room
    room.device.close()


def random(seed, size, *, rows=1):
    """Normal numbers of sizes 10⁻³ to 10³."""
    stream = np.random.default_rng(seed)
    values = stream.standard_normal((rows, size)) * 10 ** stream.uniform(-3, 3, (rows, size))
    return values.astype(F32)


class Solver:
    """The kernels for vectors of one size, and their report."""

    def __init__(self, room, size, losses=0):
        self.memory = Memory(room.device)
        self.kernels = SolverKernels(room.device, size, losses, self.memory)
        self._room, self._losses = room, losses

    def report(self):
        values = self._room.get(self.kernels.report, len(REPORT_HEAD) + self._losses, F64)
        return dict(zip(REPORT_HEAD, values, strict=False)), values[len(REPORT_HEAD) :].tolist()


@TYPES
@SIZES
def test_vectors_are_added_filled_and_converted(room, dtype, size):
    vectors = VectorKernels(room.device)
    x, y = random(size, size, rows=2)
    y[size // 2] = np.nan
    with np.errstate(over="ignore"):
        a, b = x.astype(dtype), y.astype(dtype)
        added, narrowed = (a.astype(F32) + b.astype(F32)).astype(dtype), (x * np.float32(3)).astype(dtype)
    to = room.put(a)
    vectors.accumulate(to, room.put(b), size, dtype)
    np.testing.assert_array_equal(room.get(to, size, dtype).astype(F32), added.astype(F32))
    vectors.narrow(to, room.put(x), size, dtype, 3.0)
    np.testing.assert_array_equal(room.get(to, size, dtype).astype(F32), narrowed.astype(F32))
    wide = room.empty(size)
    vectors.widen(wide, to, size, dtype, 0.25)
    np.testing.assert_array_equal(room.get(wide, size), narrowed.astype(F32) * np.float32(0.25))
    vectors.fill(to, 1.1, size, dtype)
    np.testing.assert_array_equal(room.get(to, size, dtype), np.full(size, 1.1, F32).astype(dtype))


def test_only_the_elements_asked_for_are_touched(room):
    vectors = VectorKernels(room.device)
    x = np.arange(600, dtype=F32)
    address = room.put(x)
    vectors.fill(address + 4 * 7, -1.0, 300, F32)
    x[7:307] = -1
    np.testing.assert_array_equal(room.get(address, 600), x)


@pytest.mark.parametrize("count", [1, 5, 300])
def test_scalars_are_gathered(room, count):
    scattered = np.full(64 * count, np.nan, F32)
    scattered[::64] = random(0, count)[0]
    losses = room.empty(count, F64)
    VectorKernels(room.device).gather_scalars(room.put(scattered), 256, count, losses)
    np.testing.assert_array_equal(room.get(losses, count, F64), scattered[::64].astype(F64))


def test_segments_are_summed_by_term(room):
    stream = np.random.default_rng(2)
    counts = [(2, 1), (0, 700), (2, 256), (3, 33), (0, 5), (3, 1)]  # none for term 1
    parts = [(term, stream.standard_normal(count)) for term, count in counts]
    out = room.empty(4, F64)
    sums = SegmentSums(room.device, [(term, room.put(values), len(values)) for term, values in parts], out)
    sums.enqueue()
    found = room.get(out, 4, F64)
    for term in range(4):
        values = np.concatenate([values for number, values in parts if number == term] or [np.zeros(1)])
        # Each addition rounds once, by 1.1e-16 of a partial sum, and those are no larger than the sum of magnitudes.
        assert abs(found[term] - math.fsum(values)) <= 1.2e-16 * len(values) * np.abs(values).sum()
    assert found[1] == 0
    sums.enqueue()
    assert room.get(out, 4, F64).tobytes() == found.tobytes()
    sums.close()


def test_a_loss_that_is_not_finite_reaches_its_term_only(room):
    out = room.empty(2, F64)
    values = np.ones(300)
    values[299] = np.nan
    sums = SegmentSums(room.device, [(0, room.put(np.ones(300)), 300), (1, room.put(values), 300)], out)
    sums.enqueue()
    first, second = room.get(out, 2, F64)
    assert first == 300
    assert math.isnan(second)


@SIZES
@pytest.mark.parametrize("scale", [1.0, 2.0**-70, 2.0**100])
def test_a_gradient_is_scaled_and_measured(room, size, scale):
    gradient, direction = random(size, size, rows=2)
    gradient *= np.float32(min(1, 1 / scale))
    solver, scaled, losses = Solver(room, size, 2), room.empty(size), np.array([1.25, np.inf])
    arguments = room.put(gradient), scale, room.put(direction), scaled
    solver.kernels.receive(*arguments)
    solver.kernels.write_report(room.put(losses))
    expected = gradient * np.float32(scale)
    np.testing.assert_array_equal(room.get(scaled, size), expected)
    head, found = solver.report()
    products = expected.astype(F64) * direction
    # Products are exact in float64; there are as many additions as elements, each rounding by 1.1e-16.
    assert abs(head["slope"] - math.fsum(products)) <= 1.2e-16 * size * np.abs(products).sum()
    assert head["largest"] == np.abs(gradient).max()
    assert head["spoilt"] == 0
    assert found == losses.tolist()
    solver.kernels.receive(*arguments)
    solver.kernels.write_report(room.put(losses))
    assert solver.report() == (head, found)


@pytest.mark.parametrize("size", [1, 300, 9001])
def test_elements_that_are_not_finite_are_counted(room, size):
    stream = np.random.default_rng(size)
    gradient = random(size, size)[0]
    where = stream.choice(size, max(1, size // 3), replace=False)
    gradient[where] = stream.choice([np.nan, np.inf, -np.inf], len(where))
    solver = Solver(room, size)
    solver.kernels.receive(room.put(gradient), 1.0, 0, 0)
    solver.kernels.write_report(0)
    assert solver.report()[0]["spoilt"] == len(where)


@SIZES
def test_a_step_is_taken_as_numpy_takes_it(room, size):
    x, direction = random(size, size, rows=2)
    solver, trial = Solver(room, size), room.empty(size)
    there = room.put(x), room.put(direction)
    for step in (0.1, 1.0, 1e-7):
        solver.kernels.move(*there, step, trial)
        assert room.get(trial, size).tobytes() == (x + direction * np.float32(step)).tobytes()
    room.device.upload(solver.kernels.report + 8 * REPORT_HEAD.index("first_step"), np.array([0.3]))
    solver.kernels.move(*there, None, trial)
    assert room.get(trial, size).tobytes() == (x + direction * np.float32(0.3)).tobytes()


def test_no_step_stays_even_where_the_direction_is_not_finite(room):
    x, trial = random(1, 300)[0], room.empty(300)
    direction = np.full(300, np.nan, F32)
    direction[::2] = np.inf
    Solver(room, 300).kernels.move(room.put(x), room.put(direction), 0.0, trial)
    np.testing.assert_array_equal(room.get(trial, 300), x)


@SIZES
def test_a_pair_is_written_and_the_trial_becomes_x(room, size):
    trial, x, there, here = random(size, size, rows=4)
    addresses = [room.put(values) for values in (trial, x, there, here)]
    step, change = room.empty(size), room.empty(size)
    Solver(room, size).kernels.pair(*addresses[:2], (addresses[2], addresses[3]), step, change)
    np.testing.assert_array_equal(room.get(step, size), trial - x)
    np.testing.assert_array_equal(room.get(change, size), there - here)
    np.testing.assert_array_equal(room.get(addresses[1], size), trial)


@SIZES
@pytest.mark.parametrize(("slots", "first", "count"), [(2, 1, 1), (5, 3, 4), (9, 0, 9)])
def test_rows_are_multiplied_around_the_ring(room, size, slots, first, count):
    kernels = Solver(room, size).kernels
    pairs = kernels.reserve_pairs(slots)
    rows, gradient = random(size, size, rows=2 * slots), random(size + 1, size)[0]
    for slot in range(slots):
        for address, row in zip(pairs.pair(slot), rows[2 * slot : 2 * slot + 2], strict=True):
            room.device.upload(address, row)
    kernels.products(pairs, first, count, room.put(gradient))
    sums = room.get(pairs.products, 2 * count * pairs.product_blocks, F64).reshape(2 * count, -1).sum(axis=1)
    order = [2 * ((first + k) % slots) + which for k in range(count) for which in (0, 1)]
    expected = rows[order].astype(F64) * gradient
    # At most four fused products are added in float32, each rounding by 6e-8 of a partial sum.
    assert (np.abs(sums - expected.sum(axis=1)) <= 4 * 6e-8 * np.abs(expected).sum(axis=1)).all()


@SIZES
@pytest.mark.parametrize("length", [0, 1, 6, 18])
def test_rows_are_combined_to_a_direction(room, size, length):
    slots, gamma = 9, 0.3
    solver = Solver(room, size)
    pairs = solver.kernels.reserve_pairs(slots)
    stream = np.random.default_rng(length)
    rows, gradient = random(size, size, rows=2 * slots), random(size + 1, size)[0]
    for slot in range(slots):
        for address, row in zip(pairs.pair(slot), rows[2 * slot : 2 * slot + 2], strict=True):
            room.device.upload(address, row)
    entries = np.zeros(length, [("row", np.int32), ("coefficient", np.float32)])
    entries["row"] = stream.permutation(2 * slots)[:length]
    entries["coefficient"] = stream.standard_normal(length)
    if length:
        room.device.upload(pairs.entries, entries)
    room.device.upload(pairs.numbers, np.array([gamma, 0.0, length]))
    there, direction = room.put(gradient), room.empty(size)
    solver.kernels.combine(pairs, there, direction)
    solver.kernels.aim(pairs, 0.5)
    found = room.get(direction, size)
    parts = [np.float64(coefficient) * rows[row] for row, coefficient in entries]
    parts.append(-np.float64(np.float32(gamma)) * gradient)
    # Each of the additions rounds by 6e-8 of a partial sum, and so does the last product.
    assert (np.abs(found - sum(parts)) <= (length + 2) * 6e-8 * sum(map(np.abs, parts))).all()
    products = found.astype(F64) * gradient
    head, _ = solver.report()
    assert abs(head["origin_slope"] - math.fsum(products)) <= 1.2e-16 * size * np.abs(products).sum()
    assert head["first_step"] == (0.5 / np.float64(np.abs(found).max()) if head["origin_slope"] < 0 else 0)


def adam(x, gradient, m, v, scale, betas, bias, eps, rate, sides):
    """A step in NumPy's float32."""
    (beta1, beta2), one = betas, 1.0
    scaled = gradient * np.float32(scale)
    m = m * np.float32(beta1) + scaled * np.float32(one - beta1)
    v = v * np.float32(beta2) + scaled * scaled * np.float32(one - beta2)
    x = x - m / (np.sqrt(v) / np.float32(bias) + np.float32(eps)) * np.float32(rate)
    for side, project in zip(sides, (np.maximum, np.minimum), strict=True):
        if side is not None:
            x = project(x.reshape(len(side), -1), side[:, None]).reshape(-1)
    return x, m, v


@pytest.mark.parametrize("size", [1, 3, 30, 257 * 3, 3000 * 3])
@pytest.mark.parametrize("box", ["open", "low", "both"])
def test_adam_takes_numpy_s_step(room, size, box):
    x, gradient, m, v = random(size, size, rows=4)
    v = np.abs(v)
    channels = 3 if size % 3 == 0 else 1
    low, high = np.float32([-0.5, 0.1, -2][:channels]), np.float32([0.5, 0.2, 3][:channels])
    sides = {"open": (None, None), "low": (low, None), "both": (low, high)}[box]
    settings = {"scale": 0.25, "betas": (0.9, 0.999), "bias": 0.4, "eps": 1e-3, "rate": 0.7}
    expected = adam(x, gradient, m, v, **settings, sides=sides)
    x[-1] = gradient[0] = np.nan
    expected[0][[0, -1]] = expected[1][0] = expected[2][0] = np.nan
    there = [room.put(values) for values in (x, gradient, m, v)]
    good = room.empty(size)
    kernels = Solver(room, size).kernels
    bounds = {
        "bounds": tuple(0 if side is None else room.put(side) for side in sides),
        "bound_size": size // channels,
    }
    kernels.adam(AdamVectors(there[0], good, there[0], *there[1:]), **settings, **bounds)
    np.testing.assert_array_equal(room.get(good, size), x)
    for address, values in zip((there[0], *there[2:]), expected, strict=True):
        np.testing.assert_array_equal(room.get(address, size), values)
    # From the good point again, whatever x has become.
    room.device.upload(there[2], m)
    room.device.upload(there[3], v)
    kernels.adam(AdamVectors(good, good, there[0], *there[1:]), **settings, **bounds)
    np.testing.assert_array_equal(room.get(there[0], size), expected[0])
