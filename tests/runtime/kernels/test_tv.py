"""The total variation's kernels, run on the host."""

import numpy as np
import pytest

from impasto.errors import LimitError, UnknownNameError, UsageError
from impasto.runtime.gpu.protocol import TensorSpec
from impasto.runtime.kernels.tv import TotalVariation
from impasto.runtime.plans import kernels
from tests.emulation.host import compiler

pytestmark = pytest.mark.skipif(compiler() is None, reason="no g++ to compile kernels for the host")

FORMS = ("squared", "absolute", "power")
# One tile is 32 rows of 32 columns, or of 128 where the width is a multiple of four.
SIZES = [(1, 1), (1, 7), (7, 1), (2, 2), (1, 4), (2, 8), (3, 4), (33, 31), (4, 33), (35, 65), (5, 128), (34, 132)]
EPSILON = 2.0**-23


def random(seed, *shape):
    return np.random.RandomState(seed).standard_normal(shape).astype(np.float32) * 30


def run(device, image, form, *, weight=1.0, upstream=None, factor=1.0, power=1.25, in_place=False):
    """Return the loss, the gradient and the partial losses."""
    planes, height, width = image.shape
    variation = TotalVariation(device, height, width, form, planes=planes, power=power)
    source, result = device.allocate(image.nbytes), device.allocate(image.nbytes)
    losses = device.allocate(8 * variation.loss_count)
    device.upload(source.address, image)
    above = 0
    if upstream is not None:
        above = result.address if in_place else device.allocate(image.nbytes).address
        device.upload(above, upstream)
    variation.enqueue(
        source.address, result.address, losses.address, weight=weight, upstream=above, factor=factor
    )  # fmt: skip
    partial = device.download(losses.address, TensorSpec(np.dtype(np.float64), (variation.loss_count,)))
    gradient = device.download(result.address, TensorSpec(np.dtype(np.float32), image.shape))
    return partial.sum(), gradient, partial


def reference(image, form, power=1.25):
    """The total variation in float64, its gradient, and the sum of the magnitudes that cancel in the gradient."""
    image = image.astype(np.float64)
    dx, dy = np.zeros_like(image), np.zeros_like(image)
    dx[:, :, :-1] = np.diff(image, axis=2)
    dy[:, :-1] = np.diff(image, axis=1)
    if form == "power":
        dx[:, -1], dy[:, :, -1] = 0, 0
        squares = dx**2 + dy**2
        slope = 2 * power * np.where(squares == 0, 1, squares) ** (power - 1)
        loss, slope_x, slope_y = (squares**power).sum(), slope * dx, slope * dy
    elif form == "squared":
        loss, slope_x, slope_y = (dx**2 + dy**2).sum() / 2, dx, dy
    else:
        loss, slope_x, slope_y = (abs(dx) + abs(dy)).sum(), np.sign(dx), np.sign(dy)
    gradient, magnitude = -slope_x - slope_y, abs(slope_x) + abs(slope_y)
    gradient[:, :, 1:] += slope_x[:, :, :-1]
    gradient[:, 1:] += slope_y[:, :-1]
    magnitude[:, :, 1:] += abs(slope_x[:, :, :-1])
    magnitude[:, 1:] += abs(slope_y[:, :-1])
    return loss, gradient, magnitude


def assert_close(found, expected, *, weight=1.0, above=0.0):
    """A slope has at most eight roundings, two of a root that is within two units; sums and products add four."""
    loss, gradient, magnitude = expected
    assert found[0] == pytest.approx(weight * loss, rel=8 * EPSILON)
    error = np.abs(found[1] - (weight * gradient + above))
    assert (error <= 8 * EPSILON * (weight * magnitude + np.abs(above))).all()


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("form", FORMS)
def test_loss_and_gradient_are_those_of_float64(device, form, size):
    image = random(1, 3, *size)
    assert_close(run(device, image, form), reference(image, form))


@pytest.mark.parametrize("size", [(1, 1), (2, 8), (35, 65), (34, 132)], ids=str)
@pytest.mark.parametrize("form", FORMS)
def test_what_comes_from_above_is_scaled_and_added(device, form, size):
    image, upstream = random(2, 3, *size), random(3, 3, *size)
    found = run(device, image, form, weight=0.3, upstream=upstream, factor=0.125)
    assert_close(found, reference(image, form), weight=0.3, above=0.125 * upstream.astype(np.float64))
    same = run(device, image, form, weight=0.3, upstream=upstream, factor=0.125, in_place=True)
    np.testing.assert_array_equal(same[1], found[1])


@pytest.mark.parametrize("planes", [1, 2, 5])
def test_any_number_of_planes(device, planes):
    image = random(4, planes, 6, 36)
    found = run(device, image, "power")
    assert_close(found, reference(image, "power"))
    assert len(found[2]) == planes


@pytest.mark.parametrize("size", [(9, 13), (6, 36)], ids=str)
@pytest.mark.parametrize("power", [0.5, 1.0, 1.25, 1.5, 2.0])
def test_any_power(device, power, size):
    image = random(5, 3, *size)
    image[:, 2:5, 3:7] = 7  # differences of zero among others
    found = run(device, image, "power", power=power)
    # The power itself is taken to two units in the last place; it replaces the roots.
    assert_close(found, reference(image, "power", power))


@pytest.mark.parametrize("form", FORMS)
def test_it_is_the_host_plans_total_variation(device, form):
    image = random(6, 3, 21, 30)
    loss, gradient = kernels.total_variation(image[None], 0.7, form)
    found = run(device, image, form, weight=0.7)
    assert found[0] == pytest.approx(loss, rel=8 * EPSILON)
    # Both are within 8 roundings of float64; the magnitudes that cancel are those of up to four differences.
    bound = 16 * EPSILON * 0.7 * reference(image, form)[2]
    assert (np.abs(found[1] - gradient[0]) <= bound).all()


@pytest.mark.parametrize("size", [(9, 13), (34, 132)], ids=str)
def test_ties_have_no_slope_in_the_absolute_form(device, size):
    image = np.random.RandomState(7).randint(0, 3, (3, *size)).astype(np.float32)
    loss, gradient, _ = reference(image, "absolute")
    found = run(device, image, "absolute")
    assert found[0] == loss  # whole numbers: nothing is rounded
    np.testing.assert_array_equal(found[1], gradient)


@pytest.mark.parametrize("size", [(1, 1), (9, 13), (34, 132)], ids=str)
@pytest.mark.parametrize(("form", "power"), [*((form, 1.25) for form in FORMS), ("power", 0.5), ("power", 1.0)])
def test_a_constant_picture_varies_nowhere(device, form, power, size):
    image = np.full((3, *size), -103.939, np.float32)
    upstream = random(8, 3, *size)
    loss, gradient, _ = run(device, image, form, power=power, weight=9.0, upstream=upstream)
    assert loss == 0
    np.testing.assert_array_equal(gradient, upstream)


@pytest.mark.parametrize("size", [(5, 7), (6, 8)], ids=str)
@pytest.mark.parametrize("form", FORMS)
def test_the_gradient_is_the_slope_of_the_loss(device, form, size):
    # Multiples of 1/8 that differ from all their neighbours, and steps of 1/4: pictures are exact in float32, and no
    # difference changes its sign on the way.
    rows, columns = np.indices(size)
    image = np.random.RandomState(9).randint(-40, 40, (3, *size)) / 8 + (rows % 2 + 2 * (columns % 2)) * 20.0
    step = np.random.RandomState(10).choice([-1, 1], (3, *size)) / 4
    _, gradient, _ = run(device, image.astype(np.float32), form)
    after = run(device, (image + step).astype(np.float32), form)[0]
    before = run(device, (image - step).astype(np.float32), form)[0]
    # Losses are rounded to 1e-6 of themselves at worst; third derivatives of differences above 10 do not reach that.
    assert (after - before) / 2 == pytest.approx(np.sum(gradient * step, dtype=np.float64), abs=1e-6 * after)
    assert abs(after - before) > 1e-4 * after


@pytest.mark.parametrize("size", [(9, 13), (34, 132)], ids=str)
@pytest.mark.parametrize("form", FORMS)
def test_nan_reaches_what_it_touches_and_nothing_else(device, form, size):
    image = random(11, 3, *size)
    for plane, row, column in [(0, 3, 4), (0, 0, 0), (1, size[0] - 1, size[1] - 1), (2, 4, size[1] - 1)]:
        image[plane, row, column] = np.nan
    _, gradient, _ = reference(image, form)
    found = run(device, image, form)
    assert np.isnan(found[0])
    assert 0 < np.isnan(gradient).sum() < 30
    np.testing.assert_array_equal(np.isnan(found[1]), np.isnan(gradient))


@pytest.mark.parametrize("size", [(35, 65), (34, 132)], ids=str)
@pytest.mark.parametrize("form", FORMS)
def test_the_same_picture_gives_the_same_bits(device, form, size):
    image, upstream = random(12, 3, *size), random(13, 3, *size)
    first, second = (run(device, image, form, weight=0.3, upstream=upstream) for _ in range(2))
    assert first[1].tobytes() == second[1].tobytes()
    assert first[2].tobytes() == second[2].tobytes()


@pytest.mark.parametrize("size", [(1, 1), (35, 65), (34, 132)], ids=str)
def test_a_weight_of_zero_leaves_what_comes_from_above(device, size):
    image, upstream = np.full((3, *size), np.nan, np.float32), random(14, 3, *size)
    loss, gradient, partial = run(device, image, "squared", weight=0.0, upstream=upstream, factor=0.3)
    assert loss == 0
    assert np.isfinite(partial).all()
    np.testing.assert_array_equal(gradient, upstream * np.float32(0.3))
    _, gradient, _ = run(device, image, "squared", weight=0.0, upstream=upstream, factor=0.3, in_place=True)
    np.testing.assert_array_equal(gradient, upstream * np.float32(0.3))
    _, gradient, _ = run(device, image, "squared", weight=0.0)
    np.testing.assert_array_equal(gradient, np.zeros_like(image))


def test_rows_of_whole_vectors_are_read_as_vectors(device):
    for width in (5, 8):
        run(device, random(15, 3, 3, width), "absolute")
    assert device.launches == ["tv_absolute", "tv_absolute_float4"]


def test_a_form_that_there_is_not_names_those_there_are(device):
    with pytest.raises(UnknownNameError, match=r"unknown total variation 'cubic': known: squared"):
        TotalVariation(device, 4, 4, "cubic")


@pytest.mark.parametrize("power", [0.0, -1.0, float("nan"), float("inf")])
def test_a_power_is_a_positive_number(device, power):
    with pytest.raises(UsageError, match=f"power {power} of the total variation"):
        TotalVariation(device, 4, 4, "power", power=power)


def test_planes_beyond_32_bits_are_refused(device):
    with pytest.raises(LimitError, match="too many for the total variation"):
        TotalVariation(device, 2**15, 2**16, "squared")
