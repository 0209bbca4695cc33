import re

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from impasto.errors import GraphError
from impasto.export.autodiff import differentiate
from impasto.export.graph import Graph

X = (1, 2, "height", "width")


def distinct(rng, shape):
    """Values a tenth apart: no step of the differences changes which one is the maximum."""
    return rng.permutation(np.prod(shape)).reshape(shape) * 0.1


def negative(rng, shape):
    return -1.0 - distinct(rng, shape)


def constant(rng, shape):
    return np.full(shape, 0.75)


def quantised(rng, shape):
    return rng.integers(0, 3, shape) / 2.0


def rectified(rng, shape):
    return np.maximum(rng.standard_normal(shape), 0.0)


def torch_max_pool(x, kernel, strides, pads, ceil_mode):
    """torch pads equally on both sides only, so the pads are written out; -∞ loses against everything."""
    if pads[:2] == pads[2:] and all(2 * p <= k for p, k in zip(pads, kernel, strict=False)):
        return F.max_pool2d(x, kernel, strides, pads[:2], ceil_mode=ceil_mode)
    assert not ceil_mode
    return F.max_pool2d(F.pad(x, (pads[1], pads[3], pads[0], pads[2]), value=-np.inf), kernel, strides)


def prove_max_pool(
    prove, kernel, strides, *, sizes, pads=(0, 0, 0, 0), ceil_mode=False, draw=distinct, smooth=True, shape=X
):
    prove(
        lambda g: g.add(
            "MaxPool", "x", kernel_shape=[*kernel], strides=[*strides], pads=[*pads], ceil_mode=int(ceil_mode)
        ),
        lambda x: torch_max_pool(x, kernel, strides, pads, ceil_mode),
        {"x": shape},
        sizes=sizes,
        draw=draw,
        smooth=smooth,
        terms=kernel[0] * kernel[1],
    )


SIZES = [(7, 6), (4, 5), (3, 7)]


@pytest.mark.parametrize("stride", [1, 2, 3, 4])
@pytest.mark.parametrize("kernel", [(1, 1), (2, 2), (3, 3), (2, 3), (3, 1)])
def test_max_pool(prove, kernel, stride):
    prove_max_pool(prove, kernel, (stride, stride), sizes=SIZES)


@pytest.mark.parametrize("size", [(h, w) for h in range(1, 8) for w in (1, 2, 5)])
def test_max_pool_of_every_tiny_size(prove, size):
    if min(size) >= 2:
        prove_max_pool(prove, (2, 2), (2, 2), sizes=[size])
    prove_max_pool(prove, (3, 3), (2, 2), pads=(1, 1, 1, 1), sizes=[size])
    prove_max_pool(prove, (3, 3), (2, 2), pads=(1, 1, 1, 1), sizes=[size], draw=constant, smooth=False)


@pytest.mark.parametrize("draw", [constant, quantised, rectified], ids=lambda draw: draw.__name__)
@pytest.mark.parametrize(
    ("kernel", "stride", "pads", "ceil_mode"),
    [
        ((2, 2), 2, (0, 0, 0, 0), False),
        ((3, 3), 2, (0, 0, 0, 0), False),
        ((3, 3), 2, (0, 0, 0, 0), True),
        ((3, 3), 2, (1, 1, 1, 1), False),
        ((3, 3), 1, (1, 1, 1, 1), False),
        ((2, 3), 3, (0, 1, 1, 0), False),
    ],
)
def test_a_tie_goes_to_the_first_maximum_in_row_major_order(prove, kernel, stride, pads, ceil_mode, draw):
    prove_max_pool(
        prove,
        kernel,
        (stride, stride),
        pads=pads,
        ceil_mode=ceil_mode,
        sizes=[(8, 8), (7, 5), (3, 4)],
        draw=draw,
        smooth=False,
    )


def test_a_tie_by_hand(evaluate):
    graph = Graph()
    graph.input("x", (1, 1, 2, 4), np.float64)
    graph.add("MaxPool", "x", name="y", kernel_shape=[2, 2], strides=[2, 2])
    graph.input("dy", (1, 1, 1, 2), np.float64)
    graph.outputs = [differentiate(graph, {"y": "dy"}, ["x"])["x"]]
    x = np.array([[[[1.0, 2, 0, 0], [2, 2, 0, 0]]]])
    (dx,) = evaluate(graph, {"x": x, "dy": np.array([[[[5.0, 7.0]]]])})
    assert dx.tolist() == [[[[0, 5, 7, 0], [0, 0, 0, 0]]]]


@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("pads", [(1, 1, 1, 1), (1, 0, 0, 1), (0, 2, 1, 0), (2, 2, 2, 2)])
def test_padding_never_wins_against_negative_values(prove, pads, stride):
    prove_max_pool(prove, (3, 3), (stride, stride), pads=pads, sizes=[(5, 6), (7, 4), (3, 2)], draw=negative)


@pytest.mark.parametrize("draw", [distinct, negative], ids=lambda draw: draw.__name__)
@pytest.mark.parametrize(
    ("kernel", "stride", "pad", "sizes"),
    [
        ((3, 3), 2, 0, [(7, 7), (6, 8), (5, 4)]),
        ((2, 2), 2, 0, [(7, 7), (6, 8), (5, 4)]),
        ((3, 3), 2, 1, [(7, 7), (6, 8), (5, 4)]),
        ((3, 3), 3, 1, [(7, 7), (6, 4), (4, 9)]),
        ((3, 3), 1, 0, [(7, 7), (5, 4)]),
    ],
)
def test_ceil_mode_as_in_squeezenet(prove, kernel, stride, pad, sizes, draw):
    prove_max_pool(prove, kernel, (stride, stride), pads=(pad,) * 4, ceil_mode=True, sizes=sizes, draw=draw)


def test_ceil_mode_whose_last_window_is_dropped(evaluate, on_onnxruntime):
    # 5 + 2·1 pixels hold the windows that begin at 0 and 3; one more would begin at 6, beyond pixel and padding.
    attributes = {"kernel_shape": [2, 2], "strides": [3, 3], "pads": [1, 1, 1, 1], "ceil_mode": 1}
    graph = Graph()
    graph.input("x", (1, 1, "height", "width"), np.float64)
    graph.add("MaxPool", "x", name="y", **attributes)
    graph.input("dy", (1, 1, None, None), np.float64)
    graph.outputs = ["y", differentiate(graph, {"y": "dy"}, ["x"])["x"]]
    rng = np.random.default_rng(0)
    x, dy = distinct(rng, (1, 1, 5, 5)), rng.standard_normal((1, 1, 2, 2))
    tensor = torch.tensor(x, requires_grad=True)
    y = F.max_pool2d(tensor, 2, 3, 1, ceil_mode=True)
    (truth,) = torch.autograd.grad(y, tensor, torch.from_numpy(dy))
    for run in (evaluate, on_onnxruntime):  # ONNX Runtime pools float64 too
        have, dx = run(graph, {"x": x, "dy": dy})
        assert np.array_equal(have, y.detach().numpy())
        assert np.array_equal(dx, truth.numpy())

    fixed = Graph()
    fixed.input("x", (1, 1, 5, 5), np.float64)
    fixed.add("MaxPool", "x", name="y", **attributes)
    fixed.input("dy", (1, 1, 2, 2), np.float64)
    with pytest.raises(GraphError, match=r"'y' \(MaxPool\): in ceil_mode .* leave the size dynamic"):
        differentiate(fixed, {"y": "dy"}, ["x"])


@pytest.mark.parametrize("batch", [1, 3])
def test_max_pool_of_batches_and_single_channels(prove, batch):
    prove_max_pool(prove, (2, 2), (2, 2), shape=(batch, 1, "height", "width"), sizes=[(5, 4)])
    prove_max_pool(prove, (3, 3), (2, 2), shape=(batch, 5, "height", "width"), sizes=[(5, 4)])


@st.composite
def pools(draw):
    kernel = draw(st.tuples(*[st.integers(1, 4)] * 2))
    pads = draw(st.tuples(*[st.integers(0, k - 1) for k in kernel * 2]))
    least = [max(1, k - a - b) for k, a, b in zip(kernel, pads[:2], pads[2:], strict=True)]
    stride = draw(st.integers(1, 5))
    return {
        "kernel": kernel,
        "strides": (stride, stride),
        "pads": pads,
        "draw": draw(st.sampled_from([distinct, negative, constant, quantised])),
        "sizes": [tuple(n + draw(st.integers(0, 6)) for n in least)],
        "smooth": False,
    }


@settings(max_examples=25, deadline=None, derandomize=True, database=None)
@given(case=pools())
def test_any_max_pool(prove, case):
    prove_max_pool(prove, **case)


def prove_average_pool(prove, kernel, stride, *, sizes, pads=(0, 0, 0, 0), channels=2):
    prove(
        lambda g: g.add(
            "AveragePool", "x", kernel_shape=[*kernel], strides=[stride, stride], pads=[*pads], count_include_pad=1
        ),
        lambda x: F.avg_pool2d(F.pad(x, (pads[1], pads[3], pads[0], pads[2])), kernel, stride),
        {"x": (2, channels, "height", "width")},
        sizes=sizes,
        terms=kernel[0] * kernel[1],
    )


@pytest.mark.parametrize("stride", [1, 2, 3, 4])
@pytest.mark.parametrize("kernel", [(1, 1), (2, 2), (3, 3), (3, 2)])
def test_average_pool(prove, kernel, stride):
    prove_average_pool(prove, kernel, stride, sizes=SIZES, channels=3 if stride == 2 else 1)


@pytest.mark.parametrize(("kernel", "stride"), [((2, 2), 2), ((3, 3), 2), ((3, 3), 1), ((3, 3), 3)])
@pytest.mark.parametrize("pads", [(1, 1, 1, 1), (1, 0, 0, 1), (0, 1, 1, 0)])
def test_average_pool_with_counted_padding(prove, kernel, stride, pads):
    prove_average_pool(prove, kernel, stride, pads=pads, sizes=[(5, 6), (4, 7), (2, 2)])


@pytest.mark.parametrize("size", [(n, n) for n in range(2, 8)])
def test_average_pool_of_every_tiny_size(prove, size):
    prove_average_pool(prove, (2, 2), 2, sizes=[size])


@pytest.mark.parametrize("shape", [(2, 3, "height", "width"), (1, 2, "width"), (1, 2, 3, "height", "width")])
def test_global_average_pool(prove, shape):
    prove(
        lambda g: g.add("GlobalAveragePool", "x"),
        lambda x: x.mean(dim=tuple(range(2, x.ndim)), keepdim=True),
        {"x": shape},
        sizes=[(4, 7), (1, 1)],
        terms=84,
    )


@pytest.mark.parametrize(
    ("op", "attributes", "reason"),
    [
        ("MaxPool", {"strides": [1, 2]}, "strides [1, 2] must be equal"),
        ("MaxPool", {"dilations": [2, 1]}, "dilated windows are not covered"),
        ("MaxPool", {"auto_pad": "SAME_LOWER"}, "auto_pad=SAME_LOWER is not covered: give explicit pads"),
        ("AveragePool", {"pads": [1] * 4}, "padding that is not counted (count_include_pad=0) is not covered"),
        ("AveragePool", {"ceil_mode": 1}, "ceil_mode is not covered for averages"),
    ],
)
def test_what_is_not_covered_is_refused(op, attributes, reason):
    graph = Graph()
    graph.input("x", (1, 2, 8, 8))
    graph.add(op, "x", name="pool", kernel_shape=[2, 2], **attributes)
    graph.input("dy", graph.infer_shapes()["pool"][1])
    with pytest.raises(GraphError, match=re.escape(f"node 'pool' ({op}): {reason}")):
        differentiate(graph, {"pool": "dy"}, ["x"])


def test_indices_and_other_dimensions_are_refused():
    graph = Graph()
    graph.input("x", (1, 2, 8, 8))
    graph.add_many("MaxPool", ["x"], ["pool", "indices"], kernel_shape=[2, 2])
    graph.input("line", (1, 2, 8))
    graph.add("MaxPool", "line", name="flat", kernel_shape=[2])
    graph.input("dy", (1, 2, 7, 7))
    graph.input("dz", (1, 2, 7))
    with pytest.raises(GraphError, match=r"'pool' \(MaxPool\): the output of indices is not covered"):
        differentiate(graph, {"pool": "dy"}, ["x"])
    with pytest.raises(GraphError, match=r"'flat' \(MaxPool\): only two-dimensional pooling"):
        differentiate(graph, {"flat": "dz"}, ["line"])
