"""Sizes, resampling and quantisation of pictures in memory."""

from __future__ import annotations

import io
import json
import struct
from dataclasses import asdict
from fractions import Fraction
from math import floor

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import ImageCms

from impasto.errors import ImageError, UnknownNameError, UsageError
from impasto.runtime.images import Sizing, resize, srgb_profile, to_uint8

SIDES = st.integers(1, 20_000)


@given(SIDES, SIDES, st.integers(1, 9000), st.sampled_from(["long", "short", "height"]))
def test_sizing_keeps_the_aspect_ratio_to_rounding(width: int, height: int, pixels: int, edge: str) -> None:
    reference = {"long": max(width, height), "short": min(width, height), "height": height}[edge]
    expected = tuple(max(1, floor(Fraction(side * pixels, reference) + Fraction(1, 2))) for side in (width, height))
    result = Sizing(edge, pixels).apply(width, height)  # type: ignore[arg-type]
    assert result == expected
    assert pixels == {"long": max(result), "short": min(result), "height": result[1]}[edge]


@given(SIDES, SIDES, st.integers(1, 9000))
def test_stretching_ignores_the_aspect_ratio(width: int, height: int, pixels: int) -> None:
    assert Sizing("stretch", pixels).apply(width, height) == (pixels, pixels)


def test_sizing_by_hand() -> None:
    assert Sizing("long", 512).apply(640, 480) == (512, 384)
    assert Sizing("short", 192).apply(640, 480) == (256, 192)
    assert Sizing("height", 400).apply(640, 480) == (533, 400)
    assert Sizing("long", 3).apply(6, 5) == (3, 3)  # 2.5: halves go up, where round() would go to 2
    assert Sizing("long", 10).apply(1, 10_000) == (1, 10)  # 0.001: at least one pixel
    assert Sizing("long", 640).apply(640, 481) == (640, 481)


def test_sizing_travels_as_json_and_is_checked() -> None:
    sizing = Sizing("short", 192)
    assert Sizing(**json.loads(json.dumps(asdict(sizing)))) == sizing
    with pytest.raises(UnknownNameError, match="height"):
        Sizing("hight", 5)  # type: ignore[arg-type]
    for pixels in (0, -3, 2.0, True, "5", None):
        with pytest.raises(UsageError, match="pixels"):
            Sizing("long", pixels)  # type: ignore[arg-type]


def picture(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).random(shape, dtype=np.float32)


@pytest.mark.parametrize("shape", [(7, 5, 3), (1, 1, 3), (3, 9)])
def test_a_picture_of_the_right_size_is_not_resampled(shape: tuple[int, ...]) -> None:
    original = picture(1, *shape)
    assert resize(original, (shape[1], shape[0])) is original


@pytest.mark.parametrize("size", [(1, 1), (3, 11), (40, 2), (64, 48)])
@pytest.mark.parametrize("shape", [(7, 5, 3), (1, 1, 3), (33, 65, 3), (6, 8)])
def test_shape_type_and_range(shape: tuple[int, ...], size: tuple[int, int]) -> None:
    # Rounding to 0 or 1 makes edges of the greatest contrast, where Lanczos overshoots most.
    resized = resize(np.rint(picture(2, *shape)), size)
    assert resized.shape == (size[1], size[0], *shape[2:])
    assert resized.dtype == np.float32
    assert resized.flags.c_contiguous
    assert 0 <= resized.min() <= resized.max() <= 1


@pytest.mark.parametrize("size", [(1, 1), (2, 9), (13, 4), (50, 70)])
def test_a_constant_picture_stays_constant(size: tuple[int, int]) -> None:
    colours = picture(3, 3)
    constant = np.broadcast_to(colours, (17, 23, 3)).astype(np.float32)
    # Weights are normalised in double precision and each of the two passes rounds once to float32.
    np.testing.assert_allclose(resize(constant, size), np.broadcast_to(colours, (size[1], size[0], 3)), rtol=3e-7)


@pytest.mark.parametrize("size", [(60, 44), (20, 12), (13, 90), (31, 37)])
@pytest.mark.parametrize("stripe", [30, 400])
def test_stripes_are_the_whole_but_for_the_rounding_of_their_place(monkeypatch, size, stripe) -> None:
    picture = np.random.RandomState(3).random_sample((37, 31, 3)).astype(np.float32)
    whole = resize(picture, size)
    monkeypatch.setattr("impasto.runtime.images._STRIPE", stripe)
    # Places below 64 as float32 are off by 2⁻¹⁹ pixels at most; a row changes by a few for each pixel.
    np.testing.assert_allclose(resize(picture, size), whole, rtol=0, atol=20 * 2.0**-19)


def test_quantisation_in_stripes_is_that_of_the_whole(monkeypatch) -> None:
    values = np.random.RandomState(4).random_sample((23, 7, 3)).astype(np.float32)
    whole = to_uint8(values)
    monkeypatch.setattr("impasto.runtime.images._STRIPE", 50)
    np.testing.assert_array_equal(to_uint8(values), whole)
    values[-1, -1, -1] = np.nan
    with pytest.raises(ImageError):
        to_uint8(values)


def test_reducing_does_not_alias() -> None:
    # The finest checkerboard lies above the new Nyquist frequency: nothing but its mean may remain. Taking every
    # fourth pixel, or bilinear interpolation without widening, would give 0s and 1s, or a beat between them.
    checkerboard = (np.indices((64, 64)).sum(axis=0) % 2).astype(np.float32)
    reduced = resize(checkerboard, (15, 15))
    assert np.abs(reduced[2:-2, 2:-2] - 0.5).max() < 0.02
    assert np.abs(reduced - 0.5).max() < 0.1  # the filter is cut off at the rim


def test_channels_and_axes_are_kept_apart() -> None:
    ramp = np.zeros((32, 48, 3), dtype=np.float32)
    ramp[..., 0] = np.linspace(0, 1, 48)
    ramp[..., 1] = np.linspace(0, 1, 32)[:, np.newaxis]
    resized = resize(ramp, (24, 8))
    assert (np.diff(resized[..., 0], axis=1) > 0).all()
    assert (np.diff(resized[..., 1], axis=0) > 0).all()
    np.testing.assert_allclose(np.ptp(resized[..., 0], axis=0), 0, atol=1e-6)
    np.testing.assert_allclose(np.ptp(resized[..., 1], axis=1), 0, atol=1e-6)
    assert (resized[..., 2] == 0).all()


def test_every_level_survives_quantisation() -> None:
    levels = np.arange(256, dtype=np.uint8)
    for dtype in (np.float32, np.float64):
        np.testing.assert_array_equal(to_uint8(levels.astype(dtype) / 255), levels)
    np.testing.assert_array_equal(to_uint8(levels), levels)


def test_quantisation_clips_and_rounds_halves_to_even() -> None:
    # In float64, n/510·255 is exactly n/2 for these n, as the assertion says.
    values = np.array([1, 3, 5, 253, 507]) / 510
    assert (values * 255 == np.array([0.5, 1.5, 2.5, 126.5, 253.5])).all()
    np.testing.assert_array_equal(to_uint8(values), [0, 2, 2, 126, 254])
    np.testing.assert_array_equal(to_uint8(np.array([-7.0, -1e-9, 1.0 + 1e-9, 1e30])), [0, 0, 255, 255])


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_quantisation_refuses_what_is_not_finite(value: float) -> None:
    with pytest.raises(ImageError, match="finite"):
        to_uint8(np.array([[0.5, value]], dtype=np.float32))


def test_the_srgb_profile_is_one_and_undated() -> None:
    profile = srgb_profile()
    assert ImageCms.ImageCmsProfile(io.BytesIO(profile)).profile.xcolor_space.strip() == "RGB"
    assert struct.unpack(">6H", profile[24:36]) == (2000, 1, 1, 0, 0, 0)
    srgb_profile.cache_clear()
    assert srgb_profile() == profile
