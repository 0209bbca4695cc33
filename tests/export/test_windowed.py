"""Graphs of windows: what they give on an interior is what the whole picture has there."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from impasto.export.objective import Objective
from impasto.export.windowed import (
    calibration_window,
    gradient_window,
    response_network,
    statistics_window,
    values_window,
    window_network,
)
from impasto.export.windows import layout, pieces
from impasto.models.conventions import CAFFE

OBJECTIVE = Objective(
    content={"relu2_1": 1.0}, style={"relu1_1": 1.0, "relu2_1": 1.0}, statistics={"relu1_1": "covariance"}
)


def windows_of(found):
    return [window for band in found.bands() for window in band]


def bounds(window, piece, grids, tap):
    rows, columns = window.interior(piece.reach[tap], grids[tap])[1]
    return {
        f"{tap}.begin": np.asarray([rows.start, columns.start]),
        f"{tap}.end": np.asarray([rows.stop, columns.stop]),
    }


def test_values_are_the_whole_pictures(shallow, run):
    net, shape = shallow.backbone, (37, 50)
    (piece,) = pieces(net, ["conv2_2", "relu1_2"])
    found = layout(net, piece, shape, 500)
    assert found.count > 3
    network = window_network(shallow, Objective(content={"conv2_2": 1.0, "relu1_2": 1.0}, style={}), [piece])
    graph = values_window(network, piece, found.window, piece.taps)
    assert graph.inputs["image"][1] == (1, 3, *found.window)
    image = (np.random.RandomState(1).standard_normal((1, 3, *shape)) * 50).astype(np.float32)
    whole = run(network, {"image": image})
    for window in windows_of(found):
        inputs = {"image": np.ascontiguousarray(image[(..., *window.box)])}
        for tap in piece.taps:
            inputs |= bounds(window, piece, found.grids, tap)
        outputs = run(graph, inputs)
        for tap in piece.taps:
            expected = whole[tap][(..., *window.interior(piece.reach[tap], found.grids[tap])[0])]
            # Sums of at most 64 · 9 products in another order, over two or four layers.
            np.testing.assert_allclose(outputs[f"content.{tap}"], expected, rtol=0, atol=2e-6 * np.abs(expected).max())


def test_statistics_are_of_the_interior(shallow, run):
    net = shallow.backbone
    (piece,) = pieces(net, OBJECTIVE.taps)
    network = window_network(shallow, OBJECTIVE, [piece])
    graph = statistics_window(network, piece, (20, 24), {"relu1_1": "covariance", "relu2_1": "gram"}, ["relu2_1"])
    assert set(graph.outputs) == {"style.relu1_1", "style.relu1_1.sum", "style.relu2_1", "energy.relu2_1"}
    image = (np.random.RandomState(2).standard_normal((1, 3, 20, 24)) * 50).astype(np.float32)
    inside = {"relu1_1": (slice(3, 9), slice(0, 7)), "relu2_1": (slice(2, 3), slice(5, 12))}
    inputs = {"image": image}
    for tap, (rows, columns) in inside.items():
        inputs[f"{tap}.begin"] = np.asarray([rows.start, columns.start])
        inputs[f"{tap}.end"] = np.asarray([rows.stop, columns.stop])
    outputs = run(graph, inputs)
    whole = run(network, {"image": image})
    for tap, box in inside.items():
        features = whole[tap][(0, slice(None), *box)].reshape(whole[tap].shape[1], -1).astype(np.float64)
        np.testing.assert_allclose(outputs[f"style.{tap}"], features @ features.T, rtol=1e-5, atol=1e-3)
        if tap == "relu1_1":
            np.testing.assert_allclose(outputs[f"style.{tap}.sum"], features.sum(axis=1, keepdims=True), rtol=1e-5)
        else:
            np.testing.assert_allclose(outputs[f"energy.{tap}"], np.square(features).sum(), rtol=1e-5)


def test_a_cotangent_outside_of_the_interior_is_zero(shallow, run):
    """What lies beyond the reach of the interior gets no gradient, to the last pixel; within there is some."""
    (piece,) = pieces(shallow.backbone, ["relu2_1"])
    objective = Objective(content={"relu2_1": 1.0}, style={})
    graph = gradient_window(window_network(shallow, objective, [piece]), piece, (40, 44), objective)
    image = (np.random.RandomState(3).standard_normal((1, 3, 40, 44)) * 50).astype(np.float32)
    inputs = {
        "image": image,
        "relu2_1.begin": np.asarray([8, 9]),
        "relu2_1.end": np.asarray([10, 12]),
        "content.relu2_1": np.zeros((1, 128, 2, 3), np.float32),
        "content.relu2_1.factor": np.asarray(2.0, np.float32),
    }
    gradient = run(graph, inputs)["gradient"]
    reach = piece.reach["relu2_1"]
    rows = slice(8 * reach.stride - reach.before, 9 * reach.stride + reach.after + 1)
    columns = slice(9 * reach.stride - reach.before, 11 * reach.stride + reach.after + 1)
    felt = gradient[0].any(axis=0)
    assert felt[rows, columns].mean() > 0.9
    felt[rows, columns] = False
    assert not felt.any()


def test_moments_and_levels_of_a_window(bank, run):
    every = pieces(bank.backbone, ["response0", "response1"])
    network = response_network(bank, ["bank0", "bank1"], bank.convention)
    graph = calibration_window(network, every[0], (21, 26))
    assert graph.outputs == ["level1", "mean.response0", "spread.response0"]
    image = np.random.RandomState(4).random_sample((1, 3, 21, 26)).astype(np.float32)
    inputs = {"image": image, "response0.begin": np.asarray([3, 4]), "response0.end": np.asarray([18, 26])}
    outputs = run(graph, inputs)
    network.outputs = ["response.response0", "level1"]
    whole = run(network, {"image": image})
    inside = whole["response.response0"][0, :, 3:18, 4:26].astype(np.float64)
    # Means of filters without a mean are differences that nearly cancel.
    np.testing.assert_allclose(outputs["mean.response0"], inside.mean(axis=(1, 2)), rtol=1e-5, atol=1e-6)
    spread = np.square(inside - inside.mean(axis=(1, 2), keepdims=True)).sum(axis=(1, 2))
    np.testing.assert_allclose(outputs["spread.response0"], spread, rtol=1e-5)
    np.testing.assert_allclose(outputs["level1"], whole["level1"], rtol=1e-6)


def test_a_level_of_a_network_in_half_enters_its_piece_as_it_left_the_one_before(bank):
    """Between pieces levels are float32 of values that bf16 holds, so the cast loses nothing."""
    objective = Objective(content={"bank0": 1.0, "bank1": 1.0}, style={}, pixels="unit", convention="unit")
    every = pieces(bank.backbone, objective.taps)
    network = window_network(bank, objective, every, "bf16")
    graph = gradient_window(network, every[1], (20, 20), objective)
    model = graph.model()
    onnx.checker.check_model(model)
    entry = next(node for node in graph.nodes if "level1" in node.input)
    assert entry.op_type == "Cast"
    types = graph.infer_shapes()
    assert types["level1"][0] == np.float32
    assert types[entry.output[0]][0].name == "bfloat16"
    assert types["gradient"][0] == np.float32
    assert set(graph.inputs) >= {"level1", "response1.scale", "response1.threshold", "bank1.begin", "content.bank1"}


@pytest.mark.parametrize("pixels", ["caffe", "unit"])
def test_only_the_first_piece_converts_pixels(bank, pixels):
    objective = Objective(content={}, style={"bank0": 1.0, "bank1": 1.0}, pixels=pixels, convention=pixels)
    every = pieces(bank.backbone, objective.taps)
    network = window_network(bank, objective, every)
    graphs = [gradient_window(network, piece, (20, 20), objective) for piece in every]
    converts = ["converted" in {name for node in graph.nodes for name in node.output} for graph in graphs]
    assert converts == [pixels == CAFFE.name, False]
