from __future__ import annotations

import numpy as np
import onnxruntime
import pytest
import torch
import torch.nn.functional as nnf

from impasto.errors import GraphError
from impasto.export.forward import forward_graph
from impasto.export.graph import Graph
from impasto.export.slices import cotangent, slice_graph
from impasto.models.conventions import UNIT
from impasto.models.reference import Reference


def run(graph, values):
    session = onnxruntime.InferenceSession(graph.model().SerializeToString(), providers=["CPUExecutionProvider"])
    values = {name: np.ascontiguousarray(values[name]) for name in graph.inputs}
    return dict(zip(graph.outputs, session.run(graph.outputs, values), strict=True))


def forward(slices, values):
    """All tensors, slice by slice."""
    for piece in slices:
        values = values | run(piece.forward, {name: values[name] for name in piece.inputs})
    return values


def backward(slices, values, cotangents):
    """Cotangents of the graph's inputs, slice by slice; each is used up by the slice that made its tensor."""
    pending = dict(cotangents)
    for piece in reversed(slices):
        given = {name: values[name] for name in piece.residuals}
        given |= {cotangent(name): pending.pop(name) for name in piece.outputs}
        for name, value in run(piece.gradient, given).items():
            name = name.removeprefix("cotangent.")
            pending[name] = pending[name] + value if name in pending else value
    return pending


def random(seed, *shape):
    return np.random.RandomState(seed).standard_normal(shape).astype(np.float32)


def assert_close(found, expected, tolerance):
    assert found.shape == expected.shape
    assert np.linalg.norm(found - expected) <= tolerance * np.linalg.norm(expected)


TAP_SETS = {
    "after every ReLU": ["relu1_1", "relu1_2", "relu2_1", "relu2_2", "relu3_1"],
    "before ReLUs": ["conv1_2", "conv2_1", "conv3_1"],
    "at pools": ["pool1", "pool2"],
    "a convolution and its own ReLU": ["conv2_2", "relu2_2", "relu3_1"],
    "a ReLU and the pool behind it": ["relu1_2", "pool1", "conv2_2"],
    "one": ["relu2_1"],
    "the first layer": ["conv1_1"],
}


@pytest.mark.parametrize("taps", TAP_SETS.values(), ids=TAP_SETS)
@pytest.mark.parametrize("pooling", ["max", "average"])
@pytest.mark.parametrize("dynamic", [False, True], ids=["fixed", "dynamic"])
def test_chained_slices_are_the_whole(shallow, taps, pooling, dynamic):
    size = (13, 22)
    graph = forward_graph(shallow, taps, pooling=pooling, space=UNIT, shape=None if dynamic else size)
    slices = slice_graph(graph, graph.outputs)
    assert [piece.tap for piece in slices] == taps
    image = np.random.RandomState(1).random_sample((1, 3, *size)).astype(np.float32)
    values = forward(slices, {"image": image})

    whole = run(graph, {"image": image})
    x = torch.from_numpy(image).double().requires_grad_()
    exact = Reference(shallow, taps, pooling, UNIT, torch.float64)(x)
    seeds = {}
    for seed, tap in enumerate(taps):
        # The same convolutions of the same numbers, but a runtime may fuse across what was cut.
        assert_close(values[tap], whole[tap], 1e-6)
        assert_close(values[tap], exact[tap].detach().numpy(), 2e-6)
        seeds[tap] = random(seed, *values[tap].shape)
    torch.autograd.backward(list(exact.values()), [torch.from_numpy(seeds[tap]).double() for tap in exact])
    found = backward(slices, values, seeds)
    assert list(found) == ["image"]
    # Twelve layers, sums of up to 2304 products; no branch flips at this size and seed.
    assert_close(found["image"], x.grad.numpy(), 1e-5)


def test_slices_take_what_the_last_ones_made(shallow):
    graph = forward_graph(shallow, ["relu1_1", "conv2_1"], shape=(8, 8))
    first, second = slice_graph(graph, graph.outputs)
    assert (first.inputs, first.outputs) == (("image",), ("relu1_1",))
    assert (second.inputs, second.outputs) == (("relu1_1",), ("conv2_1",))
    assert list(first.forward.inputs) == ["image"]
    assert first.gradient.outputs == ["cotangent.image"]
    assert second.gradient.outputs == ["cotangent.relu1_1"]
    for piece in (first, second):
        # A gradient reads its residuals and the cotangents of its outputs, and a forward slice gives them all.
        assert set(piece.gradient.inputs) == {*piece.residuals, *(cotangent(name) for name in piece.outputs)}
        assert set(piece.residuals) <= {*piece.inputs, *piece.forward.outputs}
        assert list(piece.forward.outputs)[: len(piece.outputs)] == list(piece.outputs)


def test_slices_hold_only_their_own_weights(shallow):
    graph = forward_graph(shallow, ["relu1_2", "relu3_1"], shape=(8, 8))
    first, second = slice_graph(graph, graph.outputs)
    for part in ("forward", "gradient"):
        names = [{n for n in getattr(piece, part).constants if n.endswith(".weight")} for piece in (first, second)]
        assert names[0] == {"conv1_1.weight", "conv1_2.weight"}
        assert names[1] == {"conv2_1.weight", "conv2_2.weight", "conv3_1.weight"}


def test_the_graph_that_was_cut_is_left_as_it_is(shallow):
    graph = forward_graph(shallow, ["relu1_2", "relu2_1"])
    before = graph.digest()
    slice_graph(graph, graph.outputs)
    assert graph.digest() == before


# --- A graph with a skip connection, which crosses a cut -------------------------------------------------------------


def skipping():
    """Convolutions a, b, c; ``late`` is relu(c(b)) + a, so that a is read beyond the slice that ends at b."""
    graph = Graph("skipping")
    graph.input("image", (1, 2, "height", "width"))
    for index, name in enumerate("abc"):
        graph.weight(f"w{name}", random(10 + index, 4, 2 if name == "a" else 4, 3, 3) / 3)
    graph.add("Conv", "image", "wa", name="a", kernel_shape=[3, 3], pads=[1] * 4)
    graph.add("Relu", "a", name="early")
    graph.add("Conv", "early", "wb", name="b", kernel_shape=[3, 3], pads=[1] * 4)
    graph.add("Conv", "b", "wc", name="c", kernel_shape=[3, 3], pads=[1] * 4)
    graph.add("Relu", "c", name="relu_c")
    graph.add("Add", "relu_c", "a", name="late")
    graph.add("Mul", "late", "late", name="squared")
    graph.outputs = ["squared"]
    return graph


def skipping_in_torch(x):
    w = [torch.from_numpy(random(10 + i, 4, 2 if i == 0 else 4, 3, 3) / 3).double() for i in range(3)]
    a = nnf.conv2d(x, w[0], padding=1)
    b = nnf.conv2d(a.relu(), w[1], padding=1)
    late = nnf.conv2d(b, w[2], padding=1).relu() + a
    return {"a": a, "early": a.relu(), "b": b, "late": late, "squared": late * late}


@pytest.mark.parametrize(
    "taps", [["b", "squared"], ["early", "b", "squared"], ["a", "late", "squared"], ["early", "late"]], ids="-".join
)
def test_tensors_that_cross_a_cut(taps):
    slices = slice_graph(skipping(), taps)
    if taps[0] == "b":
        assert slices[0].outputs == ("a", "b")
        assert set(slices[1].inputs) == {"a", "b"}
    image = random(1, 1, 2, 5, 7)
    values = forward(slices, {"image": image})
    x = torch.from_numpy(image).double().requires_grad_()
    exact = skipping_in_torch(x)
    seeds = {}
    for seed, tap in enumerate(taps):
        assert_close(values[tap], exact[tap].detach().numpy(), 2e-6)
        seeds[tap] = random(20 + seed, *values[tap].shape)
    crossing = {name for piece in slices for name in piece.outputs} - set(taps)
    zeros = {name: np.zeros_like(values[name]) for name in crossing}
    torch.autograd.backward([exact[tap] for tap in taps], [torch.from_numpy(seeds[tap]).double() for tap in taps])
    assert_close(backward(slices, values, seeds | zeros)["image"], x.grad.numpy(), 5e-6)
    # What crosses needs no seed of its own: later slices give it one.
    assert_close(backward(slices, values, seeds)["image"], x.grad.numpy(), 5e-6)


def test_two_inputs():
    graph = Graph("two")
    graph.input("x", (2, 3))
    graph.input("y", (2, 3))
    graph.add("Mul", "x", "y", name="product")
    graph.add("Add", "product", "y", name="sum")
    graph.outputs = ["sum"]
    slices = slice_graph(graph, ["product", "sum"])
    x, y, seed = random(1, 2, 3), random(2, 2, 3), random(3, 2, 3)
    values = forward(slices, {"x": x, "y": y})
    # The first tap has no cotangent of its own.
    found = backward(slices, values, {"product": np.zeros_like(x), "sum": seed})
    np.testing.assert_allclose(found["x"], seed * y, rtol=1e-6)
    np.testing.assert_allclose(found["y"], seed * (x + 1), rtol=1e-6, atol=1e-6)


# --- Refusals --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("taps", "message"),
    [
        (["relu1_1", "relu9_1"], "'relu9_1'"),
        (["relu2_1", "relu1_1"], "'relu1_1' comes before an earlier tap"),
        (["relu1_1", "relu1_1"], "'relu1_1' comes before an earlier tap"),
        (["image", "relu1_1"], "'image'"),
        (["conv1_1.weight"], r"'conv1_1\.weight'"),
    ],
)
def test_cuts_that_cannot_be_made_are_refused(shallow, taps, message):
    with pytest.raises(GraphError, match=message):
        slice_graph(forward_graph(shallow, ["relu2_1"]), taps)


def test_nodes_beyond_the_last_tap_are_left_out(shallow):
    slices = slice_graph(forward_graph(shallow, ["relu3_1"]), ["relu1_1"])
    assert [node.output[0] for node in slices[0].forward.nodes] == ["conv1_1", "relu1_1"]
