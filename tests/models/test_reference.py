import numpy as np
import pytest
import torch
from torch import nn

from impasto.errors import ImageError, MissingTapError, UnknownNameError, UsageError
from impasto.models.backbones import BACKBONES, Conv, Pool
from impasto.models.conventions import CAFFE, PIXEL_SPACES, TORCHVISION, UNIT
from impasto.models.random_weights import random_weights
from impasto.models.reference import Reference


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


@pytest.mark.parametrize("convention", [CAFFE, TORCHVISION], ids=lambda s: s.name)
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
    with pytest.raises(UsageError, match="no taps"):
        Reference(weights, [])
    with pytest.raises(MissingTapError):
        Reference(weights, ["relu4_2"])
    reference = Reference(weights, ["conv1_1"])
    for x in (torch.zeros(3, 4, 4), torch.zeros(2, 3, 4, 4), torch.zeros(1, 4, 4, 4), noise(1, 4, 4)):
        with pytest.raises(UsageError, match=r"takes a \(1, 3, H, W\) tensor of torch.float32"):
            reference(x)
