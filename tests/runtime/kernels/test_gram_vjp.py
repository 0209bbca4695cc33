"""The kernel of a tap's cotangent, run on the host."""

import numpy as np
import pytest

from impasto.errors import LimitError, UsageError
from impasto.runtime.gpu.protocol import TensorSpec
from impasto.runtime.kernels.gram import Gram
from impasto.runtime.kernels.gram_vjp import GramVjp
from tests.emulation.host import HostDevice, compiler
from tests.runtime.kernels.features import F32, TYPES, UNIT, put, random, types

pytestmark = pytest.mark.skipif(compiler() is None, reason="no g++ to compile kernels for the host")

F64 = np.dtype(np.float64)
ROUNDING = {"float32": 2.0**-24, "float16": 2.0**-11, "bfloat16": 2.0**-8}
LEAST = {"float32": 2.0**-150, "float16": 2.0**-25, "bfloat16": 2.0**-134}  # half the smallest number


def put_peaks(device, seed, features):
    """Upload peaks as Gram.compare leaves them, the largest one last."""
    count = Gram(device, *features.shape, features.dtype).peak_count
    peaks = np.zeros(count, np.float32)
    peaks[-1] = np.nanmax(abs(seed))
    return put(device, peaks)


def run(device, features, *, seed=None, bias=None, target=None, upstream=None, in_place=False, offset=0, **options):
    """Return the cotangent and the partial losses of the content term, if there is one."""
    vjp = GramVjp(device, *features.shape, features.dtype, scale=options.pop("scale", 1.0))
    places = {"bias": bias, "target": target, "seed": seed, "upstream": upstream}
    addresses = {name: put(device, values) for name, values in places.items() if values is not None}
    if seed is not None:
        addresses["peaks"] = put_peaks(device, seed, features)
    if target is not None:
        addresses["losses"] = device.allocate(8 * vjp.loss_count).address
    result = addresses["upstream"] if in_place else device.allocate(features.nbytes + offset).address + offset
    vjp.enqueue(put(device, features, offset), result, **addresses, **options)
    cotangent = device.download(result, TensorSpec(features.dtype, features.shape))
    losses = addresses.get("losses")
    return cotangent, device.download(losses, TensorSpec(F64, (vjp.loss_count,))) if losses else None


def expected(features, *, seed=None, bias=None, target=None, upstream=None, content=0.0, masked=False):
    """The cotangent in float64, and a bound of the kernel's error."""
    name = features.dtype.name
    exact = features.astype(np.float64)
    value, bound = np.zeros_like(exact), np.zeros_like(exact)
    if seed is not None:
        magnitude = abs(seed) @ abs(exact)
        # One rounding an addition; a half's seed is rounded as well, elements 2^-28 of the largest in absolute terms.
        rounded = 0.0 if name == "float32" else ROUNDING[name]
        value += seed.astype(np.float64) @ exact
        bound += (rounded + 1.01 * (len(exact) + 16) * UNIT) * magnitude
        bound += rounded * 2.0**-28 * abs(seed).max() * abs(exact).sum(0)
    terms = []
    if bias is not None:
        terms.append(np.broadcast_to(bias[:, None], exact.shape))
    if target is not None:
        terms.append(content * (exact - target.astype(np.float64)))
    if upstream is not None:
        terms.append(upstream.astype(np.float64))
    for term in terms:
        value = value + term
    # Four additions, and two roundings of the content term.
    bound += 6 * UNIT * (abs(value) + sum(abs(term) for term in terms) + bound)
    bound += 1.01 * ROUNDING[name] * (abs(value) + bound) + LEAST[name]
    if masked:
        value, bound = value * (exact > 0), bound * (exact > 0)
    return value, bound


# Around one, two and many tiles; whole panels and rests; rows aligned to 16, 8, 4 bytes, or to an element only.
SIZES = [(1, 1), (3, 1), (3, 7), (64, 128), (65, 130), (63, 257), (130, 132), (96, 516), (257, 33), (512, 20)]


@types
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_the_seed_times_the_features_is_that_of_float64(device, size, dtype):
    features = random(1, *size, dtype)
    # Not symmetric, so that rows and columns are not confounded.
    seed = random(2, size[0], size[0])
    found, _ = run(device, features, seed=seed)
    value, bound = expected(features, seed=seed)
    assert (abs(found.astype(np.float64) - value) <= bound).all()


@pytest.mark.parametrize("masked", [False, True], ids=["open", "masked"])
@types
@pytest.mark.parametrize("size", [(1, 1), (5, 129), (70, 33), (130, 260)], ids=str)
def test_all_terms_join_in_one_pass(device, size, dtype, masked):
    features, seed, bias = random(3, *size, dtype), random(4, size[0], size[0]), random(5, size[0], 1)[:, 0]
    target, upstream = random(6, *size, dtype), random(7, *size, dtype)
    features[features < -1] = 0  # not positive, and not negative
    scale, weight, λ = 2.0, 0.4, 8.0
    found, losses = run(
        device, features, seed=seed, bias=bias, target=target, upstream=upstream,
        scale=scale, content_weight=weight, cotangent_scale=λ, masked=masked,
    )  # fmt: skip
    content = 2 * λ * weight / scale**2
    value, bound = expected(
        features, seed=seed, bias=bias, target=target, upstream=upstream, content=content, masked=masked
    )
    assert (abs(found.astype(np.float64) - value) <= bound).all()
    loss = weight / scale**2 * ((features.astype(np.float64) - target.astype(np.float64)) ** 2).sum()
    # A difference, its square, and the sum of four of these: five roundings; halves' differences may need one too.
    assert losses.sum() == pytest.approx(loss, rel=6 * UNIT)


@types
def test_tiles_of_128_channels_are_chosen_where_they_leave_no_multiprocessor_idle(dtype):
    features, seed = random(8, 200, 261, dtype), random(9, 200, 200)
    value, bound = expected(features, seed=seed)
    suffix = {"float32": "f32", "float16": "f16", "bfloat16": "bf16"}[dtype.name]
    for multiprocessors, wide in ((6, dtype != F32), (7, False)):
        device = HostDevice(multiprocessors)
        found, _ = run(device, features, seed=seed)
        assert device.launches == [f"gram_vjp_{'wide_' if wide else ''}{suffix}"]
        assert (abs(found.astype(np.float64) - value) <= bound).all()
        device.close()


@types
def test_terms_that_are_not_given_are_left_out(device, dtype):
    features, other = random(10, 5, 131, dtype), random(11, 5, 131, dtype)
    nothing, losses = run(device, features)
    assert losses is None
    np.testing.assert_array_equal(nothing, np.zeros_like(features))
    passed, _ = run(device, features, upstream=other)
    np.testing.assert_array_equal(passed, other)
    shifts = np.arange(5, dtype=np.float32)
    shifted, _ = run(device, features, bias=shifts)
    np.testing.assert_array_equal(shifted, np.repeat(shifts[:, None], 131, 1).astype(dtype))
    content, losses = run(device, features, target=features, content_weight=3.0)
    np.testing.assert_array_equal(content, np.zeros_like(features))
    np.testing.assert_array_equal(losses, 0)


@types
def test_the_mask_is_open_where_a_feature_is_above_zero(device, dtype):
    tiny = np.array(LEAST[dtype.name] * 2).astype(dtype)
    features = np.array([[-1, 0, -0.0, tiny, 1, np.nan]], np.float64).astype(dtype)
    found, _ = run(device, features, upstream=np.ones_like(features), masked=True)
    np.testing.assert_array_equal(found.astype(np.float64), [[0, 0, 0, 1, 1, 0]])


@types
@pytest.mark.parametrize("size", [(70, 129), (130, 128), (3, 5)], ids=str)
def test_upstream_may_be_where_the_cotangent_goes(device, size, dtype):
    terms = {"seed": random(12, size[0], size[0]), "target": random(13, *size, dtype), "content_weight": 2.0}
    features, upstream = random(14, *size, dtype), random(15, *size, dtype)
    apart = run(device, features, upstream=upstream, masked=True, **terms)
    within = run(device, features, upstream=upstream, masked=True, in_place=True, **terms)
    for found, wanted in zip(within, apart, strict=True):
        np.testing.assert_array_equal(found, wanted)


@types
@pytest.mark.parametrize("count", [64, 61])
def test_features_may_begin_at_any_element(device, count, dtype):
    features, seed = random(16, 70, count, dtype), random(17, 70, 70)
    wanted, _ = run(device, features, seed=seed, masked=True)
    for offset in (1, 2, 4):
        found, _ = run(device, features, seed=seed, masked=True, offset=offset * dtype.itemsize)
        np.testing.assert_array_equal(found, wanted)


@types
def test_the_same_arguments_give_the_same_bits(device, dtype):
    features, seed, target = random(18, 130, 300, dtype), random(19, 130, 130), random(20, 130, 300, dtype)
    first = run(device, features, seed=seed, target=target, content_weight=1.0)
    again = run(device, features, seed=seed, target=target, content_weight=1.0)
    for found, wanted in zip(again, first, strict=True):
        np.testing.assert_array_equal(found, wanted)


@types
@pytest.mark.parametrize(("size", "level"), [(1e-9, 1e4), (1e8, 1e-5), (1e-30, 1.0), (1e30, 1e-30)])
def test_a_seed_beyond_the_range_of_halves_keeps_its_precision(device, dtype, size, level):
    seed = (random(21, 70, 70) * size).astype(np.float32)
    features = (random(22, 70, 33) * level).astype(dtype)
    found, _ = run(device, features, seed=seed)
    value, bound = expected(features, seed=seed)
    assert (abs(found.astype(np.float64) - value) <= bound).all()


@types
def test_small_rows_of_a_seed_keep_their_precision_beside_large_ones(device, dtype):
    seed = np.ldexp(random(33, 70, 70), (8 - np.arange(70) // 3)[:, None])
    features = random(34, 70, 33, dtype)
    found, _ = run(device, features, seed=seed)
    value, bound = expected(features, seed=seed)
    assert (abs(found.astype(np.float64) - value) <= bound).all()


@types
def test_nan_in_a_seed_spoils_its_row_and_nan_in_a_feature_its_column(device, dtype):
    features, seed = random(23, 70, 140, dtype), random(24, 70, 70)
    seed[66, 3] = np.nan
    found, _ = run(device, features, seed=seed)
    np.testing.assert_array_equal(np.isnan(found.astype(np.float32)), np.repeat(np.arange(70)[:, None] == 66, 140, 1))
    seed[66, 3] = 0
    features[2, 133] = np.nan
    found, losses = run(device, features, seed=seed, target=random(25, 70, 140, dtype), content_weight=1.0)
    np.testing.assert_array_equal(np.isnan(found.astype(np.float32)), np.repeat(np.arange(140)[None] == 133, 70, 0))
    assert np.isnan(losses.sum())


@types
@pytest.mark.parametrize("value", [np.inf, -np.inf])
def test_infinity_in_a_seed_or_a_target_is_not_lost(device, dtype, value):
    features, seed, target = random(26, 9, 20, dtype), random(27, 9, 9), random(28, 9, 20, dtype)
    seed[4, 4] = value
    assert not np.isfinite(run(device, features, seed=seed)[0][4].astype(np.float32)).any()
    target[3, 7] = value
    found, losses = run(device, features, target=target, content_weight=1.0)
    np.testing.assert_array_equal(np.argwhere(~np.isfinite(found.astype(np.float32))), [[3, 7]])
    assert losses.sum() == np.inf


@pytest.mark.parametrize("centred", [False, True], ids=["gram", "covariance"])
@types
def test_with_the_gram_kernels_it_is_the_gradient_of_the_objective(device, dtype, centred):
    channels, count, scale, λ, weight, d = 70, 333, 0.5, 64.0, 40.0, 3.0
    features = random(29, channels, count, dtype, mean=0.5)
    other = random(30, channels, 100, mean=0.3).astype(np.float64)
    mean_target = other.mean(1)
    target = other @ other.T / 100 - np.outer(mean_target, mean_target) * centred
    gram = Gram(device, channels, count, dtype, centred=centred, scale=scale)
    places = [gram.partials_bytes, 4 * channels**2, 8 * gram.loss_count, 4 * gram.peak_count, 4 * channels]
    partials, seed, losses, peaks, bias = (device.allocate(nbytes).address for nbytes in places)
    at = put(device, features)
    gram.enqueue(at, partials)
    means = {"mean_target": put(device, mean_target.astype(np.float32)), "mean_weight": d, "bias": bias}
    gram.compare(
        partials, put(device, target.astype(np.float32)), seed, losses, weight=weight, cotangent_scale=λ, peaks=peaks,
        **(means if centred else {}),
    )  # fmt: skip
    result = device.allocate(features.nbytes).address
    vjp = GramVjp(device, channels, count, dtype, scale=scale)
    vjp.enqueue(at, result, seed=seed, peaks=peaks, bias=bias if centred else 0, cotangent_scale=λ)
    found = device.download(result, TensorSpec(dtype, features.shape)).astype(np.float64)

    exact = features.astype(np.float64) / scale
    mean = exact.mean(1) * centred
    spread = exact @ exact.T / count - np.outer(mean, mean) - target
    level = (mean - mean_target) * centred
    wanted = 4 * weight / count * spread @ (exact - mean[:, None]) + 2 * d / count * level[:, None]
    wanted *= λ / scale
    loss = weight * (spread**2).sum() + d * (level**2).sum()
    # Rounding of the seed and of the result, one another's equal; in float32, of some hundred products.
    tolerance = 1e-5 if dtype == F32 else 2 * ROUNDING[dtype.name]
    assert np.linalg.norm(found - wanted) <= tolerance * np.linalg.norm(wanted)
    # A half's features are exact here, so that the loss is float32's, whatever the type.
    assert device.download(losses, TensorSpec(F64, (gram.loss_count,))).sum() == pytest.approx(loss, rel=1e-5)


def test_without_tensor_cores_bfloat16_takes_the_seed_as_it_is(turing):
    device, kernel = turing
    features, seed = random(31, 70, 333, TYPES[2]), random(32, 70, 70)
    result = device.allocate(features.nbytes).address
    arguments = put(device, features), result, np.int32(70), np.int64(333), put(device, seed)
    kernel("turing_gram_vjp")((2 * 3, 1), 256, *arguments)
    found = device.download(result, TensorSpec(features.dtype, features.shape)).astype(np.float64)
    exact = features.astype(np.float64)
    value, magnitude = seed.astype(np.float64) @ exact, abs(seed) @ abs(exact)
    assert (abs(found - value) <= 1.01 * (72 * UNIT * magnitude + ROUNDING["bfloat16"] * abs(value))).all()


def test_before_sm_80_bfloat16_has_tiles_of_64():
    assert GramVjp(HostDevice(1, (7, 5)), 128, 1000, TYPES[2]).loss_count == 2 * 8
    assert GramVjp(HostDevice(1, (8, 0)), 128, 1000, TYPES[2]).loss_count == 8
    assert GramVjp(HostDevice(1, (7, 5)), 128, 1000, TYPES[1]).loss_count == 8


def test_what_cannot_be_computed_is_refused(device):
    with pytest.raises(UsageError, match="losses"):
        GramVjp(device, 3, 4, F32).enqueue(1, 1, target=1)
    with pytest.raises(UsageError, match="peaks"):
        GramVjp(device, 3, 4, TYPES[1]).enqueue(1, 1, seed=1)
    with pytest.raises(UsageError, match="float64"):
        GramVjp(device, 3, 4, F64)
    with pytest.raises(LimitError, match="channels"):
        GramVjp(device, 2**15 + 1, 4, F32)
    with pytest.raises(UsageError, match="scale"):
        GramVjp(device, 3, 4, F32, scale=0.0)
