import numpy as np
import pytest
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from impasto.errors import GraphError, UnsupportedOpError
from impasto.export.autodiff import differentiate
from impasto.export.graph import Graph

RNG = np.random.default_rng(7)


def kernel(*shape, rng=RNG):
    """Weights that float32 holds exactly, so that both precisions use the same."""
    return rng.standard_normal(shape).astype(np.float32).astype(np.float64)


def padded(x, pads):
    half = len(pads) // 2
    return F.pad(x, [p for axis in reversed(range(half)) for p in (pads[axis], pads[axis + half])])


def prove_conv(prove, weight, *, strides=(1, 1), pads=(0, 0, 0, 0), dilations=(1, 1), group=1, batch=1, sizes):
    bias = weight[:, 0, 0, 0] - 0.5
    prove(
        lambda g: g.add("Conv", "x", "w", "b", strides=[*strides], pads=[*pads], dilations=[*dilations], group=group),
        lambda x, w, b: F.conv2d(padded(x, pads), w, b, stride=strides, dilation=dilations, groups=group),
        {"x": (batch, weight.shape[1] * group, "height", "width"), "w": weight, "b": bias},
        sizes=sizes,
        terms=weight[:, :1].size,
    )


SAME = {1: (0, 0, 0, 0), 2: (0, 0, 1, 1), 3: (1, 1, 1, 1), 5: (2, 2, 2, 2)}


@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("side", [1, 2, 3, 5])
@pytest.mark.parametrize("pad", ["none", "same"])
def test_kernels_and_strides(prove, side, stride, pad):
    # Heights and widths of every remainder modulo the stride: the last rows and columns may reach no window.
    pads = SAME[side] if pad == "same" else (0,) * 4
    prove_conv(prove, kernel(3, 2, side, side), strides=(stride,) * 2, pads=pads, sizes=[(7, 9), (8, 6), (5, 5)])


@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("pads", [(1, 0, 0, 2), (0, 2, 1, 1), (3, 4, 5, 3), (2, 3, 0, 0)])
def test_asymmetric_pads_and_pads_wider_than_the_kernel_reaches(prove, pads, stride):
    prove_conv(prove, kernel(2, 3, 3, 3), strides=(stride,) * 2, pads=pads, sizes=[(6, 7), (3, 4)])


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize(
    ("group", "shape"), [(2, (4, 2, 3, 3)), (3, (3, 1, 3, 3)), (3, (6, 1, 2, 3)), (2, (6, 3, 1, 1))]
)
def test_groups_down_to_depthwise(prove, group, shape, stride):
    prove_conv(
        prove, kernel(*shape), group=group, strides=(stride,) * 2, pads=(1, 1, 0, 1), sizes=[(6, 5), (5, 8)], batch=2
    )


@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("dilations", [(2, 2), (1, 3), (3, 2)])
def test_dilations(prove, dilations, stride):
    prove_conv(
        prove, kernel(2, 2, 3, 2), dilations=dilations, strides=(stride,) * 2, pads=(1, 2, 2, 1), sizes=[(7, 8), (9, 6)]
    )


def test_different_strides_along_the_axes_and_oblong_kernels(prove):
    prove_conv(prove, kernel(2, 2, 2, 5), strides=(3, 1), pads=(0, 2, 1, 2), sizes=[(7, 5), (9, 8)])
    prove_conv(prove, kernel(2, 2, 4, 1), strides=(1, 2), pads=(2, 0, 1, 0), sizes=[(4, 6), (5, 3)])


def test_the_smallest_pictures(prove):
    prove_conv(prove, kernel(2, 2, 3, 3), pads=(1, 1, 1, 1), sizes=[(1, 1), (1, 2), (2, 1)])
    prove_conv(prove, kernel(2, 2, 3, 3), strides=(2, 2), pads=(1, 1, 1, 1), sizes=[(1, 1), (1, 2), (2, 1)])
    prove_conv(prove, kernel(2, 2, 1, 1), strides=(3, 3), sizes=[(1, 1), (3, 2)])


@pytest.mark.parametrize("stride", [1, 2])
def test_one_dimension(prove, stride):
    prove(
        lambda g: g.add("Conv", "x", "w", strides=[stride], pads=[1, 2], dilations=[2]),
        lambda x, w: F.conv1d(F.pad(x, (1, 2)), w, stride=stride, dilation=2),
        {"x": (2, 3, "width"), "w": kernel(4, 3, 3)},
        sizes=[(0, 9), (0, 6)],
        terms=12,
    )


@pytest.mark.parametrize("stride", [1, 2])
def test_three_dimensions(prove, stride):
    prove(
        lambda g: g.add("Conv", "x", "w", strides=[stride] * 3, pads=[1, 0, 1, 0, 1, 1]),
        lambda x, w: F.conv3d(padded(x, (1, 0, 1, 0, 1, 1)), w, stride=stride),
        {"x": (1, 2, 4, "height", "width"), "w": kernel(3, 2, 2, 2, 3)},
        sizes=[(4, 5)],
        terms=36,
    )


@st.composite
def convolutions(draw):
    strides, dilations = (draw(st.tuples(*[st.integers(1, 3)] * 2)) for _ in range(2))
    sides = draw(st.tuples(*[st.integers(1, 4)] * 2))
    pads = draw(st.tuples(*[st.integers(0, 4)] * 4))
    group, inner, outer = (draw(st.integers(1, 3)) for _ in range(3))
    least = [max(1, d * (k - 1) + 1 - b - a) for d, k, b, a in zip(dilations, sides, pads[:2], pads[2:], strict=True)]
    size = tuple(n + draw(st.integers(0, 4)) for n in least)
    return {
        "weight": kernel(group * outer, inner, *sides, rng=np.random.default_rng(draw(st.integers(0, 99)))),
        "strides": strides,
        "pads": pads,
        "dilations": dilations,
        "group": group,
        "sizes": [size],
    }


@settings(max_examples=25, deadline=None, derandomize=True, database=None)
@given(case=convolutions())
def test_any_convolution(prove, case):
    prove_conv(prove, **case)


def test_automatic_padding_is_refused_unless_it_is_none(prove):
    prove(
        lambda g: g.add("Conv", "x", "w", auto_pad="VALID"),
        F.conv2d,
        {"x": (1, 2, "height", "width"), "w": kernel(3, 2, 3, 3)},
        sizes=[(5, 6)],
        terms=27,
    )
    graph = Graph()
    graph.input("x", (1, 2, 5, 5))
    graph.weight("w", np.ones((2, 2, 3, 3), np.float32))
    graph.add("Conv", "x", "w", name="first", auto_pad="SAME_UPPER")
    graph.input("dy", (1, 2, 5, 5))
    with pytest.raises(GraphError, match=r"'first' \(Conv\): auto_pad=SAME_UPPER .* give explicit pads"):
        differentiate(graph, {"first": "dy"}, ["x"])


@pytest.mark.parametrize("wrt", ["w", "b"])
def test_gradients_of_the_weights_are_refused(wrt):
    graph = Graph()
    graph.input("x", (1, 2, 5, 5))
    graph.input("w", (2, 2, 3, 3))
    graph.input("b", (2,))
    graph.add("Conv", "x", "w", "b", name="first")
    graph.input("dy", (1, 2, 3, 3))
    with pytest.raises(GraphError, match=r"'first' \(Conv\): gradients with respect to weights"):
        differentiate(graph, {"first": "dy"}, [wrt])


def test_transposed_convolutions_have_no_rule():
    graph = Graph()
    graph.input("x", (1, 2, 5, 5))
    graph.weight("w", np.ones((2, 2, 3, 3), np.float32))
    graph.add("ConvTranspose", "x", "w", name="upward")
    graph.input("dy", (1, 2, 7, 7))
    with pytest.raises(UnsupportedOpError, match=r"'upward'.*ConvTranspose"):
        differentiate(graph, {"upward": "dy"}, ["x"])


BATCH_NORM = {
    "scale": kernel(3),
    "shift": kernel(3),
    "mean": kernel(3),
    "variance": np.abs(kernel(3)) + 0.125,
}


@pytest.mark.parametrize("epsilon", [1e-5, 0.5])
@pytest.mark.parametrize("shape", [(2, 3, "height", "width"), (2, 3, "width"), (4, 3)])
def test_batch_normalization(prove, shape, epsilon):
    prove(
        lambda g: g.add("BatchNormalization", "x", *BATCH_NORM, epsilon=epsilon),
        lambda x, scale, shift, mean, variance: F.batch_norm(x, mean, variance, scale, shift, eps=epsilon),
        {"x": shape, **BATCH_NORM},
        sizes=[(3, 5), (1, 1)],
    )


def test_batch_normalization_is_for_inference_and_for_activations():
    graph = Graph()
    graph.input("x", (2, 3, 4, 4))
    for name in BATCH_NORM:
        graph.input(name, (3,))
    graph.add_many("BatchNormalization", ["x", *BATCH_NORM], ["norm", "m", "v"], training_mode=1)
    graph.add("BatchNormalization", "x", *BATCH_NORM, name="plain")
    graph.input("dy", (2, 3, 4, 4))
    with pytest.raises(GraphError, match=r"'norm' \(BatchNormalization\): training mode"):
        differentiate(graph, {"norm": "dy"}, ["x"])
    with pytest.raises(GraphError, match=r"'plain' \(BatchNormalization\): gradients .* parameters"):
        differentiate(graph, {"plain": "dy"}, ["scale"])


def test_the_file_holds_each_kernel_once():
    graph = Graph()
    graph.input("x", (1, 2, "height", "width"))
    graph.weight("w", np.ones((64, 2, 3, 3), np.float32))
    graph.add("Conv", "x", "w", name="y", pads=[1] * 4)
    graph.input("dy", (1, 64, "height", "width"))
    graph.outputs = [differentiate(graph, {"y": "dy"}, ["x"])["x"]]
    graph.prune()
    assert sum(value.size for value in graph.constants.values() if value.dtype == np.float32) == 64 * 2 * 9
