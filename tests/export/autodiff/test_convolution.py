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


# Few channels, whose gradient is a ConvTranspose at every stride, and more, where stride 1 takes a Conv.
FEW, MANY = 2, 5

SAME = {1: (0, 0, 0, 0), 2: (0, 0, 1, 1), 3: (1, 1, 1, 1), 5: (2, 2, 2, 2)}


@pytest.mark.parametrize(("stride", "channels"), [(1, FEW), (1, MANY), (2, FEW), (3, FEW)])
@pytest.mark.parametrize("side", [1, 2, 3, 5])
@pytest.mark.parametrize("pad", ["none", "same"])
def test_kernels_and_strides(prove, side, stride, channels, pad):
    # Heights and widths of every remainder modulo the stride: the last rows and columns may reach no window.
    pads = SAME[side] if pad == "same" else (0,) * 4
    prove_conv(prove, kernel(3, channels, side, side), strides=(stride,) * 2, pads=pads, sizes=[(7, 9), (8, 6), (5, 5)])


@pytest.mark.parametrize(("stride", "channels"), [(1, FEW), (1, MANY), (2, FEW), (3, FEW)])
@pytest.mark.parametrize("pads", [(1, 0, 0, 2), (0, 2, 1, 1), (3, 4, 5, 3), (2, 3, 0, 0)])
def test_asymmetric_pads_and_pads_wider_than_the_kernel_reaches(prove, pads, stride, channels):
    prove_conv(prove, kernel(2, channels, 3, 3), strides=(stride,) * 2, pads=pads, sizes=[(6, 7), (3, 4)])


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize(
    ("group", "shape"),
    [(2, (4, 2, 3, 3)), (3, (3, 1, 3, 3)), (3, (6, 1, 2, 3)), (2, (6, 3, 1, 1)), (2, (6, 5, 3, 2)), (3, (3, 6, 1, 1))],
)
def test_groups_down_to_depthwise(prove, group, shape, stride):
    prove_conv(
        prove, kernel(*shape), group=group, strides=(stride,) * 2, pads=(1, 1, 0, 1), sizes=[(6, 5), (5, 8)], batch=2
    )


@pytest.mark.parametrize(("stride", "channels"), [(1, FEW), (1, MANY), (2, FEW), (3, FEW)])
@pytest.mark.parametrize("dilations", [(2, 2), (1, 3), (3, 2)])
def test_dilations(prove, dilations, stride, channels):
    weight, strides, pads = kernel(2, channels, 3, 2), (stride,) * 2, (1, 2, 2, 1)
    prove_conv(prove, weight, dilations=dilations, strides=strides, pads=pads, sizes=[(7, 8), (9, 6)])


def test_different_strides_along_the_axes_and_oblong_kernels(prove):
    prove_conv(prove, kernel(2, 2, 2, 5), strides=(3, 1), pads=(0, 2, 1, 2), sizes=[(7, 5), (9, 8)])
    prove_conv(prove, kernel(2, 2, 4, 1), strides=(1, 2), pads=(2, 0, 1, 0), sizes=[(4, 6), (5, 3)])


def test_the_smallest_pictures(prove):
    for channels in (FEW, MANY):
        prove_conv(prove, kernel(2, channels, 3, 3), pads=(1, 1, 1, 1), sizes=[(1, 1), (1, 2), (2, 1)])
    prove_conv(prove, kernel(2, 2, 3, 3), strides=(2, 2), pads=(1, 1, 1, 1), sizes=[(1, 1), (1, 2), (2, 1)])
    prove_conv(prove, kernel(2, 2, 1, 1), strides=(3, 3), sizes=[(1, 1), (3, 2)])


@pytest.mark.parametrize(("stride", "channels"), [(1, FEW), (1, MANY), (2, FEW)])
def test_one_dimension(prove, stride, channels):
    prove(
        lambda g: g.add("Conv", "x", "w", strides=[stride], pads=[1, 2], dilations=[2]),
        lambda x, w: F.conv1d(F.pad(x, (1, 2)), w, stride=stride, dilation=2),
        {"x": (2, channels, "width"), "w": kernel(4, channels, 3)},
        sizes=[(0, 9), (0, 6)],
        terms=12,
    )


@pytest.mark.parametrize(("stride", "channels"), [(1, FEW), (1, MANY), (2, FEW)])
def test_three_dimensions(prove, stride, channels):
    prove(
        lambda g: g.add("Conv", "x", "w", strides=[stride] * 3, pads=[1, 0, 1, 0, 1, 1]),
        lambda x, w: F.conv3d(padded(x, (1, 0, 1, 0, 1, 1)), w, stride=stride),
        {"x": (1, channels, 4, "height", "width"), "w": kernel(3, channels, 2, 2, 3)},
        sizes=[(4, 5)],
        terms=36,
    )


@st.composite
def convolutions(draw):
    strides, dilations = (draw(st.tuples(*[st.integers(1, 3)] * 2)) for _ in range(2))
    sides = draw(st.tuples(*[st.integers(1, 4)] * 2))
    pads = draw(st.tuples(*[st.integers(0, 4)] * 4))
    group, outer = (draw(st.integers(1, 3)) for _ in range(2))
    inner = draw(st.sampled_from([1, 2, 4, 5, 6]))
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


@pytest.mark.parametrize(("stride", "channels"), [(1, FEW), (1, MANY), (2, FEW)])
@pytest.mark.parametrize("group", [1, 2])
def test_kernels_that_the_graph_computes(prove, stride, channels, group):
    """Scaled by an input, one number a filter; the gradient is for the picture alone."""

    def build(graph):
        scaled = graph.add("Mul", "w", graph.add("Reshape", "scale", graph.ints(-1, 1, 1, 1)))
        return graph.add("Conv", "x", scaled, graph.add("Neg", "shift"), strides=[stride] * 2, group=group)

    prove(
        build,
        lambda x, scale, shift, w: F.conv2d(x, w * scale.reshape(-1, 1, 1, 1), -shift, stride=stride, groups=group),
        {"x": (1, channels * group, "height", "width"), "scale": (4,), "shift": (4,), "w": kernel(4, channels, 3, 3)},
        wrt=["x"],
        sizes=[(5, 6), (3, 3), (8, 7)],
        terms=36,
    )


@pytest.mark.parametrize(
    ("channels", "group", "stride", "op"),
    [
        (4, 1, 1, "ConvTranspose"),
        (5, 1, 1, "Conv"),
        (8, 2, 1, "ConvTranspose"),
        (10, 2, 1, "Conv"),
        (3, 3, 2, "ConvTranspose"),
        (64, 1, 2, "ConvTranspose"),
    ],
)
def test_which_operator_turns_back_depends_on_stride_and_channels_of_a_group(channels, group, stride, op):
    graph = Graph()
    graph.input("x", (1, channels, 6, 6))
    graph.weight("w", np.ones((6, channels // group, 3, 3), np.float32))
    graph.add("Conv", "x", "w", name="y", group=group, strides=[stride] * 2)
    graph.input("dy", (1, 6, *[(6 - 3) // stride + 1] * 2))
    differentiate(graph, {"y": "dy"}, ["x"])
    assert [node.op_type for node in graph.nodes[1:] if node.op_type.startswith("Conv")] == [op]


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


@pytest.mark.parametrize("wrt", ["w", "b", "scale"])
def test_gradients_of_the_weights_are_refused(wrt):
    graph = Graph()
    graph.input("x", (1, 2, 5, 5))
    graph.input("w", (2, 2, 3, 3))
    graph.input("scale", ())
    graph.input("b", (2,))
    graph.add("Conv", "x", graph.add("Mul", "w", "scale"), "b", name="first")
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


@pytest.mark.parametrize("channels", [FEW, MANY])
def test_the_file_holds_each_kernel_once(channels):
    graph = Graph()
    graph.input("x", (1, channels, "height", "width"))
    graph.weight("w", np.ones((64, channels, 3, 3), np.float32))
    graph.add("Conv", "x", "w", name="y", pads=[1] * 4)
    graph.input("dy", (1, 64, "height", "width"))
    graph.outputs = [differentiate(graph, {"y": "dy"}, ["x"])["x"]]
    graph.prune()
    assert sum(value.size for value in graph.constants.values() if value.dtype == np.float32) == 64 * channels * 9
