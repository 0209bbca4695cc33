"""The conversions between 8-bit pixels and pixel spaces, run on the host, against the host's own."""

import numpy as np
import pytest

from impasto.errors import UsageError
from impasto.models.conventions import PIXEL_SPACES, UNIT, PixelSpace
from impasto.runtime.gpu.protocol import TensorSpec
from impasto.runtime.images import to_uint8
from impasto.runtime.kernels.image import ImageKernels
from tests.emulation.host import compiler

pytestmark = pytest.mark.skipif(compiler() is None, reason="no g++ to compile kernels for the host")

# An order that is not its own inverse, which none of the spaces in use has.
TURNED = PixelSpace("turned", "gbr", 100.0, (1.0, 20.0, 30.0), (0.5, 1.5, 2.5))
SPACES = pytest.mark.parametrize("space", [*PIXEL_SPACES.values(), TURNED], ids=lambda space: space.name)


def to_planar(device, space, rgb):
    height, width, _ = rgb.shape
    source, result = device.allocate(rgb.nbytes), device.allocate(4 * rgb.size)
    device.upload(source.address, rgb)
    ImageKernels(device, space).to_planar(source.address, result.address, height, width)
    return device.download(result.address, TensorSpec(np.dtype(np.float32), (3, height, width)))


def to_rgb(device, space, planar, margin=0):
    _, height, width = planar.shape
    shape = (height - 2 * margin, width - 2 * margin, 3)
    source, result = device.allocate(planar.nbytes), device.allocate(int(np.prod(shape)))
    device.upload(source.address, planar)
    ImageKernels(device, space).to_rgb(source.address, result.address, height, width, margin)
    return device.download(result.address, TensorSpec(np.dtype(np.uint8), shape))


def every_level():
    """A picture that has each level in each colour, 48 × 16."""
    levels = [np.random.RandomState(seed).permutation(np.repeat(np.arange(256), 3)) for seed in range(3)]
    return np.stack(levels, axis=1).reshape(48, 16, 3).astype(np.uint8)


def trimmed(picture, margin):
    height, width, _ = picture.shape
    return picture[margin : height - margin, margin : width - margin]


def on_host(space, planar, margin=0):
    return to_uint8(trimmed(space.decode(planar).clip(0, 1), margin))


@SPACES
def test_every_level_has_the_bits_of_the_host(device, space):
    rgb = every_level()
    expected = space.encode(rgb.astype(np.float32) / np.float32(255))
    assert to_planar(device, space, rgb).tobytes() == expected.tobytes()


@SPACES
def test_every_level_comes_back(device, space):
    rgb = every_level()
    np.testing.assert_array_equal(to_rgb(device, space, to_planar(device, space, rgb)), rgb)


@SPACES
def test_any_value_becomes_the_level_of_the_host(device, space):
    stream = np.random.RandomState(1)
    planar = space.encode(stream.uniform(-0.5, 1.5, (37, 53, 3)).astype(np.float32))
    planar[:, 0, :4] = np.inf, -np.inf, np.float32(3e38), np.float32(-1e-45)
    np.testing.assert_array_equal(to_rgb(device, space, planar), on_host(space, planar))


@SPACES
def test_values_around_half_levels_become_the_levels_of_the_host(device, space):
    halves = ((np.arange(255) + 0.5) / 255).astype(np.float32)
    planar = space.encode(np.repeat(halves, 3).reshape(1, 255, 3))
    around = np.concatenate(
        [np.nextafter(planar, np.float32(-np.inf)), planar, np.nextafter(planar, np.float32(np.inf))], axis=1
    )  # fmt: skip
    found = to_rgb(device, space, around)
    np.testing.assert_array_equal(found, on_host(space, around))
    assert (np.diff(found.astype(int), axis=0) != 0).any()  # they do straddle a boundary


def test_a_half_is_rounded_to_the_even_level(device):
    halves = ((np.arange(255) + 0.5) / 255).astype(np.float32)
    exact = halves[halves * np.float32(255) == np.arange(255) + np.float32(0.5)]
    levels = to_rgb(device, UNIT, np.repeat(exact, 3).reshape(-1, 1, 3).transpose(2, 0, 1).copy())
    assert len(exact) > 100
    assert (levels % 2 == 0).all()
    np.testing.assert_array_less(np.abs(levels[:, 0, 0] - exact * 255), 0.5 + 1e-4)


@pytest.mark.parametrize(("size", "margin"), [((1, 1), 0), ((1, 7), 0), ((7, 1), 0), ((3, 4), 1), ((29, 40), 9)])
def test_any_size_and_margin(device, size, margin):
    space = PIXEL_SPACES["caffe"]
    rgb = np.random.RandomState(2).randint(0, 256, (*size, 3)).astype(np.uint8)
    planar = to_planar(device, space, rgb)
    assert planar.tobytes() == space.encode(rgb.astype(np.float32) / np.float32(255)).tobytes()
    np.testing.assert_array_equal(to_rgb(device, space, planar, margin), trimmed(rgb, margin))


def test_nan_is_black(device):
    planar = np.full((3, 2, 3), 0.4, np.float32)
    planar[1, 0, 1] = np.nan
    levels = to_rgb(device, UNIT, planar)
    assert levels[0, 1].tolist() == [102, 0, 102]
    assert (np.delete(levels.reshape(6, 3), 1, axis=0) == 102).all()


@pytest.mark.parametrize("margin", [-1, 2, 3])
def test_a_margin_leaves_something(device, margin):
    kernels = ImageKernels(device, UNIT)
    with pytest.raises(UsageError, match=f"a margin of {margin} pixels leaves nothing of 9 × 4"):
        kernels.to_rgb(0, 0, 4, 9, margin)
