from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from impasto.errors import WeightsError
from impasto.export.forward import forward_graph
from impasto.export.fused import fuse, fused_graph
from impasto.export.objective import Objective
from impasto.export.precision import features
from impasto.export.rescale import PROBE_SIZE, probe, rescaled
from impasto.models.conventions import RGB255, UNIT
from impasto.models.layers import Conv
from impasto.models.random_weights import random_weights

CASES = {
    "random": ("vgg19", {"relu4_2": 1.0}, ("relu1_1", "conv2_1", "pool3", "relu4_1", "relu5_1")),
    "torchvision": ("vgg19_torchvision", {"conv3_2": 1.0}, ("relu1_2", "relu3_1")),
    "real": ("real_blocks", {"relu3_4": 1.0}, ("relu1_1", "pool1", "relu2_1", "conv3_1")),
}


@pytest.fixture(params=CASES, scope="module")
def case(request):
    """Weights, and content and style taps on them."""
    name, content, style = CASES[request.param]
    return request.getfixturevalue(name), content, dict.fromkeys(style, 1.0)


def convs(weights):
    return [tap for tap in weights.taps if isinstance(weights.backbone.layer(tap), Conv)]


def changed(weights, **tensors):
    return replace(weights, tensors={**weights.tensors, **{name.replace("__", "."): v for name, v in tensors.items()}})


@pytest.mark.parametrize("pooling", ["max", "average"])
def test_mean_activations_of_the_probe_come_near_one(case, run, pooling):
    weights, factors = rescaled(case[0], pooling)
    graph = forward_graph(weights, convs(weights), pooling=pooling, shape=(PROBE_SIZE, PROBE_SIZE))
    found = run(graph, {"image": weights.convention.encode(probe())[None]})
    for conv, value in found.items():
        # The nearest power of two is within √2 either way; a little more for the rounding of the mean.
        assert 0.7 < value.clip(min=0).mean(dtype=np.float64) < 1.42, conv
        assert factors[conv] == factors[conv.replace("conv", "relu")]


def test_each_layer_is_scaled_by_powers_of_two_and_nothing_is_rounded(case):
    original = case[0]
    weights, factors = rescaled(original)
    assert (weights.backbone, weights.convention, weights.name) == (
        original.backbone,
        original.convention,
        original.name,
    )
    assert set(factors) == set(original.taps)
    assert all(np.frexp(factor)[0] == 0.5 for factor in factors.values())
    before = 1.0
    for conv in convs(original):
        kernel, bias = (f"{conv}.{part}" for part in ("weight", "bias"))
        ratio = np.float32(factors[conv] / before)
        np.testing.assert_array_equal(weights.tensors[kernel] / ratio, original.tensors[kernel])
        np.testing.assert_array_equal(weights.tensors[bias] / np.float32(factors[conv]), original.tensors[bias])
        before = factors[conv]
    assert all(tensor.dtype == np.float32 for tensor in weights.tensors.values())


@pytest.mark.parametrize("space", [None, UNIT, RGB255], ids=lambda space: space and space.name)
def test_every_tap_is_the_original_times_its_factor(shallow, run, picture, space):
    """Bit for bit, whatever the picture: multiplying by a power of two commutes with every rounding."""
    weights, factors = rescaled(shallow)
    image = (space or shallow.convention).encode(picture(4, 21, 26))[None]
    before, after = (
        run(forward_graph(w, shallow.taps, space=space, shape=(21, 26)), {"image": image}) for w in (shallow, weights)
    )
    for tap, factor in factors.items():
        np.testing.assert_array_equal(after[tap], before[tap] * np.float32(factor))


def test_losses_and_gradient_stay_what_they_were(case, run, picture):
    original, content, style = case
    space = original.convention
    objective = Objective(content, style, tv=1e-3, pixels=space.name, convention=space.name)
    size = (33, 40)
    plain = fused_graph(objective, original, size)
    weights, factors = rescaled(original)
    scaled = features(forward_graph(weights, objective.taps, space=space, shape=size), factors)
    fuse(scaled, objective.content, dict.fromkeys(style, "gram"), objective.tv_form)
    assert scaled.outputs == plain.outputs

    stream = np.random.RandomState(5)
    values = {"image": space.encode(picture(6, *size))[None]}
    for name, (_, shape) in plain.inputs.items():
        # Targets and coefficients of any size: the terms are far from zero, which is the harder case.
        values.setdefault(name, np.asarray(stream.standard_normal(shape), np.float32))
    expected, found = run(plain, values), run(scaled, values)
    for name in plain.outputs:
        assert np.isfinite(expected[name]).all()
        # Exact, as long as the runtime adds up in the same order although nodes stand between.
        np.testing.assert_array_equal(found[name], expected[name])


def test_a_backbone_without_convolutions_stays_as_it_is(bank):
    weights, factors = rescaled(bank)
    assert weights is bank
    assert factors == dict.fromkeys(bank.taps, 1.0)


def test_rescaling_twice_changes_nothing(shallow):
    """Unless a mean lies just where rounding turns, and for this seed none does."""
    once, _ = rescaled(shallow)
    twice, factors = rescaled(once)
    assert set(factors.values()) == {1.0}
    assert twice.sha256 == once.sha256


# --- Weights that are unlike others -----------------------------------------------------------------------------------


def test_a_layer_that_is_dead_keeps_the_factor_before_it():
    weights = random_weights("vgg11", 2, last_conv="conv2_1")
    zeros = {
        name: np.zeros_like(weights.tensors[name.replace("__", ".")]) for name in ("conv2_1__weight", "conv2_1__bias")
    }
    weights, factors = rescaled(changed(weights, **zeros))
    assert factors["conv2_1"] == factors["pool1"] != 1
    assert not weights.tensors["conv2_1.weight"].any()


@pytest.mark.parametrize("bias", [-1e3, -1e6])
def test_a_layer_that_seldom_responds_is_not_blown_up(bias, run):
    """Its mean asks for a large factor, and what lies before the ReLU would leave fp16's range."""
    weights = random_weights("vgg11", 3, last_conv="conv2_1")
    weights = changed(weights, conv2_1__bias=np.full(128, bias, np.float32))
    scaled, _ = rescaled(weights)
    graph = forward_graph(scaled, ["conv2_1"], shape=(PROBE_SIZE, PROBE_SIZE))
    largest = np.abs(run(graph, {"image": scaled.convention.encode(probe())[None]})["conv2_1"]).max()
    assert 2048 < largest <= 4096


@pytest.mark.parametrize("size", [1e-12, 1e12])
def test_weights_of_any_size_end_up_alike(size):
    weights = random_weights("vgg11", 4, last_conv="conv2_1")
    expected, factors = rescaled(weights)
    exponent = round(np.log2(size))
    larger = changed(weights, conv1_1__weight=np.ldexp(weights.tensors["conv1_1.weight"], exponent))
    larger = changed(larger, **{f"{c}__bias": np.ldexp(weights.tensors[f"{c}.bias"], exponent) for c in convs(weights)})
    found, other = rescaled(larger)
    assert found.sha256 == expected.sha256
    assert other == {tap: factor * 2.0**-exponent for tap, factor in factors.items()}


def test_weights_that_overflow_float32_are_refused():
    weights = random_weights("vgg11", 5, last_conv="conv2_1")
    huge = {f"{c}__weight": weights.tensors[f"{c}.weight"] * np.float32(1e20) for c in convs(weights)}
    with pytest.raises(WeightsError, match=r"conv2_1 overflows float32"):
        rescaled(changed(weights, **huge))


# --- The probe --------------------------------------------------------------------------------------------------------


def test_the_probe_is_a_picture_like_photographs():
    picture = probe()
    assert picture.shape == (PROBE_SIZE, PROBE_SIZE, 3)
    assert picture.dtype == np.float32
    assert picture.min() >= 0
    assert picture.max() <= 1
    np.testing.assert_array_equal(picture, probe())
    assert not np.array_equal(picture, probe(seed=1))
    # Power falls with the square of the frequency: the same energy in every octave, but for what was clipped.
    grey = picture.mean(axis=2, dtype=np.float64) - picture.mean(dtype=np.float64)
    frequency = np.fft.fftfreq(PROBE_SIZE)
    radius = np.hypot(frequency[:, None], frequency[None, :])
    power = np.abs(np.fft.fft2(grey)) ** 2
    octaves = [power[(radius >= low) & (radius < 2 * low)].mean() for low in (1 / 64, 1 / 32, 1 / 16, 1 / 8, 1 / 4)]
    slopes = np.diff(np.log2(octaves))
    assert (np.abs(slopes + 2) < 0.5).all()
    # Coloured, but less than it is light and dark.
    red, green, blue = np.moveaxis(picture.astype(np.float64), 2, 0)
    assert grey.std() > (red + green - 2 * blue).std() / np.sqrt(6) > (red - green).std() / np.sqrt(2) > 0.02
