import weakref

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from impasto.errors import ImageError, MissingTapError, UnknownNameError, UsageError
from impasto.models.backbones import BACKBONES
from impasto.models.conventions import CAFFE, PIXEL_SPACES, TORCHVISION, UNIT
from impasto.models.layers import Conv, Pool
from impasto.models.random_weights import filterbank_weights, random_weights
from impasto.models.reference import Reference

EPS = np.finfo(np.float64).eps
SMALLEST = 1 / 255
"""The standard deviation below which the filter bank divides by no less."""
SIDES = [BACKBONES["filterbank"].smallest(f"bank{level}") for level in range(3)]
"""Of the smallest picture that reaches each of the filter bank's finest levels."""


def sequential(weights, pooling, dtype):
    """The same network as torch's own modules, the way torchvision writes it."""
    modules = []
    for layer in weights.backbone.layers:
        if layer.name not in weights.taps:
            break
        if isinstance(layer, Conv):
            conv = nn.Conv2d(layer.in_channels, layer.out_channels, layer.kernel, padding=(layer.kernel - 1) // 2)
            conv.weight.data = torch.from_numpy(weights.tensors[f"{layer.name}.weight"])
            conv.bias.data = torch.from_numpy(weights.tensors[f"{layer.name}.bias"])
            modules.append(conv)
        elif isinstance(layer, Pool):
            modules.append((nn.MaxPool2d if pooling == "max" else nn.AvgPool2d)(2, 2))
        else:
            modules.append(nn.ReLU(inplace=False))
    return nn.Sequential(*modules).to(dtype)


def noise(seed, height, width, dtype=torch.float64):
    return torch.randn(1, 3, height, width, generator=torch.Generator().manual_seed(seed), dtype=dtype) * 60


@pytest.mark.parametrize("pooling", ["max", "average"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("size", [(4, 4), (5, 11), (16, 9)])
def test_every_tap_is_that_of_a_plain_sequential(pooling, dtype, size):
    weights = random_weights("vgg19", 1, last_conv="conv3_1")
    reference = Reference(weights, weights.taps, pooling, dtype=dtype)
    x = noise(2, *size, dtype)
    found = reference(x)
    assert tuple(found) == weights.taps
    plain = sequential(weights, pooling, dtype)
    # The same torch functions on the same numbers; room is left for a convolution that splits its sums elsewhere.
    tolerance = 1e-5 if dtype == torch.float32 else 1e-13
    with torch.no_grad():
        for tap, module in zip(weights.taps, plain, strict=True):
            x = module(x)
            assert found[tap].dtype == dtype
            assert found[tap].shape == x.shape
            assert (found[tap] - x).norm() <= tolerance * x.norm()


def test_kernels_of_one_pixel_are_not_padded():
    weights = random_weights("vgg16c", 4, last_conv="conv3_3")
    x = noise(5, 9, 8)
    found = Reference(weights, weights.taps, dtype=torch.float64)(x)
    assert found["conv3_3"].shape == (1, 256, 2, 2)
    plain = sequential(weights, "max", torch.float64)(x).detach()
    torch.testing.assert_close(found[weights.taps[-1]], plain, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("convention", [CAFFE, TORCHVISION, UNIT], ids=lambda s: s.name)
@pytest.mark.parametrize("space", PIXEL_SPACES.values(), ids=lambda s: s.name)
def test_any_input_space_gives_the_taps_of_the_pixels_encoded_for_the_weights(convention, space):
    weights = random_weights("vgg19", 6, convention, last_conv="conv2_1")
    rgb = np.random.default_rng(7).random((9, 7, 3))

    def encode(target):  # PixelSpace.encode's formula, kept in float64
        planes = np.stack([rgb[..., "rgb".index(c)] for c in target.order]) * target.scale
        planes = (planes - np.reshape(target.mean, (3, 1, 1))) / np.reshape(target.std, (3, 1, 1))
        return torch.from_numpy(planes[None])

    taps = ["relu1_1", "relu2_1"]
    expected = Reference(weights, taps, dtype=torch.float64)(encode(convention))
    found = Reference(weights, taps, input_space=space, dtype=torch.float64)(encode(space))
    for tap in taps:
        # Rounding only: inputs of up to 255 are off by a few float64 epsilons. (A border padded with zeros of the
        # input's space instead of the weights' would be off by a hundred per cent in the first rows.)
        assert (found[tap] - expected[tap]).norm() <= 1e-13 * expected[tap].norm()


def test_own_space_given_or_not_is_bitwise_the_same():
    weights = random_weights("vgg19", 8, last_conv="conv1_2")
    x = noise(9, 6, 5, torch.float32)
    default = Reference(weights, ["relu1_2"])(x)["relu1_2"]
    assert torch.equal(Reference(weights, ["relu1_2"], input_space=CAFFE)(x)["relu1_2"], default)


def test_gradients_reach_the_input_and_agree_with_finite_differences():
    weights = random_weights("vgg19", 10, last_conv="conv2_1")
    reference = Reference(weights, ["relu2_1"], "average", UNIT, torch.float64)
    x = torch.rand(1, 3, 6, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64, requires_grad=True)
    direction = torch.randn(x.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)

    def loss(y):
        return reference(y)["relu2_1"].square().mean()

    (gradient,) = torch.autograd.grad(loss(x), x)
    step = 1e-7
    with torch.no_grad():
        slope = (loss(x + step * direction) - loss(x - step * direction)) / (2 * step)
    # The loss is piecewise quadratic: central differences are exact but for rounding (1e-16 / 1e-7) and the few ReLUs
    # that flip within the step.
    torch.testing.assert_close((gradient * direction).sum(), slope, rtol=1e-6, atol=0)
    assert list(reference.parameters()) == []


def test_the_modules_weights_are_its_own():
    weights = random_weights("vgg19", 12, last_conv="conv1_1")
    reference = Reference(weights, ["conv1_1"])
    x = noise(3, 3, 3, torch.float32)
    before = reference(x)["conv1_1"].clone()
    weights.tensors["conv1_1.weight"][:] = 0
    assert torch.equal(reference(x)["conv1_1"], before)


def test_nothing_beyond_the_deepest_tap_is_held_or_computed():
    weights = random_weights("vgg19", 13, last_conv="conv2_1")
    reference = Reference(weights, ["conv_1", "block1_conv1"])
    assert {name for name, _ in reference.named_buffers()} == {"conv1_1_weight", "conv1_1_bias"}
    # 1×1 suffices before any pooling.
    assert tuple(reference(noise(1, 1, 1, torch.float32))) == ("conv1_1", "relu1_1")


@pytest.mark.parametrize("bank", [False, True])
@torch.no_grad()
def test_values_are_let_go_of_when_no_later_layer_needs_them(bank, monkeypatch):
    made = []
    most = 0

    def watched(operation):
        def run(*args, **kwargs):
            nonlocal most
            most = max(most, sum(value() is not None for value in made))
            result = operation(*args, **kwargs)
            made.append(weakref.ref(result))
            return result

        return run

    for name in ("conv2d", "relu", "max_pool2d"):
        monkeypatch.setattr(functional, name, watched(getattr(functional, name)))
    weights = filterbank_weights(1) if bank else random_weights("vgg19", 16, last_conv="conv3_1")
    reference = Reference(weights, ["bank0", "bank1", "bank2"] if bank else ["relu3_1"])
    x = torch.rand(1, 3, SIDES[2] + 3, SIDES[2] + 3)
    found = reference(x, reference.calibrate(x))
    # Of what is neither a tap nor the picture, a chain needs one value at a time, and a pyramid the level besides.
    assert most <= 1 if not bank else most <= len(found) + 2
    assert len(made) == 2 * len(reference.layers)


@pytest.mark.parametrize("tap", ["relu1_2", "pool1", "relu2_1", "pool2", "conv3_1"])
def test_smallest_size(tap):
    weights = random_weights("vgg13", 14, last_conv="conv3_1")
    reference = Reference(weights, [tap])
    n = BACKBONES[weights.backbone.name].stride(tap)
    assert reference(noise(1, n, n, torch.float32))[tap].shape[2:] == (1, 1)
    if n > 1:
        for height, width in ((n - 1, 4 * n), (4 * n, n - 1)):
            with pytest.raises(ImageError, match=f"{width}×{height} .* too small for tap '{tap}': .* at least {n}×{n}"):
                reference(noise(1, height, width, torch.float32))


def test_refusals():
    weights = random_weights("vgg19", 15, last_conv="conv1_1")
    with pytest.raises(UnknownNameError, match="unknown pooling 'mean'"):
        Reference(weights, ["conv1_1"], "mean")
    for backbone, example in ((weights, "relu1_1"), (filterbank_weights(), "bank0")):
        with pytest.raises(UsageError, match=f"no taps were asked of .*: give at least one, such as {example}"):
            Reference(backbone, [])
    with pytest.raises(MissingTapError):
        Reference(weights, ["relu4_2"])
    reference = Reference(weights, ["conv1_1"])
    for x in (torch.zeros(3, 4, 4), torch.zeros(2, 3, 4, 4), torch.zeros(1, 4, 4, 4), noise(1, 4, 4)):
        with pytest.raises(UsageError, match=r"takes a \(1, 3, H, W\) tensor of torch.float32"):
            reference(x)


def beyond(side, *margins):
    """Height and width of a picture as much larger than a square as the margins say."""
    return tuple(side + margin for margin in margins)


def unit_noise(seed, height, width):
    """A picture of the filter bank's convention; every seed and channel has contrast and brightness of its own."""
    stream = np.random.default_rng(seed)
    colours, contrasts = stream.uniform(0.3, 0.7, (3, 1, 1)), stream.uniform(0.3, 0.6, (3, 1, 1))
    return torch.from_numpy((colours + contrasts * stream.uniform(-0.5, 0.5, (3, height, width)))[None])


def halved(picture):
    """(3, H, W) filtered by (1, 4, 6, 4, 1)/16 in both directions, at every second position; sum by sum."""
    padded = np.pad(picture, ((0, 0), (2, 2), (2, 2)), mode="reflect")
    height, width = ((side + 1) // 2 for side in picture.shape[1:])
    found = np.zeros((3, height, width))
    for y in range(height):
        for x in range(width):
            for i, row in enumerate((1, 4, 6, 4, 1)):
                for j, column in enumerate((1, 4, 6, 4, 1)):
                    found[:, y, x] += row * column / 256 * padded[:, 2 * y + i, 2 * x + j]
    return found


def responses(picture, kernels):
    """(O, H, W): the products of every kernel with the reflect-padded picture's patches."""
    reach = kernels.shape[-1] // 2
    padded = np.pad(picture, ((0, 0), (reach, reach), (reach, reach)), mode="reflect")
    found = np.zeros((len(kernels), *picture.shape[1:]))
    for y in range(picture.shape[1]):
        for x in range(picture.shape[2]):
            patch = padded[:, y : y + 2 * reach + 1, x : x + 2 * reach + 1]
            found[:, y, x] = (kernels * patch).sum(axis=(1, 2, 3))
    return found


def rounding(weights, largest, scale):
    """How far off a calibrated response may be in float64, for pixels up to ``largest``.

    A sum of n products, of a kernel of unit norm and so at most √n · largest, is off by n of its epsilons; scaling
    multiplies that. Mean and deviation are off by as much again; ten times leaves room for what they multiply,
    responses of a few deviations.
    """
    n = weights.tensors["response0.weight"][0].size
    return 10 * n * EPS * np.sqrt(n) * largest * scale


@pytest.mark.parametrize("size", [(3, 3), (3, 4), (4, 5), (5, 3), (6, 7), (13, 9)])
def test_levels_are_sums_of_the_binomial_filter(size):
    picture = unit_noise(1, *size)
    taps = ["level1"] + ["level2"] * (min(size) >= 5)
    found = Reference(filterbank_weights(), taps, dtype=torch.float64)(picture)
    expected = picture[0].numpy()
    for tap in taps:
        expected = halved(expected)
        # 25 products of numbers below 1, whose weights have the sum 1, after those of the level before.
        np.testing.assert_allclose(found[tap][0], expected, rtol=0, atol=2 * 25 * EPS)


@pytest.mark.parametrize(("margins", "style_margins"), [((0, 0), (1, 0)), ((1, 6), (4, 2)), ((8, 3), (0, 0))])
def test_calibrated_responses_and_banks_are_those_of_numpy(margins, style_margins):
    weights = filterbank_weights(2)
    picture = unit_noise(3, *beyond(SIDES[1], *margins))
    style = unit_noise(4, *beyond(SIDES[1], *style_margins))
    reference = Reference(weights, ["response0", "bank0", "response1", "bank1"], dtype=torch.float64)
    found = reference(picture, reference.calibrate(style))
    assert list(found) == ["response0", "bank0", "response1", "bank1"]
    x, s = picture[0].numpy(), style[0].numpy()
    for level in range(2):
        if level:
            x, s = halved(x), halved(s)
        kernels = weights.tensors[f"response{level}.weight"].astype(np.float64)
        of_style = responses(s, kernels)
        mean = of_style.mean(axis=(1, 2))[:, None, None]
        deviation = np.maximum(of_style.std(axis=(1, 2)), SMALLEST)[:, None, None]
        offset = weights.tensors[f"response{level}.offset"].astype(np.float64)[:, None, None]
        expected = (responses(x, kernels) - mean) / deviation - offset
        atol = rounding(weights, 1, (1 / deviation).max())
        np.testing.assert_allclose(found[f"response{level}"][0], expected, rtol=0, atol=atol)
        np.testing.assert_allclose(found[f"bank{level}"][0], np.maximum(expected, 0), rtol=0, atol=atol)


@pytest.mark.parametrize("margins", [(0, 0), (8, 1), (11, 22)])
def test_responses_over_the_calibration_picture_have_unit_deviation_and_the_mean_minus_offset(margins):
    weights = filterbank_weights(5)
    taps = [f"response{level}" for level in range(3)]
    reference = Reference(weights, taps, dtype=torch.float64)
    style = unit_noise(6, *beyond(SIDES[2], *margins))
    calibration = reference.calibrate(style)
    for tap, found in reference(style, calibration).items():
        scale = calibration[f"{tap}.scale"].max().item()
        assert scale < 1 / SMALLEST
        atol = rounding(weights, 1, scale)
        deviation, mean = torch.std_mean(found[0], dim=(1, 2), correction=0)
        np.testing.assert_allclose(mean, -weights.tensors[f"{tap}.offset"].astype(np.float64), rtol=0, atol=atol)
        np.testing.assert_allclose(deviation, 1, rtol=0, atol=atol)


@pytest.mark.parametrize("factor", [0.25, 1.0, 255.0])
def test_a_common_factor_and_an_offset_of_each_channel_change_no_tap(factor):
    weights = filterbank_weights(7)
    taps = [f"{kind}{level}" for level in range(3) for kind in ("response", "bank")]
    reference = Reference(weights, taps, dtype=torch.float64)
    # Of so much contrast that a quarter of it, halved twice, still deviates by more than the smallest deviation.
    most = 8
    picture, style = (
        most * unit_noise(seed, *beyond(SIDES[2], *margins)) for seed, margins in ((8, (2, 9)), (9, (8, 4)))
    )
    offsets = torch.tensor([-3.0, 0.5, 40.0], dtype=torch.float64).reshape(1, 3, 1, 1)
    calibration, changed = reference.calibrate(style), reference.calibrate(factor * style + offsets)
    expected = reference(picture, calibration)
    found = reference(factor * picture + offsets, changed)
    # A factor of one channel only is no such change.
    lopsided = reference(torch.cat([2 * picture[:, :1], picture[:, 1:]], dim=1), calibration)
    for tap in taps:
        scale = f"{tap.replace('bank', 'response')}.scale"
        assert changed[scale].max() < 1 / SMALLEST
        atol = rounding(weights, factor * most + 40, changed[scale].max().item())
        np.testing.assert_allclose(found[tap], expected[tap], rtol=0, atol=atol)
        assert (lopsided[tap] - expected[tap]).abs().max() > 0.1


@pytest.mark.parametrize("colour", [(0, 0, 0), (1, 1, 1), (1 / 3, 0.7, 0.01)])
def test_calibration_by_a_picture_of_one_colour_divides_by_the_smallest_deviation(colour):
    weights = filterbank_weights(10)
    taps = ["response0", "bank0", "response1", "bank1"]
    size = beyond(SIDES[1], 4, 2)
    flat = torch.tensor(colour, dtype=torch.float64).reshape(1, 3, 1, 1).expand(1, 3, *size)
    for dtype in (torch.float32, torch.float64):
        reference = Reference(weights, taps, dtype=dtype)
        calibration = reference.calibrate(flat.to(dtype))
        for picture in (flat, unit_noise(11, *size)):
            found = reference(picture.to(dtype), calibration)
            assert all(value.isfinite().all() for value in found.values())
        for level in range(2):
            scale = calibration[f"response{level}.scale"]
            torch.testing.assert_close(scale, torch.full_like(scale, 1 / SMALLEST))
    # Where nothing varies, nothing but the offset is left.
    for level in range(2):
        found = reference(flat, calibration)[f"response{level}"][0]
        offset = np.broadcast_to(weights.tensors[f"response{level}.offset"][:, None, None], found.shape)
        np.testing.assert_allclose(found, -offset, rtol=0, atol=rounding(weights, 1, 1 / SMALLEST))


@pytest.mark.parametrize("space", PIXEL_SPACES.values(), ids=lambda s: s.name)
def test_banks_are_the_same_whatever_space_both_pictures_are_in(space):
    weights = filterbank_weights(12)
    to_unit = UNIT.affine_to(space)

    def written(picture):
        scale, offset = (
            torch.tensor(v, dtype=torch.float64).reshape(1, 3, 1, 1) for v in (to_unit.scale, to_unit.offset)
        )
        return picture[:, list(to_unit.permutation)] * scale + offset

    picture, style = unit_noise(13, *beyond(SIDES[1], 2, 5)), unit_noise(14, *beyond(SIDES[1], 4, 1))
    plain = Reference(weights, ["bank0", "bank1"], dtype=torch.float64)
    reference = Reference(weights, ["bank0", "bank1"], input_space=space, dtype=torch.float64)
    calibration = plain.calibrate(style)
    expected, found = plain(picture, calibration), reference(written(picture), reference.calibrate(written(style)))
    for level in range(2):
        # There and back rounds the pixels a few times more, as does a picture of 255 levels.
        atol = rounding(weights, 1, calibration[f"response{level}.scale"].max().item())
        np.testing.assert_allclose(found[f"bank{level}"], expected[f"bank{level}"], rtol=0, atol=atol)


def test_gradients_of_banks_agree_with_finite_differences():
    reference = Reference(filterbank_weights(15), ["bank0", "bank1", "level1"], input_space=CAFFE, dtype=torch.float64)
    size = beyond(SIDES[1], 2, 1)
    x, direction, style = noise(16, *size).requires_grad_(), noise(17, *size), noise(18, *beyond(SIDES[1], 3, 4))
    calibration = reference.calibrate(style)

    def loss(y):
        return sum(value.square().mean() for value in reference(y, calibration).values())

    (gradient,) = torch.autograd.grad(loss(x), x)
    step = 1e-8
    with torch.no_grad():
        slope = (loss(x + step * direction) - loss(x - step * direction)) / (2 * step)
    # The loss is piecewise quadratic: exact but for rounding (1e-16 / 1e-8, of pixels of 60) and the few ReLUs that
    # flip within the step.
    torch.testing.assert_close((gradient * direction).sum(), slope, rtol=1e-6, atol=0)


def test_a_bank_holds_and_calibrates_no_finer_one():
    reference = Reference(filterbank_weights(), ["bank2", "level1"])
    assert {name for name, _ in reference.named_buffers()} == {"response2_weight", "response2_offset"}
    x = torch.rand(1, 3, *beyond(SIDES[2], 0, 3), generator=torch.Generator().manual_seed(19))
    calibration = reference.calibrate(x)
    assert {name: tuple(value.shape) for name, value in calibration.items()} == {
        name: reference.backbone.layer("response2").tensors()["response2.offset"]
        for name in ("response2.scale", "response2.threshold")
    }
    assert list(reference(x, calibration)) == ["level1", "bank2"]
    # Levels need no calibration.
    assert list(Reference(filterbank_weights(), ["level1"])(x)) == ["level1"]


def test_a_layer_without_calibration_is_named():
    weights = filterbank_weights()
    x = torch.rand(1, 3, SIDES[2], SIDES[2], generator=torch.Generator().manual_seed(20))
    reference = Reference(weights, ["bank0", "bank1"])
    other = Reference(weights, ["bank0", "bank2"]).calibrate(x)
    half = {name: value for name, value in reference.calibrate(x).items() if name != "response1.threshold"}
    for calibration, layer in ((None, "response0"), ({}, "response0"), (other, "response1"), (half, "response1")):
        with pytest.raises(UsageError, match=f"no calibration was given for {layer}: pass what calibrate gives"):
            reference(x, calibration)
    # What is left over does no harm.
    expected = reference(x, reference.calibrate(x))
    found = reference(x, other | reference.calibrate(x))
    assert all(torch.equal(found[tap], expected[tap]) for tap in expected)


def test_a_picture_too_small_is_refused_for_the_coarsest_level_in_calibration_too():
    reference = Reference(filterbank_weights(), ["bank0", "level1", "bank2"])
    n = SIDES[2]
    for run in (reference, reference.calibrate):
        with pytest.raises(ImageError, match=f"30×{n - 1} .* too small for tap 'bank2': it needs at least {n}×{n}"):
            run(torch.zeros(1, 3, n - 1, 30))
