import itertools

import pytest
import torch

IMAGE = (2, 3, "height", "width")
SIZES = [(4, 5), (1, 1)]

REDUCTIONS = {
    "ReduceSum": lambda x, axes, keep: x.sum(dim=axes, keepdim=keep),
    "ReduceMean": lambda x, axes, keep: x.mean(dim=axes, keepdim=keep),
    "ReduceSumSquare": lambda x, axes, keep: (x * x).sum(dim=axes, keepdim=keep),
}
AXES = [axes for n in (1, 2, 3, 4) for axes in itertools.combinations(range(4), n)]


@pytest.mark.parametrize("keep", [0, 1])
@pytest.mark.parametrize("axes", [*AXES, (-1,), (-2, -1), (-1, 1), (3, 0)], ids=str)
@pytest.mark.parametrize("op", REDUCTIONS)
def test_axes(prove, op, axes, keep):
    prove(
        lambda g: g.add(op, "x", g.ints(*axes), keepdims=keep),
        lambda x: REDUCTIONS[op](x, axes, bool(keep)),
        {"x": IMAGE},
        sizes=SIZES,
        terms=120,
    )


@pytest.mark.parametrize("keep", [0, 1])
@pytest.mark.parametrize("empty", [False, True], ids=["absent", "empty"])
@pytest.mark.parametrize("op", REDUCTIONS)
def test_no_axes_means_all(prove, op, keep, empty):
    prove(
        lambda g: g.add(op, "x", *([g.ints()] if empty else []), keepdims=keep),
        lambda x: REDUCTIONS[op](x, (0, 1, 2, 3), bool(keep)),
        {"x": IMAGE},
        sizes=SIZES,
        terms=120,
    )


@pytest.mark.parametrize("keep", [0, 1])
@pytest.mark.parametrize("empty", [False, True], ids=["absent", "empty"])
@pytest.mark.parametrize(("op", "element"), [("ReduceSum", 1), ("ReduceMean", 1), ("ReduceSumSquare", 2)])
def test_no_axes_may_mean_none(prove, op, element, keep, empty):
    prove(
        lambda g: g.add(op, "x", *([g.ints()] if empty else []), keepdims=keep, noop_with_empty_axes=1),
        lambda x: x**element,
        {"x": IMAGE},
        sizes=SIZES,
    )


@pytest.mark.parametrize("op", REDUCTIONS)
def test_scalars_and_vectors(prove, op):
    prove(lambda g: g.add(op, "x", keepdims=0), lambda x: REDUCTIONS[op](x, (), False), {"x": ()})
    prove(lambda g: g.add(op, "x", keepdims=0), lambda x: REDUCTIONS[op](x, (0,), False), {"x": (7,)})


SOFTMAX = {"Softmax": torch.softmax, "LogSoftmax": torch.log_softmax}


@pytest.mark.parametrize("axis", [0, 1, 2, 3, -1, -3])
@pytest.mark.parametrize("op", SOFTMAX)
def test_softmax(prove, op, axis):
    prove(lambda g: g.add(op, "x", axis=axis), lambda x: SOFTMAX[op](x, axis), {"x": IMAGE}, sizes=SIZES)


@pytest.mark.parametrize("op", SOFTMAX)
def test_softmax_by_default_takes_the_last_axis(prove, op):
    prove(lambda g: g.add(op, "x"), lambda x: SOFTMAX[op](x, -1), {"x": (3, 5, 2)})


@pytest.mark.parametrize("op", SOFTMAX)
def test_softmax_of_large_numbers(prove, op):
    # exp(300) is beyond float32: a rule that undoes the runtime's shift by the maximum overflows.
    def draw(rng, shape):
        return 300.0 + rng.standard_normal(shape)

    prove(lambda g: g.add(op, "x", axis=1), lambda x: SOFTMAX[op](x, 1), {"x": (2, 4)}, draw=draw, float32=False)
