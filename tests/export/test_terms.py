"""Each term's loss and its gradient against torch autograd in float64."""

import numpy as np
import onnxruntime
import pytest
import torch

from impasto.export.autodiff import differentiate
from impasto.export.graph import Graph
from impasto.export.objective import STATISTICS
from impasto.export.terms import (
    STYLE_TERMS,
    channel_sums,
    content_term,
    covariance_term,
    gram_product,
    gram_term,
    total_of,
    total_variation,
)

ROUNDOFF = 2.0**-24  # of float32


def random(seed, *shape):
    return np.random.RandomState(seed).standard_normal(shape).astype(np.float32) * 20


def with_gradient(graph, loss, wrt):
    """Run-ready: outputs loss and gradient."""
    gradient = differentiate(graph, {loss: graph.literal(1.0, np.float32)}, [wrt])[wrt]
    graph.outputs = [loss, gradient]
    session = onnxruntime.InferenceSession(graph.model().SerializeToString(), providers=["CPUExecutionProvider"])
    return lambda **inputs: session.run(None, {name.replace("_", "."): value for name, value in inputs.items()})


def by_autograd(function, x):
    tensor = torch.from_numpy(x).double().requires_grad_()
    value = function(tensor)
    value.backward()
    return value.item(), tensor.grad.numpy()


def assert_close(found, expected, tolerance):
    assert found[0].shape == ()
    assert float(found[0]) == pytest.approx(expected[0], rel=tolerance)
    assert np.linalg.norm(found[1] - expected[1]) <= tolerance * np.linalg.norm(expected[1])


def scalar(value):
    return np.asarray(value, np.float32)


def dims(dynamic, channels, height, width):
    return (1, channels, "height", "width") if dynamic else (1, channels, height, width)


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("shape", [(1, 1, 1), (5, 1, 4), (16, 9, 7)])
def test_content(dynamic, shape):
    graph = Graph()
    tap = graph.input("tap", dims(dynamic, *shape))
    assert content_term(graph, tap, dims(dynamic, *shape)) == "loss.content.tap"
    run = with_gradient(graph, "loss.content.tap", tap)
    features, target = random(1, 1, *shape), random(2, 1, *shape)
    found = run(tap=features, content_tap=target, content_tap_weight=scalar(0.25))
    expected = by_autograd(lambda f: 0.25 * (f - torch.from_numpy(target)).square().sum(), features)
    # A handful of roundings, and pairwise sums of squares.
    assert_close(found, expected, 1e-6)


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("shape", [(1, 1, 1), (5, 1, 4), (16, 9, 7), (3, 60, 50)])
def test_gram(dynamic, shape):
    graph, positions = Graph(), shape[1] * shape[2]
    tap = graph.input("tap", dims(dynamic, *shape))
    assert gram_term(graph, tap, shape[0]) == "loss.style.tap"
    run = with_gradient(graph, "loss.style.tap", tap)
    features, other = random(3, 1, *shape), random(4, shape[0], 30)
    target = (other @ other.T / 30).astype(np.float32)

    def term(f):
        flat = f[0].flatten(1)
        return 0.25 * (flat @ flat.T / positions - torch.from_numpy(target).double()).square().sum()

    found = run(tap=features, style_tap=target, style_tap_scale=scalar(1 / positions), style_tap_weight=scalar(0.25))
    # Sums of up to 3000 products in float32, some of which cancel.
    assert_close(found, by_autograd(term, features), 5e-6)


class Covariance:
    """The covariance's term of given features: what the graph takes, what is right, and how far off float32 may be."""

    def __init__(self, features, target, mean_target, weight=0.25, mean_weight=0.5):
        self.inputs = {
            "tap": features,
            "style_tap": target,
            "style_tap_mean": mean_target,
            "style_tap_scale": scalar(1 / features[0, 0].size),
            "style_tap_weight": scalar(weight),
            "style_tap_mean_weight": scalar(mean_weight),
        }
        self.weight, self.mean_weight = weight, mean_weight

    def exact(self):
        """Loss and gradient in float64, from the features less their mean instead of a difference of products."""
        targets = [torch.from_numpy(self.inputs[name]).double() for name in ("style_tap", "style_tap_mean")]

        def term(f):
            flat = f[0].flatten(1)
            mean = flat.mean(1, keepdim=True)
            covariance = (flat - mean) @ (flat - mean).T / flat.shape[1]
            losses = [(v - t).square().sum() for v, t in zip((covariance, mean), targets, strict=True)]
            return self.weight * losses[0] + self.mean_weight * losses[1]

        return by_autograd(term, self.inputs["tap"])

    def rounding(self):
        """How far off loss and gradient may be.

        F·Fᵀ/N - μμᵀ cancels: it inherits the roundings of its parts, each of the size of Σ|F||F|ᵀ/N. A sum of n
        products is off by some (8 + √n) roundings of its size, as errors of either sign add up. The gradient is
        4c/N·(V - A)·(F - μ) + 2d/N·(μ - m), where (V - A)·F and (V - A)·μ are summed apart.
        """
        flat = self.inputs["tap"][0].reshape(self.inputs["tap"].shape[1], -1).astype(np.float64)
        channels, positions = flat.shape
        few, many = (8 + np.sqrt(n) for n in (channels, positions))
        mean = flat.mean(1, keepdims=True)
        spread = (flat - mean) @ (flat - mean).T / positions - self.inputs["style_tap"]
        level = mean - self.inputs["style_tap_mean"]
        size = np.linalg.norm
        of_spread = 2 * many * ROUNDOFF * size(np.abs(flat) @ np.abs(flat).T / positions)
        of_mean = many * ROUNDOFF * size(np.abs(flat).mean(1))
        loss = self.weight * (2 * size(spread) + of_spread) * of_spread
        loss += self.mean_weight * (2 * size(level) + of_mean) * of_mean
        loss += few * ROUNDOFF * (self.weight * size(spread) ** 2 + self.mean_weight * size(level) ** 2)
        products = 2 * few * ROUNDOFF * size(np.abs(spread) @ np.abs(flat))
        column = np.sqrt(positions)
        of_product = of_spread * size(flat - mean) + products + column * size(spread) * of_mean
        gradient = 4 * self.weight / positions * of_product
        gradient += 2 * self.mean_weight / column * (of_mean + 4 * ROUNDOFF * size(level))
        return loss, gradient


def _covariance(shape):
    graph = Graph()
    graph.input("tap", shape)
    assert covariance_term(graph, "tap", shape[1]) == "loss.style.tap"
    return with_gradient(graph, "loss.style.tap", "tap")


def assert_covariance(run, case):
    found, expected, allowed = run(**case.inputs), case.exact(), case.rounding()
    assert found[0].shape == ()
    assert abs(float(found[0]) - expected[0]) <= allowed[0]
    assert found[1].shape == expected[1].shape
    assert np.linalg.norm(found[1] - expected[1]) <= allowed[1]


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 6, 5), (5, 1, 1), (5, 1, 4), (16, 9, 7), (3, 60, 50), (40, 3, 2)])
def test_covariance(dynamic, shape):
    run = _covariance(dims(dynamic, *shape))
    channels = shape[0]
    mix, other = random(8, channels, channels) / 10, random(10, channels, 30)
    # Channels that vary together, about means of their own.
    features = np.einsum("oc,bchw->bohw", mix, random(9, 1, *shape)) + random(11, 1, channels, 1, 1)
    case = Covariance(
        features.astype(np.float32),
        np.cov(other, bias=True).reshape(channels, channels).astype(np.float32),
        other.mean(1, keepdims=True, dtype=np.float32),
    )
    assert_covariance(run, case)
    loss, gradient = case.exact()
    # What may be off is a small part of what is there; of one position, the terms of the gradient nearly cancel.
    assert case.rounding()[0] < 1e-4 * loss
    assert case.rounding()[1] < 2e-3 * np.linalg.norm(gradient)


@pytest.mark.parametrize("ratio", [1, 10, 30])
def test_covariance_of_small_deviations_about_a_large_mean(ratio):
    """The products exceed their difference by the square of the ratio, and so do the roundings."""
    features = (random(12, 1, 6, 20, 15) / 20 + ratio * np.sign(random(13, 1, 6, 1, 1))).astype(np.float32)
    case = Covariance(features, np.eye(6, dtype=np.float32) / 2, (features.mean((2, 3)).T + 0.5).astype(np.float32))
    assert_covariance(_covariance((1, 6, 20, 15)), case)
    loss, gradient = case.exact()
    assert case.rounding()[0] < 5e-5 * ratio**2 * loss
    assert case.rounding()[1] < 5e-5 * ratio**2 * np.linalg.norm(gradient)


@pytest.mark.parametrize("positions", [(1, 1), (4, 16)])
def test_features_that_do_not_vary_have_no_covariance(positions):
    """Quarters and powers of two are exact, so that nothing at all is left; of the mean there is no more slope."""
    run = _covariance((1, 4, *positions))
    level = np.array([0, 0.25, 3, 7.75], np.float32).reshape(1, 4, 1, 1)
    features = np.broadcast_to(level, (1, 4, *positions)).copy()
    case = Covariance(features, np.zeros((4, 4), np.float32), level.reshape(4, 1))
    loss, gradient = run(**case.inputs)
    assert loss == 0
    assert not gradient.any()
    # The covariance has no slope there, whatever its target: it is squared deviations from the mean.
    case = Covariance(features, np.ones((4, 4), np.float32), level.reshape(4, 1) - 0.5)
    loss, gradient = run(**case.inputs)
    assert loss == 0.25 * 16 + 0.5 * 4 * 0.25
    np.testing.assert_array_equal(gradient, np.full_like(features, 2 * 0.5 * 0.5 / np.prod(positions)))


@pytest.mark.parametrize("sides", [("height", "width"), (9, 7)])
def test_the_means_slope_is_not_expanded_to_the_features_size(sides):
    """It is left to the addition; the features' are the largest tensors of all."""
    graph = Graph()
    graph.input("tap", (1, 16, *sides))
    loss = covariance_term(graph, "tap", 16)
    graph.outputs = [differentiate(graph, {loss: graph.literal(1.0, np.float32)}, ["tap"])["tap"]]
    graph.prune()
    types = graph.infer_shapes()
    assert all(len(types[n.output[0]][1]) < 4 for n in graph.nodes if n.op_type == "Expand")


def test_every_statistic_has_a_term():
    assert set(STYLE_TERMS) == set(STATISTICS)


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("shape", [(1, 1, 1), (5, 1, 4), (3, 60, 50)])
def test_channel_sums(dynamic, shape):
    graph = Graph()
    graph.input("tap", dims(dynamic, *shape))
    graph.outputs = [channel_sums(graph, "tap", shape[0])]
    session = onnxruntime.InferenceSession(graph.model().SerializeToString(), providers=["CPUExecutionProvider"])
    features = random(14, 1, *shape)
    (found,) = session.run(None, {"tap": features})
    assert found.shape == (shape[0], 1)
    flat = features.reshape(shape[0], -1).astype(np.float64)
    # Sums of 60 and of 50 numbers, at most.
    assert (np.abs(found[:, 0] - flat.sum(1)) <= sum(shape[1:]) * ROUNDOFF * np.abs(flat).sum(1)).all()


FORMS = {
    "squared": lambda dx, dy: (dx.square().sum() + dy.square().sum()) / 2,
    "absolute": lambda dx, dy: dx.abs().sum() + dy.abs().sum(),
    "power": lambda dx, dy: (dx[:, :, :-1].square() + dy[..., :-1].square()).pow(1.25).sum(),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dynamic", [False, True])
def test_total_variation(form, dynamic):
    if not dynamic:
        sizes = [(1, 1), (1, 6), (6, 1), (2, 2), (7, 5)]
        runs = {size: _variation(form, (1, 3, *size)) for size in sizes}
    else:
        run = _variation(form, (1, 3, "height", "width"))
        runs = dict.fromkeys([(1, 1), (1, 6), (6, 1), (2, 2), (7, 5), (40, 33)], run)
    for size, run in runs.items():
        image = random(6, 1, 3, *size)
        expected = by_autograd(lambda x: 0.7 * FORMS[form](x.diff(dim=3), x.diff(dim=2)), image)
        assert_close(run(image=image, tv_weight=scalar(0.7)), expected, 2e-6)


def _variation(form, shape):
    graph = Graph()
    graph.input("image", shape)
    assert total_variation(graph, form) == "loss.tv"
    return with_gradient(graph, "loss.tv", "image")


@pytest.mark.parametrize("form", FORMS)
def test_a_flat_picture_has_no_variation_and_no_slope(form):
    loss, gradient = _variation(form, (1, 3, 4, 5))(image=np.full((1, 3, 4, 5), 7.5, np.float32), tv_weight=scalar(1))
    assert loss == 0
    assert not gradient.any()


def test_the_gram_product_is_symmetric_and_plain():
    graph = Graph()
    graph.input("tap", (1, 4, 3, 5))
    graph.outputs = [gram_product(graph, "tap", 4)]
    session = onnxruntime.InferenceSession(graph.model().SerializeToString(), providers=["CPUExecutionProvider"])
    features = np.arange(60, dtype=np.float32).reshape(1, 4, 3, 5)
    (found,) = session.run(None, {"tap": features})
    flat = features.reshape(4, 15)
    # Whole numbers below 2²⁴ are exact.
    np.testing.assert_array_equal(found, flat @ flat.T)


@pytest.mark.parametrize("squared", [False, True])
def test_totals_of_a_million_numbers_stay_exact(squared):
    """Added up one by one in float32, a million numbers near one lose 1e-3; axis by axis, 1e-6 at most."""
    graph = Graph()
    graph.input("x", (1, 4, 500, 500))
    graph.outputs = [total_of(graph, "x", 4, squared=squared)]
    session = onnxruntime.InferenceSession(graph.model().SerializeToString(), providers=["CPUExecutionProvider"])
    x = np.random.RandomState(7).uniform(0.9, 1.1, (1, 4, 500, 500)).astype(np.float32)
    (found,) = session.run(None, {"x": x})
    exact = float(np.sum(x.astype(np.float64) ** (2 if squared else 1)))
    assert float(found) == pytest.approx(exact, rel=1e-6)
