"""Each term's loss and its gradient against torch autograd in float64."""

import numpy as np
import onnxruntime
import pytest
import torch

from impasto.export.autodiff import differentiate
from impasto.export.graph import Graph
from impasto.export.terms import content_term, gram_product, style_term, total_of, total_variation


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
def test_style(dynamic, shape):
    graph, positions = Graph(), shape[1] * shape[2]
    tap = graph.input("tap", dims(dynamic, *shape))
    assert style_term(graph, tap, shape[0]) == "loss.style.tap"
    run = with_gradient(graph, "loss.style.tap", tap)
    features, other = random(3, 1, *shape), random(4, shape[0], 30)
    target = (other @ other.T / 30).astype(np.float32)

    def term(f):
        flat = f[0].flatten(1)
        return 0.25 * (flat @ flat.T / positions - torch.from_numpy(target).double()).square().sum()

    found = run(tap=features, style_tap=target, style_tap_scale=scalar(1 / positions), style_tap_weight=scalar(0.25))
    # Sums of up to 3000 products in float32, some of which cancel.
    assert_close(found, by_autograd(term, features), 5e-6)


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
