import numpy as np
import pytest
import torch

from impasto.errors import ImageError, MissingTapError
from impasto.export.statistics import statistics_graph
from impasto.models.conventions import CAFFE, UNIT
from impasto.models.reference import Reference

ROUNDOFF = 2.0**-24  # of float32


@pytest.mark.parametrize("pooling", ["max", "average"])
@pytest.mark.parametrize("shape", [None, (13, 22)])
def test_measures_activations_and_plain_products(shallow, run, pooling, shape):
    content = ["relu2_2", "conv1_2"]
    style = {"relu2_2": "gram", "pool2": "covariance", "relu1_1": "gram", "conv2_1": "covariance"}
    graph = statistics_graph(shallow, content, style, pooling=pooling, space=UNIT, shape=shape)
    assert graph.outputs == [
        *("content.relu2_2", "content.conv1_2", "style.relu2_2", "style.pool2", "style.pool2.sum", "style.relu1_1"),
        *("style.conv2_1", "style.conv2_1.sum"),
    ]
    image = np.random.RandomState(1).random_sample((1, 3, 13, 22)).astype(np.float32)
    found = run(graph, {"image": image})
    with torch.no_grad():
        exact = Reference(shallow, [*content, *style], pooling, UNIT, torch.float64)(torch.from_numpy(image).double())
    for tap in content:
        expected = exact[tap].numpy()
        assert np.linalg.norm(found[f"content.{tap}"] - expected) <= 2e-6 * np.linalg.norm(expected)
    for tap, statistic in style.items():
        flat = exact[tap][0].flatten(1)
        expected = {f"style.{tap}": (flat @ flat.T).numpy()}
        if statistic == "covariance":
            expected[f"style.{tap}.sum"] = flat.sum(1, keepdim=True).numpy()
        for name, value in expected.items():
            assert found[name].shape == value.shape
            assert np.linalg.norm(found[name] - value) <= 2e-6 * np.linalg.norm(value)


@pytest.mark.parametrize("fixed", [False, True])
@pytest.mark.parametrize("more", [(0, 0), (4, 1), (12, 21)])
def test_measures_banks_of_filters(bank, run, picture, calibration, bank_rounding, more, fixed):
    """In another pixel space; a sum is off by what its terms are, and some roundings of its own."""
    least = bank.backbone.smallest("bank1")
    size = (least + more[0], least + more[1])
    style = {"bank1": "covariance", "level1": "gram", "bank0": "covariance"}
    graph = statistics_graph(bank, ["bank0"], style, space=CAFFE, shape=size if fixed else None)
    assert set(graph.inputs) == {"image", *(f"response{k}.{p}" for k in (0, 1) for p in ("scale", "threshold"))}
    image = CAFFE.encode(picture(2, *size))[None]
    found = run(graph, {"image": image, **calibration})
    reference = Reference(bank, style, "max", CAFFE, torch.float64)
    values = {name: torch.from_numpy(value).double() for name, value in calibration.items()}
    exact = {tap: value[0].numpy() for tap, value in reference(torch.from_numpy(image).double(), values).items()}
    # Caffe's pixels and the means that are added to them are both below 255 in size.
    off = {tap: bank_rounding(tap, calibration, 2.0).reshape(-1, 1) for tap in style}
    assert (np.abs(found["content.bank0"][0] - exact["bank0"]) <= off["bank0"][..., None]).all()
    for tap, statistic in style.items():
        flat = exact[tap].reshape(len(exact[tap]), -1)
        sizes, positions = np.abs(flat), flat.shape[1]
        sums = sizes.sum(axis=1, keepdims=True)
        products = off[tap] * sums.T + sums * off[tap].T + positions * off[tap] * off[tap].T
        products += positions * ROUNDOFF * (sizes @ sizes.T)
        assert (np.abs(found[f"style.{tap}"] - flat @ flat.T) <= products).all()
        assert (f"style.{tap}.sum" in found) == (statistic == "covariance")
        if statistic == "covariance":
            allowed = positions * (off[tap] + ROUNDOFF * sums)
            assert (np.abs(found[f"style.{tap}.sum"] - flat.sum(axis=1, keepdims=True)) <= allowed).all()


@pytest.mark.parametrize(
    ("content", "style", "outputs"),
    [(["relu1_1"], {}, 1), ([], {"relu1_1": "gram"}, 1), ([], {"relu1_1": "covariance"}, 2)],
)
def test_measures_one_kind_alone(shallow, run, content, style, outputs):
    graph = statistics_graph(shallow, content, style, shape=(2, 3))
    assert len(run(graph, {"image": np.zeros((1, 3, 2, 3), np.float32)})) == outputs


def test_raises_as_the_forward_graph_does(shallow, bank):
    with pytest.raises(MissingTapError):
        statistics_graph(shallow, ["relu4_2"], {})
    with pytest.raises(ImageError, match="too small"):
        statistics_graph(shallow, [], {"relu3_1": "covariance"}, shape=(9, 3))
    least = bank.backbone.smallest("bank2")
    with pytest.raises(ImageError, match=f"tap bank2, which needs at least {least}x{least}"):
        statistics_graph(bank, ["bank0"], {"bank2": "covariance"}, shape=(least, least - 1))
