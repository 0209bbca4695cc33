"""Gram matrices written with the channels last: the same values, in every objective's graph."""

from __future__ import annotations

import numpy as np
import onnxruntime
import pytest

from impasto.export.fused import fused_graph
from impasto.export.graph import Graph, attributes
from impasto.export.objective import Objective
from impasto.export.statistics import statistics_graph
from impasto.models.conventions import pixel_space
from impasto.optimize.channels_last import channels_last_grams
from impasto.runtime.recipes import FILTERBANK, PRESETS, find_preset

SIZE = (26, 37)


def run(graph: Graph, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    session = onnxruntime.InferenceSession(graph.model().SerializeToString(), providers=["CPUExecutionProvider"])
    return dict(zip(graph.outputs, session.run(graph.outputs, inputs), strict=True))


def inputs_of(graph: Graph, seed: int) -> dict[str, np.ndarray]:
    random = np.random.RandomState(seed)
    return {name: np.asarray(random.random_sample(shape), dtype) for name, (dtype, shape) in graph.inputs.items()}


@pytest.mark.parametrize("style", [{"relu1_1": 1.0}, {"relu1_2": 1.0, "pool1": 2.0, "relu2_1": 0.5}])
@pytest.mark.parametrize("statistic", ["gram", "covariance"])
def test_losses_and_gradient_are_the_same_to_rounding(shallow, style, statistic) -> None:
    objective = Objective(content={"relu2_1": 0.1}, style=style, statistics=dict.fromkeys(style, statistic))
    graph = fused_graph(objective, shallow, SIZE)
    turned = channels_last_grams(graph)
    inputs = inputs_of(graph, 5)
    expected, found = run(graph, inputs), run(turned, inputs)
    for name, value in expected.items():
        # Sums over positions and over channels in another order: a few roundings of float32 of the largest term.
        np.testing.assert_allclose(found[name], value, rtol=2e-5, atol=2e-6 * abs(value).max())
    assert list(turned.inputs) == list(graph.inputs)
    assert turned.outputs == graph.outputs


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("name", [name for name in PRESETS if name != FILTERBANK.name])
def test_every_gram_matrix_of_every_recipe_is_written_so(vgg19, name: str, precision) -> None:
    objective = find_preset(name).for_weights(vgg19).objective
    graph = fused_graph(objective, vgg19, (64, 48), precision)
    before = [node for node in graph.nodes if node.op_type == "Gemm"]
    after = [node for node in channels_last_grams(graph).nodes if node.op_type == "Gemm"]
    # One product each for the matrix and for its cotangent.
    assert len(after) == len(before) == 2 * len(objective.style)
    assert [attributes(node).get("transA", 0) for node in after].count(1) == len(objective.style)
    channels_last_grams(graph).model()


def test_cotangents_are_products_in_bf16_where_the_network_is_and_gram_matrices_are_not(shallow) -> None:
    objective = Objective(content={}, style={"relu1_2": 1.0})
    graph = channels_last_grams(fused_graph(objective, shallow, SIZE, "bf16"))
    types = graph.infer_shapes()
    (gram, cotangent) = (node for node in graph.nodes if node.op_type == "Gemm")
    assert types[gram.output[0]][0] == np.float32
    assert types[cotangent.output[0]][0].name == "bfloat16"


def test_the_matrix_alone_is_turned_where_the_size_is_free(shallow) -> None:
    graph = statistics_graph(shallow, (), {"relu1_2": "gram"}, pooling="max", space=pixel_space("caffe"))
    turned = channels_last_grams(graph)
    assert [attributes(node) for node in turned.nodes if node.op_type == "Gemm"] == [{"transA": 1}]
    image = np.random.RandomState(2).random_sample((1, 3, *SIZE)).astype(np.float32) * 255
    for name, value in run(graph, {"image": image}).items():
        np.testing.assert_allclose(run(turned, {"image": image})[name], value, rtol=2e-5)


def test_other_products_stay_as_they_are() -> None:
    graph = Graph("others")
    x = graph.input("x", (1, 4, 3, 5))
    weights = graph.weight("w", np.ones((4, 4), np.float32))
    flat = graph.add("Reshape", x, graph.ints(4, -1))
    graph.outputs = [
        graph.add("Gemm", weights, flat),
        graph.add("Gemm", flat, flat, transB=1, alpha=0.5),
    ]
    turned = channels_last_grams(graph)
    assert [node.SerializeToString() for node in turned.nodes] == [node.SerializeToString() for node in graph.nodes]
