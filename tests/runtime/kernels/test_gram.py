"""The Gram kernels, run on the host."""

from functools import partial

import numpy as np
import pytest

from impasto.errors import LimitError, UsageError
from impasto.runtime.gpu.protocol import TensorSpec
from impasto.runtime.kernels.gram import Gram, gram_plan
from impasto.runtime.plans import kernels
from tests.emulation.host import HostDevice, compiler
from tests.runtime.kernels import features as given
from tests.runtime.kernels.features import F32, TYPES, UNIT, put, types

pytestmark = pytest.mark.skipif(compiler() is None, reason="no g++ to compile kernels for the host")

F64 = np.dtype(np.float64)

random = partial(given.random, mean=0.5)  # a mean that is not zero is what the two statistics differ by
centring = pytest.mark.parametrize("centred", [False, True], ids=["gram", "covariance"])


def statistics(features, scale=1.0):
    """Exact G, mean, and what their magnitudes would be without cancellation."""
    exact = features.astype(np.float64) / scale
    count = exact.shape[1]
    return exact @ exact.T / count, exact.mean(1), abs(exact) @ abs(exact).T / count, abs(exact).mean(1)


def errors(plan, features, scale, centred):
    """Bounds of the errors of G (or V), element by element, and of the means, as the kernels' comments derive them.

    A half's products are exact in float32, and added one after the other within a chunk. The means' error is doubled in
    their product; each is half a panel's strands, the compensated sum, and the sum of two halves.
    """
    _, _, magnitude, level = statistics(features, scale)
    additions = 10 if features.dtype == F32 else min(plan.chunk, features.shape[1])
    mean = 12 * UNIT * level
    product = (additions + 1) * UNIT * magnitude
    return product + 2.1 * np.outer(level, mean) * centred, mean + UNIT * level


def measure(device, features, *, centred=False, scale=1.0, offset=0):
    """Return G or V, the mean, and the plan."""
    channels, positions = features.shape
    gram = Gram(device, channels, positions, features.dtype, centred=centred, scale=scale)
    partials = device.allocate(gram.partials_bytes).address
    product = device.allocate(4 * channels**2).address
    mean = device.allocate(4 * channels).address if centred else 0
    gram.enqueue(put(device, features, offset), partials)
    gram.gram(partials, product, mean)
    found = device.download(product, TensorSpec(F32, (channels, channels)))
    means = device.download(mean, TensorSpec(F32, (channels,))) if centred else None
    return found, means, gram_plan(device, channels, positions, features.dtype)


def compare(device, features, target, *, centred=False, scale=1.0, weight=0.3, λ=1.0, mean=None, d=0.7, scratch=None):
    """Return the partial losses, the seed, the peaks and the bias; ``scratch`` fills the partials beforehand."""
    channels, positions = features.shape
    gram = Gram(device, channels, positions, features.dtype, centred=centred, scale=scale)
    partials = device.allocate(gram.partials_bytes).address
    if scratch is not None:
        device.upload(partials, np.frombuffer(np.random.RandomState(scratch).bytes(gram.partials_bytes), np.uint8))
    seed, losses = device.allocate(4 * channels**2).address, device.allocate(8 * gram.loss_count).address
    peaks, bias = device.allocate(4 * gram.peak_count).address, device.allocate(4 * channels).address
    means = {"mean_target": put(device, mean), "mean_weight": d, "bias": bias} if centred else {}
    gram.enqueue(put(device, features), partials)
    gram.compare(partials, put(device, target), seed, losses, weight=weight, cotangent_scale=λ, peaks=peaks, **means)
    return (
        device.download(losses, TensorSpec(F64, (gram.loss_count,))),
        device.download(seed, TensorSpec(F32, (channels, channels))),
        device.download(peaks, TensorSpec(F32, (gram.peak_count,))),
        device.download(bias, TensorSpec(F32, (channels,))) if centred else None,
    )


# Around one, two and many tiles; whole panels and rests; rows aligned to 16, 8, 4 bytes, or to an element only.
SIZES = [(1, 1), (3, 1), (3, 7), (5, 63), (64, 64), (65, 130), (63, 1028), (96, 601), (130, 258), (257, 40), (512, 33)]


@centring
@types
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_the_gram_matrix_and_the_covariance_are_those_of_float64(device, size, dtype, centred):
    features = random(sum(size), *size, dtype)
    found, means, plan = measure(device, features, centred=centred, scale=0.25)
    gram, mean, _, _ = statistics(features, 0.25)
    bound, mean_bound = errors(plan, features, 0.25, centred)
    assert (abs(found - (gram - np.outer(mean, mean) * centred)) <= bound).all()
    if centred:
        assert (abs(means - mean) <= mean_bound).all()
    np.testing.assert_array_equal(found, found.T)


@types
@pytest.mark.parametrize("count", [64, 61])
def test_features_may_begin_at_any_element(device, count, dtype):
    features = random(1, 70, count, dtype)
    for offset in (1, 2, 4):
        found, _, _ = measure(device, features, offset=offset * dtype.itemsize)
        np.testing.assert_array_equal(found, measure(device, features)[0])


@pytest.mark.parametrize("multiprocessors", [1, 5, 200])
@types
def test_any_number_of_splits_gives_the_gram_matrix(multiprocessors, dtype):
    device = HostDevice(multiprocessors)
    features = random(2, 50, 5003, dtype)
    found, means, plan = measure(device, features, centred=True)
    assert plan.splits == {1: 2, 5: 10, 200: 20}[multiprocessors]
    gram, mean, _, _ = statistics(features)
    bound, mean_bound = errors(plan, features, 1.0, True)
    assert (abs(found - (gram - np.outer(mean, mean))) <= bound).all()
    assert (abs(means - mean) <= mean_bound).all()
    device.close()


@pytest.mark.parametrize("size", [(128, 1000), (100, 2047), (256, 1026)], ids=str)
@pytest.mark.parametrize("dtype", TYPES[1:], ids=lambda dtype: dtype.name)
def test_tiles_of_128_channels_give_the_gram_matrix(size, dtype):
    device = HostDevice(1)
    features = random(3, *size, dtype)
    found, means, plan = measure(device, features, centred=True)
    assert plan.tile == 128
    assert f"gram_wide_{'f16' if dtype.name == 'float16' else 'bf16'}" in device.launches
    gram, mean, _, _ = statistics(features)
    bound, mean_bound = errors(plan, features, 1.0, True)
    assert (abs(found - (gram - np.outer(mean, mean))) <= bound).all()
    assert (abs(means - mean) <= mean_bound).all()
    device.close()


def test_float32_is_within_a_millionth_of_float64_over_many_positions():
    # Of one sign, as after a ReLU, so that errors relative to magnitudes are relative to elements. In one level of
    # float32, a constant 0.1 would be wrong by 1e-3: all its roundings go the same way.
    device = HostDevice(1)
    random_values = np.random.RandomState(4).standard_normal((2, 262144))
    features = np.stack([np.full(262144, 0.1), np.maximum(random_values[0], 0), abs(random_values[1])])
    features = features.astype(np.float32)
    found, _, plan = measure(device, features)
    assert plan.chunk >= 100_000  # one split sums more than any device's would
    exact = statistics(features)[0]
    assert (abs(found - exact) <= 1e-6 * exact).all()
    device.close()


@types
def test_zeros_and_constants_are_exact(device, dtype):
    # Small whole numbers: no sum is rounded, and a constant has no variance.
    zeros, twos = np.zeros((5, 300), dtype), np.full((5, 300), 2, dtype)
    np.testing.assert_array_equal(measure(device, zeros)[0], 0)
    np.testing.assert_array_equal(measure(device, twos)[0], 4)
    spread, mean, _ = measure(device, twos, centred=True)
    np.testing.assert_allclose(spread, 0, atol=1e-15)  # 1/N is rounded, in float64
    np.testing.assert_array_equal(mean, 2)


@centring
@types
@pytest.mark.parametrize("size", [(1, 1), (3, 17), (70, 611), (130, 64)], ids=str)
def test_loss_seed_peaks_and_bias_are_the_terms(device, size, dtype, centred):
    channels, count = size
    scale, weight, d, λ = 4.0, 0.3, 0.7, 1024.0
    features = random(5, *size, dtype)
    other = random(6, channels, 50)
    target, mean_target = (other @ other.T / 50).astype(np.float32), other.mean(1).astype(np.float32)
    losses, seed, peaks, bias = compare(
        device, features, target, centred=centred, scale=scale, weight=weight, λ=λ, mean=mean_target, d=d
    )
    gram, mean, _, _ = statistics(features, scale)
    spread = gram - np.outer(mean, mean) * centred - target
    level = mean - mean_target
    bound, mean_bound = errors(gram_plan(device, channels, count, dtype), features, scale, centred)
    factor = λ * 4 * weight / (count * scale**2)
    assert (abs(seed - factor * spread) <= 1.01 * factor * bound + UNIT * abs(factor * spread)).all()
    np.testing.assert_array_equal(seed, seed.T)
    assert peaks.max() == abs(seed).max()
    loss = weight * (spread**2).sum() + d * (level**2).sum() * centred
    slack = weight * (2 * abs(spread) * bound + bound**2).sum()
    slack += d * (2 * abs(level) * mean_bound + mean_bound**2).sum() * centred
    assert abs(losses.sum() - loss) <= slack + 1e-14 * loss
    if centred:
        expected = λ * 2 * d / (count * scale) * level - seed.astype(np.float64) @ (scale * mean)
        slack = λ * 2 * d / (count * scale) * mean_bound + abs(seed) @ (scale * mean_bound)
        assert (abs(bias - expected) <= slack + 2 * UNIT * abs(expected) + 1e-14 * (abs(seed) @ abs(mean))).all()


def test_loss_and_seed_are_those_of_the_plan_on_the_host(device):
    features = random(7, 20, 30 * 7)
    other = random(8, 1, 20 * 50).reshape(1, 20, 5, 10)
    target = kernels.gram(other)
    losses, seed, _, _ = compare(device, features, target)
    loss, cotangent = kernels.style(features.reshape(1, 20, 30, 7), target, 0.3)
    # The host's float32 sums are of 210 products.
    assert losses.sum() == pytest.approx(loss, rel=1e-5)
    found = seed @ features
    assert np.linalg.norm(found - cotangent.reshape(20, -1)) <= 1e-5 * np.linalg.norm(found)


@types
def test_the_same_features_give_the_same_bits_whatever_is_in_scratch_memory(device, dtype):
    features = random(9, 70, 1300, dtype)
    target, mean = measure(HostDevice(), random(10, 70, 40), centred=True)[:2]
    first = compare(device, features, target, centred=True, mean=mean)
    for scratch in (None, 1, 2):
        again = compare(device, features, target, centred=True, mean=mean, scratch=scratch)
        for found, expected in zip(again, first, strict=True):
            np.testing.assert_array_equal(found, expected)


@centring
@types
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_shows_in_loss_and_seed(device, value, dtype, centred):
    features = random(11, 70, 300, dtype)
    features[66, 217] = value
    target = np.zeros((70, 70), np.float32)
    losses, seed, _, bias = compare(device, features, target, centred=centred, mean=np.zeros(70, np.float32))
    assert not np.isfinite(losses.sum())
    spoilt = ~np.isfinite(seed)
    assert spoilt[66].all()
    assert spoilt[:, 66].all()
    assert spoilt.sum() == 2 * 70 - 1
    if np.isnan(value):
        assert np.isnan(losses.sum())
        assert np.isnan(seed[66]).all()
    if centred:
        assert not np.isfinite(bias[66])


def test_nan_in_a_target_shows_in_loss_and_seed_and_is_no_peak(device):
    target = np.ones((5, 5), np.float32)
    target[3, 2] = target[2, 3] = np.nan
    losses, seed, peaks, _ = compare(device, random(12, 5, 9), target)
    assert np.isnan(losses.sum())
    np.testing.assert_array_equal(np.argwhere(np.isnan(seed)), [[2, 3], [3, 2]])
    assert peaks.max() == np.nanmax(abs(seed))


def test_a_weight_of_zero_leaves_nothing(device):
    losses, seed, peaks, bias = compare(
        device, random(13, 9, 20), np.ones((9, 9), np.float32), weight=0, d=0, centred=True, mean=np.ones(9, np.float32)
    )
    assert not losses.any()
    assert not seed.any()
    assert not peaks.any()
    assert not bias.any()


def test_a_centred_term_needs_a_mean_target_and_only_it_has_a_mean(device):
    with pytest.raises(UsageError, match="mean_target"):
        Gram(device, 3, 4, F32, centred=True).compare(1, 1, 1, 1, weight=1, cotangent_scale=1)
    with pytest.raises(UsageError, match="not centred"):
        Gram(device, 3, 4, F32).gram(1, 1, 1)


def test_features_that_no_kernel_takes_are_refused(device):
    with pytest.raises(UsageError, match="float64"):
        Gram(device, 3, 4, F64)
    for size in ((0, 4), (3, 0)):
        with pytest.raises(UsageError, match="at least one"):
            Gram(device, *size, F32)
    with pytest.raises(LimitError, match="channels"):
        Gram(device, 2**15 + 1, 4, F32)
    for scale in (0.0, -1.0, np.nan, np.inf):
        with pytest.raises(UsageError, match="scale"):
            Gram(device, 3, 4, F32, scale=scale)


def test_before_sm_80_bfloat16_has_tiles_of_64():
    old, new = HostDevice(1, (7, 5)), HostDevice(1, (8, 0))
    sizes = 128, 100_000
    assert gram_plan(new, *sizes, TYPES[2]).tile == 128
    assert gram_plan(old, *sizes, TYPES[2]).tile == 64
    assert gram_plan(old, *sizes, TYPES[1]).tile == 128


@pytest.mark.parametrize("size", [(64, 262144), (128, 65536), (256, 16384), (512, 4096), (512, 1024)], ids=str)
@types
def test_a_large_device_is_busy_and_partial_products_are_small(size, dtype):
    device = HostDevice(132)
    plan = gram_plan(device, *size, dtype)
    assert 132 <= plan.tiles * plan.splits <= 2 * 132
    assert 4 * plan.elements * plan.splits <= 2 * 132 * plan.tile**2 * 4
    assert (plan.splits - 1) * plan.chunk < size[1] <= plan.splits * plan.chunk
    assert plan.blocks * 256 == plan.elements * plan.groups
    assert plan.blocks <= 8 * 132  # each of gram_vjp's blocks reads as many peaks


def test_without_tensor_cores_halves_are_summed_as_float32_is(turing):
    device, kernel = turing
    features = random(14, 70, 1001, TYPES[2])
    plan = gram_plan(device, 70, 1001, TYPES[2])
    partials = device.allocate(4 * plan.splits * plan.elements).address
    product = device.allocate(4 * 70**2).address
    arguments = put(device, features), np.int32(70), np.int64(1001), np.int32(plan.chunk), partials, 0
    kernel("turing_gram")((plan.tiles, plan.splits), 128, *arguments)
    sizes = np.int32(70), np.int32(64), np.int32(plan.splits), np.int32(plan.groups)
    second = device.kernel("gram", "gram_product")
    second((plan.blocks, 1), 256, partials, *sizes, np.float64(1 / 1001), 0, product)
    found = device.download(product, TensorSpec(F32, (70, 70)))
    exact, _, magnitude, _ = statistics(features)
    assert (abs(found - exact) <= 11 * UNIT * magnitude).all()
