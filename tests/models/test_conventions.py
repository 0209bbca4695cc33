import itertools

import numpy as np
import pytest

from impasto.errors import UnknownNameError
from impasto.models.conventions import CAFFE, PIXEL_SPACES, RGB255, TORCHVISION, UNIT, pixel_space, smallest_deviation

EPS = np.finfo(np.float32).eps
PAIRS = list(itertools.permutations(PIXEL_SPACES.values(), 2))
SIZES = [(1, 1), (1, 7), (5, 3)]


def picture(seed, size):
    return np.random.default_rng(seed).random((*size, 3), dtype=np.float32)


def test_published_formulas():
    rgb = picture(1, (4, 5))
    red, green, blue = (rgb[..., i].astype(np.float64) for i in range(3))
    expected = {
        "caffe": [blue * 255 - 103.939, green * 255 - 116.779, red * 255 - 123.68],
        "torchvision": [(red - 0.485) / 0.229, (green - 0.456) / 0.224, (blue - 0.406) / 0.225],
        "unit": [red, green, blue],
        "rgb255": [red * 255 - 123.675, green * 255 - 116.28, blue * 255 - 103.53],
    }
    assert expected.keys() == PIXEL_SPACES.keys()
    for name, planes in expected.items():
        np.testing.assert_array_equal(pixel_space(name).encode(rgb), np.asarray(planes, np.float32))


@pytest.mark.parametrize("space", PIXEL_SPACES.values(), ids=lambda s: s.name)
@pytest.mark.parametrize("size", SIZES)
def test_decode_inverts_encode(space, size):
    rgb = picture(2, size)
    encoded = space.encode(rgb)
    assert encoded.shape == (3, *size)
    assert encoded.dtype == np.float32
    assert encoded.flags.c_contiguous
    decoded = space.decode(encoded)
    assert decoded.shape == rgb.shape
    assert decoded.dtype == np.float32
    # Encoding rounds a value of at most 151 out of a range of 255 (2.65 of 1/0.229): half an ulp of that, in units of
    # rgb, is below 1 epsilon; decoding rounds once more.
    np.testing.assert_allclose(decoded, rgb, rtol=0, atol=2 * EPS)


@pytest.mark.parametrize(("source", "target"), PAIRS, ids=lambda s: s.name)
@pytest.mark.parametrize("size", SIZES)
def test_affine_is_encode_after_decode(source, target, size):
    rgb = picture(3, size).astype(np.float64)

    def encode(space):
        planes = np.stack([rgb[..., "rgb".index(c)] for c in space.order])
        return (planes * space.scale - np.reshape(space.mean, (3, 1, 1))) / np.reshape(space.std, (3, 1, 1))

    affine = source.affine_to(target)
    mapped = encode(source)[list(affine.permutation)] * np.reshape(affine.scale, (3, 1, 1))
    mapped = mapped + np.reshape(affine.offset, (3, 1, 1))
    # All in float64: a handful of roundings of numbers up to about 255.
    np.testing.assert_allclose(mapped, encode(target), rtol=0, atol=10 * 255 * np.finfo(np.float64).eps)


@pytest.mark.parametrize("space", PIXEL_SPACES.values(), ids=lambda s: s.name)
def test_affine_to_itself_is_the_identity(space):
    affine = space.affine_to(space)
    assert affine.permutation == (0, 1, 2)
    np.testing.assert_allclose(affine.scale, 1, rtol=1e-15)
    np.testing.assert_allclose(affine.offset, 0, atol=1e-13)


@pytest.mark.parametrize("space", PIXEL_SPACES.values(), ids=lambda s: s.name)
def test_bounds_are_black_and_white(space):
    low, high = space.bounds()
    for value, bound in ((0, low), (1, high)):
        encoded = space.encode(np.full((1, 1, 3), value, np.float32))
        np.testing.assert_array_equal(encoded.ravel(), np.asarray(bound, np.float32))


def test_out_of_range_colours_are_not_clipped():
    rgb = np.asarray([[[-0.5, 1.5, 2.0]]], np.float32)
    for space in (CAFFE, TORCHVISION, UNIT, RGB255):
        np.testing.assert_allclose(space.decode(space.encode(rgb)), rgb, atol=4 * EPS)


@pytest.mark.parametrize("space", PIXEL_SPACES.values(), ids=lambda s: s.name)
def test_a_grey_level_is_nowhere_less_than_the_smallest_deviation(space):
    low, high = space.bounds()
    levels = (np.asarray(high) - np.asarray(low)) / 255
    # Exactly so in the channel where a level takes least; a difference and a few divisions round.
    assert smallest_deviation(space) == pytest.approx(levels.min(), rel=1e-14)


def test_unknown_space():
    with pytest.raises(UnknownNameError, match="did you mean caffe"):
        pixel_space("cafe")
