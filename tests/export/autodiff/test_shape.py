import numpy as np
import pytest
import torch
import torch.nn.functional as F

from impasto.errors import GraphError
from impasto.export.autodiff import differentiate
from impasto.export.graph import Graph

IMAGE = (2, 3, "height", "width")
SIZES = [(4, 6), (3, 5)]
END = np.iinfo(np.int64).max
START = np.iinfo(np.int64).min


@pytest.mark.parametrize(
    ("shape", "to"),
    [(IMAGE, (6, -1)), (IMAGE, (0, 0, -1)), (IMAGE, (-1,)), ((4, 6), (2, 2, 6)), ((1, 1, 1), ()), ((), (1, 1))],
    ids=str,
)
def test_reshape(prove, shape, to):
    def reference(x):
        return x.reshape([x.shape[i] if n == 0 else n for i, n in enumerate(to)])

    prove(lambda g: g.add("Reshape", "x", g.ints(*to)), reference, {"x": shape}, sizes=SIZES)


def test_reshape_to_a_computed_shape(prove):
    def build(graph):
        size = graph.add("Shape", "x")
        turned = graph.add("Gather", size, graph.ints(3, 2, 1, 0))
        return graph.add("Reshape", "x", turned)

    prove(build, lambda x: x.reshape(x.shape[::-1]), {"x": IMAGE}, sizes=SIZES)


@pytest.mark.parametrize("axis", [0, 1, 2, 4, -1])
def test_flatten(prove, axis):
    def reference(x):
        rows = int(np.prod(x.shape[: axis % 4 if axis < 4 else 4]))
        return x.reshape(rows, -1)

    prove(lambda g: g.add("Flatten", "x", axis=axis), reference, {"x": IMAGE}, sizes=SIZES)


@pytest.mark.parametrize(
    ("shape", "axes"), [((1, "height", 1, "width"), (0, 2)), ((1, "height", 1, "width"), (-2,)), ((1, 3, 1), None)]
)
def test_squeeze(prove, shape, axes):
    prove(
        lambda g: g.add("Squeeze", "x", *([] if axes is None else [g.ints(*axes)])),
        lambda x: x.squeeze() if axes is None else x.squeeze(axes),
        {"x": shape},
        sizes=SIZES,
    )


@pytest.mark.parametrize(
    ("axes", "index"), [((0,), (None, ...)), ((-1,), (..., None)), ((1, 3), (slice(None), None, slice(None), None))]
)
def test_unsqueeze(prove, axes, index):
    prove(
        lambda g: g.add("Unsqueeze", "x", g.ints(*axes)),
        lambda x: x[index] * 1,
        {"x": ("height", "width")},
        sizes=SIZES,
    )


@pytest.mark.parametrize("order", [(0, 2, 3, 1), (3, 1, 0, 2), (1, 0, 3, 2), (0, 1, 2, 3), None], ids=str)
def test_transpose(prove, order):
    prove(
        lambda g: g.add("Transpose", "x", **({} if order is None else {"perm": [*order]})),
        lambda x: x.permute(order or (3, 2, 1, 0)),
        {"x": IMAGE},
        sizes=SIZES,
    )


@pytest.mark.parametrize(
    ("shape", "to"),
    [
        ((3, 1, 1), (2, 3, 4, 5)),
        ((), (2, 3)),
        ((2, 3, 4), (1, 4)),
        ((1, 4), (3, 4)),
        ((2, 3), (2, 3)),
        ((3, 1), (1, 5)),
    ],
    ids=str,
)
def test_expand(prove, shape, to):
    prove(
        lambda g: g.add("Expand", "x", g.ints(*to)),
        lambda x: x * torch.ones(to, dtype=torch.float64),
        {"x": shape},
        terms=40,
    )


def test_expand_to_the_size_of_a_picture(prove):
    prove(
        lambda g: g.add("Expand", "x", g.add("Shape", "y")),
        lambda x, y: x.expand(y.shape),
        {"x": (1, 3, 1, 1), "y": IMAGE},
        wrt=["x"],
        sizes=SIZES,
        terms=48,
    )


@pytest.mark.parametrize(
    ("shapes", "axis"),
    [
        ([(1, 2, "height", "width"), (1, 3, "height", "width")], 1),
        ([(1, 2, "height", "width"), (1, 3, "height", "width"), (1, 1, "height", "width")], -3),
        ([(2, 3), (4, 3)], 0),
        ([(2, 3), (2, 1)], -1),
        ([IMAGE], 1),
    ],
    ids=str,
)
def test_concat(prove, shapes, axis):
    names = ["a", "b", "c"][: len(shapes)]
    prove(
        lambda g: g.add("Concat", *names, axis=axis),
        lambda *pieces: torch.cat(pieces, axis),
        dict(zip(names, shapes, strict=True)),
        sizes=SIZES,
    )


def test_concat_of_a_tensor_with_itself_and_with_a_constant(prove):
    prove(
        lambda g: g.add("Concat", "x", "k", "x", axis=1),
        lambda x, k: torch.cat([x, k, x], 1),
        {"x": (1, 3), "k": np.ones((1, 2))},
    )


def test_concat_along_an_axis_of_unknown_size_is_refused():
    graph = Graph()
    graph.input("x", (1, "height"))
    graph.add("Concat", "x", "x", name="joined", axis=1)
    graph.input("dy", (1, None))
    with pytest.raises(GraphError, match=r"'joined' \(Concat\): the sizes along the joined axis must be static"):
        differentiate(graph, {"joined": "dy"}, ["x"])


SLICES = [
    ([1], [END], [2]),
    ([0], [-1], [3]),
    ([1, 0], [END, -1], [2, 3]),
    ([1, 2], [-1, -1], [-2, -1]),
    ([0], [2], [1]),
    ([-2], [END], [1]),
    ([-3], [-1], [1]),
    ([START], [-2], [3]),
    ([0], [1], [0]),
    # On an axis of unknown size, what is cut off shows at run time only:
    ([-2], [END], [2]),
    ([-3], [-1], [3]),
    ([0], [2], [2]),
    ([1], [3], [-1]),
    ([0], [1000], [2]),
    ([-1000], [2], [3]),
    ([-2, 0, 1], [END, 3, 2], [3, 2, 1]),
    ([START], [END], [2]),
    # Nothing is left, and nothing has a gradient.
    ([2], [1], [1]),
    ([7], [9], [1]),
    ([7], [9], [3]),
]


@pytest.mark.parametrize(("starts", "ends", "axes"), SLICES, ids=str)
def test_slice(prove, starts, ends, axes):
    def reference(x):
        index = [slice(None)] * 4
        for start, end, axis in zip(starts, ends, axes, strict=True):
            index[axis] = slice(max(start, -1000), min(end, 1000))
        return x[tuple(index)] * 1

    prove(
        lambda g: g.add("Slice", "x", g.ints(*starts), g.ints(*ends), g.ints(*axes)),
        reference,
        {"x": IMAGE},
        sizes=[*SIZES, (2, 3)],
    )


def test_slice_without_axes_and_with_steps_of_one(prove):
    prove(lambda g: g.add("Slice", "x", g.ints(1, 0), g.ints(3, -1)), lambda x: x[1:3, :-1] * 1, {"x": (4, 5)})
    prove(
        lambda g: g.add("Slice", "x", g.ints(1), g.ints(3), g.ints(1), g.ints(1)),
        lambda x: x[:, 1:3] * 1,
        {"x": (4, "width")},
        sizes=SIZES,
    )


def test_differences_of_a_line_of_pixels(prove):
    # Total variation of a picture one pixel high: its vertical differences are empty, and their gradient is zero.
    def build(graph):
        near = graph.add("Slice", "x", graph.ints(0), graph.ints(-1), graph.ints(2))
        far = graph.add("Slice", "x", graph.ints(1), graph.ints(END), graph.ints(2))
        return graph.add("ReduceSumSquare", graph.add("Sub", far, near), graph.ints(2), keepdims=0)

    prove(
        build,
        lambda x: ((x[:, :, 1:] - x[:, :, :-1]) ** 2).sum(2),
        {"x": IMAGE},
        sizes=[(1, 4), (2, 1), (5, 3)],
        terms=5,
    )


@pytest.mark.parametrize(("step", "computed"), [(2, False), (-1, False), (1, True)])
def test_slices_that_are_refused(step, computed):
    graph = Graph()
    graph.input("x", (1, 8))
    graph.input("start", (1,), np.int64)
    start = "start" if computed else graph.ints(1)
    graph.add("Slice", "x", start, graph.ints(7), graph.ints(1), graph.ints(step), name="cut")
    graph.input("dy", (1, None))
    reason = "must be a constant" if computed else "steps other than 1"
    with pytest.raises(GraphError, match=rf"'cut' \(Slice\): .*{reason}"):
        differentiate(graph, {"cut": "dy"}, ["x"])


def torch_pad(x, amounts, mode, value=0.0):
    top, left, bottom, right = amounts
    if mode == "constant":
        return F.pad(x, (left, right, top, bottom), value=value)
    return F.pad(x, (left, right, top, bottom), mode={"edge": "replicate"}.get(mode, mode))


AMOUNTS = [(1, 1, 1, 1), (2, 0, 1, 3), (0, 0, 0, 2), (3, 1, 0, 0), (0, 0, 0, 0)]


@pytest.mark.parametrize("amounts", AMOUNTS, ids=str)
@pytest.mark.parametrize("mode", ["constant", "edge", "reflect"])
def test_pad(prove, mode, amounts):
    # Reflection needs one pixel more than it adds on either side; the second size is the least that it can take.
    least = (max(amounts[0], amounts[2]) + 1, max(amounts[1], amounts[3]) + 1) if mode == "reflect" else (1, 1)
    top, left, bottom, right = amounts
    prove(
        lambda g: g.add("Pad", "x", g.ints(0, 0, top, left, 0, 0, bottom, right), mode=mode),
        lambda x: torch_pad(x, amounts, mode) * 1,
        {"x": IMAGE},
        sizes=[(5, 6), least, (least[0] + 1, least[1])],
        terms=16,
    )


@pytest.mark.parametrize("before", [1, 2, 3])
@pytest.mark.parametrize("after", [1, 2, 3])
def test_reflections_from_both_sides_may_overlap(prove, before, after):
    """Down to the smallest sides, one more than is added: there every element but one is on both rims."""
    least = max(before, after) + 1
    prove(
        lambda g: g.add("Pad", "x", g.ints(0, 0, before, after, 0, 0, after, before), mode="reflect"),
        lambda x: torch_pad(x, (before, after, after, before), "reflect"),
        {"x": IMAGE},
        sizes=[(side, max(3, least)) for side in range(max(3, least), 9)] + [(least, least)],
        terms=16,
    )


@pytest.mark.parametrize("mode", ["constant", "edge", "reflect"])
def test_pad_of_named_axes(prove, mode):
    prove(
        lambda g: g.add("Pad", "x", g.ints(2, 1, 0, 3), "", g.ints(-1, 2), mode=mode),
        lambda x: torch_pad(x, (1, 2, 3, 0), mode),
        {"x": IMAGE},
        sizes=[(5, 6), (4, 3)],
        terms=16,
    )


def test_pad_with_a_value(prove):
    prove(
        lambda g: g.add("Pad", "x", g.ints(0, 0, 1, 0, 0, 0, 0, 2), "value"),
        lambda x, value: torch_pad(x, (1, 0, 0, 2), "constant", value.item()),
        {"x": IMAGE, "value": np.array(1.5)},
        sizes=SIZES,
    )


def test_pad_along_channels_and_batch(prove):
    prove(
        lambda g: g.add("Pad", "x", g.ints(1, 0, 0, 0, 0, 2, 0, 0)),
        lambda x: F.pad(x, (0, 0, 0, 0, 0, 2, 1, 0)),
        {"x": IMAGE},
        sizes=SIZES,
    )


def test_pads_that_are_refused():
    graph = Graph()
    graph.input("x", (1, 8))
    graph.add("Pad", "x", graph.ints(0, -1, 0, 2), name="negative")
    graph.add("Pad", "x", graph.ints(0, 1, 0, 2), name="around", mode="wrap")
    graph.input("dy", (1, None))
    with pytest.raises(GraphError, match=r"'negative' \(Pad\): negative amounts"):
        differentiate(graph, {"negative": "dy"}, ["x"])
    with pytest.raises(GraphError, match=r"'around' \(Pad\): mode 'wrap'"):
        differentiate(graph, {"around": "dy"}, ["x"])
