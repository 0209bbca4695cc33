from __future__ import annotations

import numpy as np
import pytest

from impasto.runtime.margin import surrounded, trimmed


@pytest.mark.parametrize("size", [(2, 2), (5, 9), (9, 5)])
@pytest.mark.parametrize("margin", [0, 1])
def test_trimming_gives_back_what_was_surrounded(picture, size, margin):
    given = picture(1, *size)
    kept = given.copy()
    wide = surrounded(given, margin)
    assert wide.shape == (size[0] + 2 * margin, size[1] + 2 * margin, 3)
    assert wide.dtype == np.float32
    np.testing.assert_array_equal(trimmed(wide, margin), kept)
    np.testing.assert_array_equal(given, kept)


def test_what_surrounds_is_the_reflection_that_leaves_out_the_rim():
    row = np.arange(4, dtype=np.float32)
    given = np.broadcast_to(row[None, :, None] + 10 * row[:3, None, None], (3, 4, 3))
    wide = surrounded(given, 2)
    np.testing.assert_array_equal(wide[:, 3, 0], [21, 11, 1, 11, 21, 11, 1])
    np.testing.assert_array_equal(wide[2, :, 1], [2, 1, 0, 1, 2, 3, 2, 1])


def test_a_picture_is_reflected_by_all_but_its_rim_at_most():
    given = np.arange(3, dtype=np.float32)[:, None, None] * np.ones((1, 3, 3), np.float32)
    np.testing.assert_array_equal(surrounded(given, 2)[:, 0, 0], [2, 1, 0, 1, 2, 1, 0])
