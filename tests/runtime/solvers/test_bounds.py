from __future__ import annotations

import dataclasses
import json
import math

import numpy as np
import pytest

from impasto.errors import UsageError
from impasto.runtime.solvers import Bounds


@pytest.mark.parametrize("blocks", [1, 3, 12])
def test_clamp_bounds_each_block(blocks):
    stream = np.random.default_rng(blocks)
    low = tuple(-stream.random(blocks))
    high = tuple(stream.random(blocks))
    x = stream.normal(scale=2, size=12).astype(np.float32)
    per_element = [np.repeat(np.asarray(side, np.float32), 12 // blocks) for side in (low, high)]
    expected = np.clip(x, *per_element)
    bounds = Bounds(low, high)
    bounds.clamp(x)
    assert np.array_equal(x, expected)
    assert not np.array_equal(x, np.clip(x, -0.01, 0.01))
    for array, side in zip(bounds.arrays(12), per_element, strict=True):
        assert np.array_equal(array, side)


def test_a_side_may_be_open():
    x = np.array([-5, 5], np.float32)
    Bounds(low=(0.0,)).clamp(x)
    assert x.tolist() == [0, 5]
    low, high = Bounds(high=(1.0,)).arrays(2)
    assert low.tolist() == [-math.inf] * 2
    assert high.tolist() == [1, 1]


def test_through_json_and_back():
    bounds = Bounds((0.0, -1.0), (1.0, 2.0))
    assert Bounds(**json.loads(json.dumps(dataclasses.asdict(bounds)))) == bounds


@pytest.mark.parametrize(
    ("low", "high"),
    [((1.0,), (0.0,)), ((0.0,), (1.0, 1.0)), ((), None), ((math.nan,), None), (None, (math.inf,))],
)
def test_sides_that_cannot_work_are_refused(low, high):
    with pytest.raises(UsageError, match="bounds"):
        Bounds(low, high)


def test_blocks_that_do_not_divide_x_are_refused():
    with pytest.raises(UsageError, match="3 values for 4 elements"):
        Bounds((0.0,) * 3).clamp(np.zeros(4, np.float32))
    with pytest.raises(UsageError, match="3 values for 4 elements"):
        Bounds((0.0,) * 3).arrays(4)
