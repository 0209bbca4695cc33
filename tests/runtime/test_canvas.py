"""Pictures as images and back, whole or in stripes, in memory or in files."""

from __future__ import annotations

import numpy as np
import pytest

from impasto.models.conventions import CAFFE, UNIT
from impasto.runtime.canvas import image_of, picture_of
from impasto.runtime.images import resize
from impasto.runtime.scratch import in_memory, is_mapped, mapped

STORED = pytest.mark.parametrize("allocate", [in_memory, mapped])


@pytest.fixture(params=[1, 40, 10**6], ids=["rows", "a few rows", "whole"])
def stripes(request, monkeypatch):
    for module in ("images", "canvas"):
        monkeypatch.setattr(f"impasto.runtime.{module}._STRIPE", request.param)


@STORED
@pytest.mark.parametrize("size", [(2, 2), (5, 9), (9, 5)])
@pytest.mark.parametrize("margin", [0, 1])
@pytest.mark.usefixtures("stripes")
def test_a_picture_comes_back_from_its_image_without_the_margin(picture, size, margin, allocate):
    given = picture(1, *size)
    kept = given.copy()
    image = image_of(CAFFE, given, size[::-1], margin, allocate)
    assert image.shape == (1, 3, size[0] + 2 * margin, size[1] + 2 * margin)
    assert image.dtype == np.float32
    wide = np.pad(kept, ((margin, margin), (margin, margin), (0, 0)), mode="reflect")
    np.testing.assert_array_equal(image[0], CAFFE.encode(wide))
    found = picture_of(CAFFE, image, margin, allocate)
    np.testing.assert_array_equal(found, CAFFE.decode(CAFFE.encode(kept)).clip(0, 1))
    assert is_mapped(image) == is_mapped(found) == (allocate is mapped)
    np.testing.assert_array_equal(given, kept)


@pytest.mark.usefixtures("stripes")
def test_bytes_are_the_same_image_as_their_floats():
    stored = np.random.RandomState(2).randint(0, 256, (23, 17, 3), np.uint8)
    floats = stored.astype(np.float32) / np.float32(255)
    for size in ((17, 23), (31, 40), (6, 5)):
        np.testing.assert_array_equal(image_of(UNIT, stored, size, 2), image_of(UNIT, floats, size, 2))


@pytest.mark.usefixtures("stripes")
def test_a_picture_is_resampled_before_it_is_surrounded(picture):
    given = picture(3, 19, 26)
    wide = np.pad(resize(given, (33, 21)), ((4, 4), (4, 4), (0, 0)), mode="reflect")
    np.testing.assert_array_equal(image_of(UNIT, given, (33, 21), 4)[0], UNIT.encode(wide))


def test_a_picture_is_reflected_by_all_but_its_rim_at_most():
    given = np.arange(3, dtype=np.float32)[:, None, None] / 2 * np.ones((1, 3, 3), np.float32)
    np.testing.assert_array_equal(image_of(UNIT, given, (3, 3), 2)[0, 0, :, 0], [1, 0.5, 0, 0.5, 1, 0.5, 0])


def test_what_is_brighter_than_white_or_darker_than_black_is_clipped():
    image = np.array([-0.5, 0.25, 1.5], np.float32).reshape(1, 3, 1, 1)
    np.testing.assert_array_equal(picture_of(UNIT, image), [[[0, 0.25, 1]]])
