from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as nnf

from impasto.errors import GraphError
from impasto.export.forward import forward_graph
from impasto.export.graph import Graph
from impasto.export.slices import cotangent, slice_graph
from impasto.models.conventions import CAFFE, UNIT
from impasto.models.reference import Reference


def forward(run, slices, values):
    """All tensors, slice by slice."""
    for piece in slices:
        values = values | run(piece.forward, {name: values[name] for name in (*piece.inputs, *piece.parameters)})
    return values


def backward(run, slices, values, cotangents):
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
def test_chained_slices_are_the_whole(shallow, run, taps, pooling, dynamic):
    size = (13, 22)
    graph = forward_graph(shallow, taps, pooling=pooling, space=UNIT, shape=None if dynamic else size)
    slices = slice_graph(graph, graph.outputs)
    assert [piece.tap for piece in slices] == taps
    image = np.random.RandomState(1).random_sample((1, 3, *size)).astype(np.float32)
    values = forward(run, slices, {"image": image})

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
    found = backward(run, slices, values, seeds)
    assert list(found) == ["image"]
    # Twelve layers, sums of up to 2304 products; no branch flips at this size and seed.
    assert_close(found["image"], x.grad.numpy(), 1e-5)


def test_slices_take_what_the_last_ones_made(shallow):
    graph = forward_graph(shallow, ["relu1_1", "conv2_1"], shape=(8, 8))
    first, second = slice_graph(graph, graph.outputs)
    assert (first.inputs, first.outputs) == (("image",), ("relu1_1",))
    assert (second.inputs, second.outputs) == (("relu1_1",), ("conv2_1",))
    assert first.parameters == second.parameters == ()
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
def test_tensors_that_cross_a_cut(run, taps):
    slices = slice_graph(skipping(), taps)
    if taps[0] == "b":
        assert slices[0].outputs == ("a", "b")
        assert set(slices[1].inputs) == {"a", "b"}
    image = random(1, 1, 2, 5, 7)
    values = forward(run, slices, {"image": image})
    x = torch.from_numpy(image).double().requires_grad_()
    exact = skipping_in_torch(x)
    seeds = {}
    for seed, tap in enumerate(taps):
        assert_close(values[tap], exact[tap].detach().numpy(), 2e-6)
        seeds[tap] = random(20 + seed, *values[tap].shape)
    crossing = {name for piece in slices for name in piece.outputs} - set(taps)
    zeros = {name: np.zeros_like(values[name]) for name in crossing}
    torch.autograd.backward([exact[tap] for tap in taps], [torch.from_numpy(seeds[tap]).double() for tap in taps])
    assert_close(backward(run, slices, values, seeds | zeros)["image"], x.grad.numpy(), 5e-6)
    # What crosses needs no seed of its own: later slices give it one.
    assert_close(backward(run, slices, values, seeds)["image"], x.grad.numpy(), 5e-6)


def test_inputs_other_than_the_image_are_parameters(run):
    """Every slice that reads one is given it; it has no cotangent."""
    graph = Graph("two")
    graph.input("image", (2, 3))
    graph.input("y", (2, 3))
    graph.add("Mul", "image", "y", name="product")
    graph.add("Add", "product", "y", name="sum")
    graph.add("Mul", "sum", "sum", name="square")
    graph.outputs = ["square"]
    slices = slice_graph(graph, ["product", "sum", "square"])
    assert [piece.inputs for piece in slices] == [("image",), ("product",), ("sum",)]
    assert [piece.parameters for piece in slices] == [("y",), ("y",), ()]
    assert [piece.residuals for piece in slices] == [("y",), (), ("sum",)]
    x, y, seed = random(1, 2, 3), random(2, 2, 3), random(3, 2, 3)
    values = forward(run, slices, {"image": x, "y": y})
    # The first taps have no cotangent of their own.
    found = backward(run, slices, values, {"product": 0 * x, "sum": 0 * x, "square": seed})
    assert list(found) == ["image"]
    # A handful of roundings of numbers near 1.
    np.testing.assert_allclose(found["image"], 2 * seed * (x * y + y) * y, rtol=1e-6, atol=1e-6)


# --- The filter bank, which branches at every level and takes its calibration as inputs ------------------------------

BANKS = {
    "the finest bank": ["bank0"],
    "a coarse bank": ["bank2"],
    "all banks": ["bank0", "bank1", "bank2", "bank3"],
    "banks and a level between": ["bank0", "level2", "bank2"],
    "responses": ["response0", "bank0", "level1", "response1"],
}


@pytest.mark.parametrize("taps", BANKS.values(), ids=BANKS)
@pytest.mark.parametrize("space", [UNIT, CAFFE], ids=["unit", "caffe"])
@pytest.mark.parametrize("dynamic", [False, True], ids=["fixed", "dynamic"])
def test_chained_slices_of_banks_are_the_whole(bank, run, picture, calibration, bank_rounding, taps, space, dynamic):
    least = max(bank.backbone.smallest(tap) for tap in taps)
    size = (least + 4, least + 2)
    graph = forward_graph(bank, taps, space=space, shape=None if dynamic else size)
    slices = slice_graph(graph, graph.outputs)
    assert [piece.tap for piece in slices] == taps
    image = space.encode(picture(5, *size))[None]
    values = forward(run, slices, {"image": image, **calibration})

    whole = run(graph, {"image": image, **calibration})
    x = torch.from_numpy(image).double().requires_grad_()
    exact = Reference(bank, taps, "max", space, torch.float64)(
        x, {name: torch.from_numpy(value).double() for name, value in calibration.items()}
    )
    seeds = {}
    for seed, tap in enumerate(taps):
        # Pixels of the other space, and the means that are added to them, are below twice those of the bank's own.
        allowed = bank_rounding(tap, calibration, 2.0)
        expected = exact[tap].detach().numpy()
        assert (np.abs(values[tap] - whole[tap]) <= 2 * allowed).all()
        assert (np.abs(values[tap] - expected) <= allowed).all()
        seeds[tap] = random(seed, *values[tap].shape)
        if tap.startswith("bank"):
            # Where rounding may decide whether the filter responds at all, nothing is asked.
            sure = (expected > allowed) | ((expected == 0) & (values[tap] == 0))
            assert sure.mean() > 0.9
            seeds[tap] *= sure
    torch.autograd.backward(list(exact.values()), [torch.from_numpy(seeds[tap]).double() for tap in exact])
    found = backward(run, slices, values, seeds)
    assert list(found) == ["image"]
    # Each pixel sums every filter at every offset, of either sign, and so some √n roundings of what they sum up to.
    terms = bank.tensors["response0.weight"][:, 0].size
    assert_close(found["image"], x.grad.numpy(), 3 * np.sqrt(terms) * 2.0**-24)


def test_slices_of_banks_take_the_calibration_of_their_own_level(bank):
    slices = slice_graph(
        forward_graph(bank, ["bank0", "level1", "bank1", "bank3"]), ["bank0", "level1", "bank1", "bank3"]
    )
    assert [piece.parameters for piece in slices] == [
        ("response0.scale", "response0.threshold"),
        (),
        ("response1.scale", "response1.threshold"),
        ("response3.scale", "response3.threshold"),
    ]
    made = set()
    for piece in slices:
        assert set(piece.forward.inputs) == {*piece.inputs, *piece.parameters}
        assert set(piece.inputs) <= {"image"} | made
        assert piece.gradient.outputs == [cotangent(name) for name in piece.inputs]
        assert set(piece.gradient.inputs) == {*piece.residuals, *(cotangent(name) for name in piece.outputs)}
        assert set(piece.residuals) <= {*piece.inputs, *piece.parameters, *piece.forward.outputs}
        made.update(piece.outputs)


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
