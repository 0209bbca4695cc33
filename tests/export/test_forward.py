import numpy as np
import onnxruntime
import pytest
import torch

from impasto.errors import ImageError, MissingTapError, UnknownNameError, UsageError
from impasto.export.forward import check_size, forward_graph
from impasto.models.conventions import PIXEL_SPACES, RGB255, TORCHVISION, UNIT
from impasto.models.random_weights import random_weights
from impasto.models.reference import Reference

TAPS = ("conv1_1", "relu1_2", "pool1", "conv2_1", "relu2_2", "pool2", "relu3_1")


def image(space, seed, height, width):
    rgb = np.random.RandomState(seed).random_sample((height, width, 3)).astype(np.float32)
    return space.encode(rgb)[None]


def assert_taps(found, weights, image, pooling, space, taps=TAPS):
    with torch.no_grad():
        exact = Reference(weights, taps, pooling, space, torch.float64)(torch.from_numpy(image).double())
    assert list(found) == list(exact)
    for tap, value in found.items():
        expected = exact[tap].numpy()
        assert value.shape == expected.shape
        assert value.dtype == np.float32
        # Up to five convolutions of up to 1152 products, each with an error of a few 6e-8 of its size.
        assert np.linalg.norm(value - expected) <= 2e-6 * np.linalg.norm(expected), tap


@pytest.mark.parametrize("pooling", ["max", "average"])
@pytest.mark.parametrize("size", [(4, 4), (5, 7), (16, 9), (21, 30)])
def test_taps_are_those_of_the_reference(shallow, run, pooling, size):
    x = image(shallow.convention, 1, *size)
    found = run(forward_graph(shallow, TAPS, pooling=pooling, shape=size), {"image": x})
    assert_taps(found, shallow, x, pooling, None)


@pytest.mark.parametrize("space", PIXEL_SPACES.values(), ids=PIXEL_SPACES)
@pytest.mark.parametrize("convention", ["caffe", "torchvision", "unit"])
def test_other_pixel_spaces_are_folded_in_to_the_border(run, space, convention):
    """The zero padding is that of the weights' own space: at the border the offset must not leak into it."""
    weights = random_weights("vgg19", 3, PIXEL_SPACES[convention], last_conv="conv1_2")
    x = image(space, 2, 6, 5)
    found = run(forward_graph(weights, ["conv1_1", "conv1_2"], space=space, shape=(6, 5)), {"image": x})
    with torch.no_grad():
        exact = Reference(weights, ["conv1_1", "conv1_2"], "max", space, torch.float64)(torch.from_numpy(x).double())
    for tap, value in found.items():
        expected = exact[tap].numpy()
        # Pixel by pixel, so that a wrong rim cannot hide in a large picture.
        np.testing.assert_allclose(value, expected, rtol=0, atol=3e-6 * np.abs(expected).max())


def test_weights_are_as_they_are_in_their_own_space(shallow):
    graph = forward_graph(shallow, ["relu3_1"])
    assert [node.op_type for node in graph.nodes[:2]] == ["Conv", "Relu"]
    for name, value in shallow.tensors.items():
        np.testing.assert_array_equal(graph.constants[name], value)


@pytest.mark.parametrize("pooling", ["max", "average"])
def test_one_dynamic_graph_serves_every_size(shallow, pooling):
    graph = forward_graph(shallow, TAPS, pooling=pooling)
    session = onnxruntime.InferenceSession(graph.model().SerializeToString(), providers=["CPUExecutionProvider"])
    for size in ((4, 4), (5, 7), (32, 9), (17, 40)):
        x = image(shallow.convention, 3, *size)
        found = dict(zip(graph.outputs, session.run(graph.outputs, {"image": x}), strict=True))
        assert_taps(found, shallow, x, pooling, None)


@pytest.mark.parametrize("name", ["vgg11", "vgg13", "vgg16", "vgg16c", "vgg19"])
def test_every_backbone_to_its_last_tap(run, name):
    last = {"vgg16c": "conv3_3"}.get(name, "conv3_2")
    weights = random_weights(name, 4, TORCHVISION, last_conv=last)
    x = image(UNIT, 5, 9, 13)
    found = run(forward_graph(weights, weights.taps, space=UNIT, shape=(9, 13)), {"image": x})
    assert_taps(found, weights, x, "max", UNIT, weights.taps)


def test_outputs_come_once_in_the_order_of_the_data(shallow):
    graph = forward_graph(shallow, ["relu2_1", "block1_conv1", "features.0", "relu2_1", "conv_1"])
    assert graph.outputs == ["conv1_1", "relu1_1", "relu2_1"]


def test_nothing_above_the_deepest_tap_is_computed(shallow):
    graph = forward_graph(shallow, ["relu1_2", "conv1_1"])
    assert [node.output[0] for node in graph.nodes] == ["conv1_1", "relu1_1", "conv1_2", "relu1_2"]
    names = {initializer.name for initializer in graph.model().graph.initializer}
    assert names == {"conv1_1.weight", "conv1_1.bias", "conv1_2.weight", "conv1_2.bias"}


def test_other_types_on_request():
    weights = random_weights("vgg19", 6, last_conv="conv1_1")
    graph = forward_graph(weights, ["relu1_1"], space=RGB255, shape=(3, 4), dtype=np.float64)
    assert {value.dtype for value in graph.constants.values()} == {np.dtype(np.float64)}
    assert graph.inputs["image"] == (np.dtype(np.float64), (1, 3, 3, 4))
    graph.model()


@pytest.mark.parametrize(
    ("taps", "error", "message"),
    [
        ([], UsageError, "no taps"),
        (["relu3_2"], MissingTapError, "conv3_1"),
        (["relu9_9"], UnknownNameError, "relu"),
    ],
)
def test_taps_that_cannot_be_had_are_refused(shallow, taps, error, message):
    with pytest.raises(error, match=message):
        forward_graph(shallow, taps)


def test_an_unknown_pooling_is_refused(shallow):
    with pytest.raises(UsageError, match="max or average"):
        forward_graph(shallow, ["relu1_1"], pooling="median")


@pytest.mark.parametrize("size", [(n, m) for n in range(1, 17) for m in (1, 15, 16, 17)])
def test_sizes_are_refused_exactly_where_a_tap_would_be_empty(vgg19, size):
    """Against arithmetic: halve, rounding down, until nothing is left."""
    for block in range(1, 6):
        tap = f"relu{block}_1"
        empty = min(size) // 2 ** (block - 1) == 0
        if empty:
            with pytest.raises(ImageError) as caught:
                check_size(vgg19, ["relu1_1", tap], size)
            message = str(caught.value)
            assert f"{size[1]}x{size[0]}" in message
            assert tap in message
            assert f"{2 ** (block - 1)}x{2 ** (block - 1)}" in message
        else:
            check_size(vgg19, ["relu1_1", tap], size)


def test_the_tap_that_needs_most_is_named_whatever_the_order(vgg19):
    for taps in (["relu5_1", "relu2_1"], ["relu2_1", "relu5_1"]):
        with pytest.raises(ImageError, match="tap relu5_1, which needs at least 16x16"):
            forward_graph(vgg19, taps, shape=(1, 1))


def test_a_side_that_is_not_known_yet_is_not_refused(vgg19):
    check_size(vgg19, ["relu5_1"], ("height", 16))
    with pytest.raises(ImageError):
        check_size(vgg19, ["relu5_1"], ("height", 15))
