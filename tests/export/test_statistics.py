import numpy as np
import onnxruntime
import pytest
import torch

from impasto.errors import ImageError, MissingTapError
from impasto.export.statistics import statistics_graph
from impasto.models.conventions import UNIT
from impasto.models.reference import Reference


def run(graph, image):
    session = onnxruntime.InferenceSession(graph.model().SerializeToString(), providers=["CPUExecutionProvider"])
    return dict(zip(graph.outputs, session.run(graph.outputs, {"image": image}), strict=True))


@pytest.mark.parametrize("pooling", ["max", "average"])
@pytest.mark.parametrize("shape", [None, (13, 22)])
def test_measures_activations_and_plain_products(shallow, pooling, shape):
    content, style = ["relu2_2", "conv1_2"], ["relu2_2", "pool2", "relu1_1"]
    graph = statistics_graph(shallow, content, style, pooling=pooling, space=UNIT, shape=shape)
    assert graph.outputs == ["content.relu2_2", "content.conv1_2", "style.relu2_2", "style.pool2", "style.relu1_1"]
    image = np.random.RandomState(1).random_sample((1, 3, 13, 22)).astype(np.float32)
    found = run(graph, image)
    with torch.no_grad():
        exact = Reference(shallow, [*content, *style], pooling, UNIT, torch.float64)(torch.from_numpy(image).double())
    for tap in content:
        expected = exact[tap].numpy()
        assert np.linalg.norm(found[f"content.{tap}"] - expected) <= 2e-6 * np.linalg.norm(expected)
    for tap in style:
        flat = exact[tap][0].flatten(1)
        expected = (flat @ flat.T).numpy()
        assert found[f"style.{tap}"].shape == expected.shape
        assert np.linalg.norm(found[f"style.{tap}"] - expected) <= 2e-6 * np.linalg.norm(expected)


@pytest.mark.parametrize(("content", "style"), [(["relu1_1"], []), ([], ["relu1_1"])])
def test_measures_one_kind_alone(shallow, content, style):
    graph = statistics_graph(shallow, content, style, shape=(2, 3))
    assert len(run(graph, np.zeros((1, 3, 2, 3), np.float32))) == 1


def test_raises_as_the_forward_graph_does(shallow):
    with pytest.raises(MissingTapError):
        statistics_graph(shallow, ["relu4_2"], [])
    with pytest.raises(ImageError, match="too small"):
        statistics_graph(shallow, [], ["relu3_1"], shape=(9, 3))
