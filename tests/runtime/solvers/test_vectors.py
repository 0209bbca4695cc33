"""Vectors in chunks: the numbers do not depend on where they are kept, nor anything but rounding on the chunks."""

from __future__ import annotations

import numpy as np
import pytest

from impasto.runtime.scratch import in_memory, is_mapped, mapped
from impasto.runtime.solvers import LBFGS, LBFGSB, SGD, Adam, Bounds, TorchLBFGS, drive
from impasto.runtime.solvers.vectors import (
    are_equal,
    assign,
    chunks,
    copied,
    dot,
    is_finite,
    is_zero,
    largest,
    products,
)

CHUNKED = pytest.mark.parametrize("chunk", [1, 7, 64, 1000])
BOX = Bounds((-1.5,), (2.0,))
SOLVERS = {
    "lbfgs": LBFGS(30, history=4, first_step=0.1),
    "torch-lbfgs": TorchLBFGS(history=3, max_iter=7, bounds=BOX),
    "lbfgs-b": LBFGSB(rounds=4, maxfun=8, bounds=BOX),
    "adam": Adam(20, 0.3, decay=((6, 0.2),), bounds=BOX),
    "sgd": SGD(20, 0.0003),
}


@pytest.fixture(params=[in_memory, mapped], ids=["in memory", "mapped"])
def draw(request):
    def make(seed, *shape):
        array = request.param(shape)
        array[...] = np.random.RandomState(seed).standard_normal(shape)
        return array

    return make


@pytest.fixture
def small(chunk, monkeypatch):
    monkeypatch.setattr("impasto.runtime.solvers.vectors.CHUNK", chunk)


@CHUNKED
@pytest.mark.usefixtures("small")
def test_reductions_are_those_of_the_whole_up_to_rounding(draw, chunk):
    a, b, matrix = draw(1, 100), draw(2, 100), draw(3, 5, 100)
    exact = a.astype(np.float64) @ b.astype(np.float64)
    # Float32 products and sums of up to 100 numbers of size 1 and a few.
    assert dot(a, b) == pytest.approx(exact, abs=100 * 2**-24 * 10)
    np.testing.assert_allclose(products(matrix, a), matrix.astype(np.float64) @ a, atol=100 * 2**-24 * 10)
    assert largest(a) == float(np.abs(a).max())


@CHUNKED
@pytest.mark.usefixtures("small")
def test_one_element_decides_wherever_it_is(draw, chunk):
    for place in (0, 50, 99):
        a = draw(1, 100)
        b = copied(a)
        assert are_equal(a, b)
        b[place] += 1
        assert not are_equal(a, b)
        zeros = copied(a)
        zeros[:] = 0
        assert is_zero(zeros)
        zeros[place] = 1e-30
        assert not is_zero(zeros)
        assert is_finite(a)
        a[place] = np.nan if place else -np.inf
        assert not is_finite(a)
        a[place] = -1000
        assert largest(a) == 1000


@CHUNKED
@pytest.mark.usefixtures("small")
def test_chunks_are_views_in_order(draw, chunk):
    whole, matrix = draw(1, 100), draw(2, 3, 100)
    kept = whole.copy()
    parts = [(part, rows) for part, rows in chunks(whole, matrix)]
    assert all(part.size <= chunk and rows.shape == (3, part.size) for part, rows in parts)
    np.testing.assert_array_equal(np.concatenate([part for part, _ in parts]), kept)
    np.testing.assert_array_equal(np.concatenate([rows for _, rows in parts], axis=1), matrix)
    for (part,) in chunks(whole):
        part += 1
    np.testing.assert_array_equal(whole, kept + 1)


def test_copies_are_kept_where_the_vector_is_and_shapes_may_differ(draw):
    a = draw(1, 1, 3, 5, 7)
    b = copied(a)
    assert is_mapped(b) == is_mapped(a)
    assert not np.shares_memory(a, b)
    flat = np.zeros(105, np.float32)
    assign(flat, a)
    np.testing.assert_array_equal(flat.reshape(a.shape), b)


@pytest.mark.parametrize("name", SOLVERS)
@pytest.mark.parametrize("chunk", [16, 1 << 20])
@pytest.mark.usefixtures("small")
def test_a_run_in_files_is_the_run_in_memory(name, rosenbrock, recorder):
    """To the bit, whatever the chunk: both ways take their sums alike."""
    if name == "lbfgs-b":
        pytest.importorskip("scipy")
    values = np.random.default_rng(5).normal(scale=0.8, size=103).astype(np.float32)
    start = mapped(values.shape)
    start[:] = values
    runs = [recorder(rosenbrock), recorder(rosenbrock)]
    for given, run in zip((values, start), runs, strict=True):
        drive(SOLVERS[name], given, run, 40)
    assert runs[0].losses == runs[1].losses
    assert len(runs[0].points) > 10
    for one, other in zip(runs[0].points, runs[1].points, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("name", SOLVERS)
def test_the_vectors_of_a_solver_are_where_its_start_is(name):
    if name == "lbfgs-b":
        pytest.importorskip("scipy")
    for allocate in (in_memory, mapped):
        trials = SOLVERS[name].minimise(allocate((50,)))
        assert is_mapped(next(trials).x) == (allocate is mapped and name != "lbfgs-b")
        trials.close()
