import numpy as np
import pytest
import torch

from impasto.errors import UnknownNameError
from impasto.runtime.plans import kernels


def random(seed, *shape):
    return np.random.RandomState(seed).standard_normal(shape).astype(np.float32) * 30


def by_autograd(function, x):
    """The value and gradient of a function of a float64 tensor."""
    tensor = torch.from_numpy(x).double().requires_grad_()
    value = function(tensor)
    value.backward()
    return value.item(), tensor.grad.numpy()


def assert_close(found, expected, tolerance):
    loss, gradient = found
    assert loss == pytest.approx(expected[0], rel=tolerance)
    assert gradient.dtype == np.float32
    assert np.linalg.norm(gradient - expected[1]) <= tolerance * np.linalg.norm(expected[1])


@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (1, 5, 1, 3), (1, 16, 9, 7)])
def test_content(shape):
    features, target = random(1, *shape), random(2, *shape)
    kept = features.copy(), target.copy()
    # One rounding each of the difference and of its product: 1.2e-7.
    expected = by_autograd(lambda f: 0.3 * (f - torch.from_numpy(target)).square().sum(), features)
    assert_close(kernels.content(features, target, 0.3), expected, 5e-7)
    np.testing.assert_array_equal(features, kept[0])
    np.testing.assert_array_equal(target, kept[1])


@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (1, 5, 1, 3), (1, 16, 9, 7), (1, 7, 40, 50)])
def test_style(shape):
    features, target = random(3, *shape), kernels.gram(random(4, 1, shape[1], 3, 2))

    def term(f):
        flat = f[0].flatten(1)
        gram = flat @ flat.T / flat.shape[1]
        return 0.3 * (gram - torch.from_numpy(target).double()).square().sum()

    # Sums of at most 2000 products, of which some cancel: a few dozen roundings.
    assert_close(kernels.style(features, target, 0.3), by_autograd(term, features), 3e-6)


@pytest.mark.parametrize("weights", [(0.3, 0.7), (0.3, 0.0), (0.0, 0.7)], ids=["both", "covariance", "mean"])
@pytest.mark.parametrize("shape", [(1, 5, 1, 3), (1, 16, 9, 7), (1, 7, 40, 50)])
def test_covariance(shape, weights):
    # A mean of about a standard deviation, as a ReLU's output has.
    features, others = random(7, *shape) + 30, random(8, 1, shape[1], 3, 2) + 20
    target = np.cov(others[0].reshape(shape[1], -1), bias=True).astype(np.float32).reshape(shape[1], shape[1])
    mean_target = others.mean(axis=(0, 2, 3))[:, None]
    kept = features.copy(), target.copy(), mean_target.copy()

    def term(f):
        flat = f[0].flatten(1)
        mean = flat.mean(dim=1, keepdim=True)
        covariance = (flat - mean) @ (flat - mean).T / flat.shape[1]
        spread = (covariance - torch.from_numpy(target).double()).square().sum()
        return weights[0] * spread + weights[1] * (mean - torch.from_numpy(mean_target).double()).square().sum()

    found = kernels.covariance(features, target, weights[0], mean_target, weights[1])
    # As above; subtracting the square of the mean doubles what a rounding is relative to.
    assert_close(found, by_autograd(term, features), 6e-6)
    for array, before in zip((features, target, mean_target), kept, strict=True):
        np.testing.assert_array_equal(array, before)


def test_a_single_position_has_a_mean_and_no_covariance_that_could_change():
    features, mean_target = random(9, 1, 5, 1, 1) + 30, random(10, 5, 1)
    target = np.eye(5, dtype=np.float32)
    loss, cotangent = kernels.covariance(features, target, 0.3, mean_target, 0.7)
    level = features.astype(np.float64).reshape(5, 1) - mean_target
    # G - μμᵀ is exactly zero; what the spread says to the one position and takes back is rounded on either way.
    assert loss == pytest.approx(0.3 * 5 + 0.7 * np.square(level).sum(), rel=1e-6)
    np.testing.assert_allclose(cotangent.reshape(5, 1), 2 * 0.7 * level, rtol=1e-6, atol=4 * 0.3 * 100 * 2e-7)


def test_a_target_that_is_met_costs_nothing():
    features = random(5, 1, 6, 4, 5)
    mean = features.mean(axis=(2, 3), dtype=np.float64).astype(np.float32).reshape(6, 1)
    loss, cotangent = kernels.covariance(features, kernels.gram(features) - mean @ mean.T, 1.0, mean, 1.0)
    assert loss == 0
    assert not cotangent.any()
    loss, cotangent = kernels.content(features, features.copy(), 1.0)
    assert loss == 0
    assert not cotangent.any()
    loss, cotangent = kernels.style(features, kernels.gram(features), 1.0)
    assert loss == 0
    assert not cotangent.any()


FORMS = {
    "squared": lambda dx, dy: (dx.square().sum() + dy.square().sum()) / 2,
    "absolute": lambda dx, dy: dx.abs().sum() + dy.abs().sum(),
    "power": lambda dx, dy: (dx[:, :, :-1].square() + dy[..., :-1].square()).pow(1.25).sum(),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("size", [(1, 1), (1, 6), (6, 1), (2, 2), (7, 5)])
def test_total_variation(form, size):
    image = random(6, 1, 3, *size)
    expected = by_autograd(lambda x: 0.7 * FORMS[form](x.diff(dim=3), x.diff(dim=2)), image)
    # Up to four neighbours' slopes, each a few roundings, may cancel.
    assert_close(kernels.total_variation(image, 0.7, form), expected, 2e-6)


@pytest.mark.parametrize("form", FORMS)
def test_a_flat_picture_has_no_variation_and_no_slope(form):
    loss, gradient = kernels.total_variation(np.full((1, 3, 4, 5), 7.5, np.float32), 1.0, form)
    assert loss == 0
    assert not gradient.any()


def test_an_unknown_form_is_refused():
    with pytest.raises(UnknownNameError, match="squared"):
        kernels.total_variation(np.zeros((1, 3, 2, 2), np.float32), 1.0, "squred")


def test_squares_are_summed_in_float64():
    """A million squares of one, and then some: float32 would stop counting the small ones."""
    values = np.full(1_000_000, 1e-3, np.float32)
    values[0] = 1e3
    exact = float(np.sum(values.astype(np.float64) ** 2))
    assert kernels.sum_of_squares(values) == pytest.approx(exact, rel=1e-12)
