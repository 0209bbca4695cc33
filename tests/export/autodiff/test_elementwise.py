import ml_dtypes
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from onnx import TensorProto

from impasto.errors import GraphError
from impasto.export.autodiff import differentiate
from impasto.export.graph import Graph

IMAGE = (2, 3, "height", "width")
SIZES = [(4, 5), (1, 3)]


def positive(rng, shape):
    return rng.uniform(0.5, 2.0, shape)


def ties(rng, shape):
    """Whole numbers from -2 to 2: every kink, at 0 and at the bounds ±1, is hit."""
    return rng.integers(-2, 3, shape).astype(np.float64)


UNARY = {
    "Identity": (lambda x: x * 1, None),
    "Neg": (torch.neg, None),
    "Abs": (torch.abs, None),
    "Sqrt": (torch.sqrt, positive),
    "Exp": (torch.exp, None),
    "Log": (torch.log, positive),
    "Reciprocal": (torch.reciprocal, positive),
    "Sigmoid": (torch.sigmoid, None),
    "Tanh": (torch.tanh, None),
    "Relu": (torch.relu, None),
}


@pytest.mark.parametrize("op", UNARY)
def test_unary(prove, op):
    reference, draw = UNARY[op]
    prove(lambda g: g.add(op, "x"), reference, {"x": IMAGE}, sizes=SIZES, **({"draw": draw} if draw else {}))


@pytest.mark.parametrize("op", ["Abs", "Relu"])
def test_kinks_at_zero_are_as_in_torch(prove, op):
    prove(lambda g: g.add(op, "x"), UNARY[op][0], {"x": IMAGE}, sizes=SIZES, draw=ties, smooth=False)


@pytest.mark.parametrize("alpha", [0.0, 0.25, 1.5])
def test_slopes_of_leaky_relu(prove, alpha):
    prove(lambda g: g.add("LeakyRelu", "x", alpha=alpha), lambda x: F.leaky_relu(x, alpha), {"x": IMAGE}, sizes=SIZES)


def test_leaky_relu_at_zero_is_as_in_torch(prove):
    prove(
        lambda g: g.add("LeakyRelu", "x", alpha=0.125),
        lambda x: F.leaky_relu(x, 0.125),
        {"x": IMAGE},
        sizes=SIZES,
        draw=ties,
        smooth=False,
    )


def test_the_default_slope_of_leaky_relu(on_onnxruntime):
    graph = Graph()
    graph.input("x", (2,))
    graph.add("LeakyRelu", "x", name="y")
    graph.input("dy", (2,))
    graph.outputs = ["y", differentiate(graph, {"y": "dy"}, ["x"])["x"]]
    y, dx = on_onnxruntime(graph, {"x": np.array([-1, 1], np.float32), "dy": np.array([1, 1], np.float32)})
    assert np.array_equal(dx, np.abs(y))


@pytest.mark.parametrize(("low", "high"), [(-1.0, 1.0), (None, 1.0), (-1.0, None), (1.0, -1.0)])
@pytest.mark.parametrize("at_the_bounds", [False, True])
def test_clip(prove, low, high, at_the_bounds):
    bounds = {name: np.array(bound) for name, bound in (("low", low), ("high", high)) if bound is not None}
    prove(
        lambda g: g.add("Clip", "x", *(name if name in bounds else "" for name in ("low", "high"))),
        lambda x, *_: torch.clamp(x, low, high),
        {"x": IMAGE, **bounds},
        sizes=SIZES,
        draw=ties if at_the_bounds else np.random.Generator.standard_normal,
        smooth=not at_the_bounds,
    )


def test_clip_between_no_bounds(prove):
    prove(lambda g: g.add("Clip", "x"), lambda x: x * 1, {"x": IMAGE}, sizes=SIZES)


BINARY = {
    "Add": torch.add,
    "Sub": torch.sub,
    "Mul": torch.mul,
    "Div": torch.div,
    "Pow": torch.pow,
}

BROADCASTS = [
    (IMAGE, IMAGE),
    (IMAGE, ()),
    ((), IMAGE),
    (IMAGE, (1,)),
    (IMAGE, (3, 1, 1)),
    ((3, 1, 1), IMAGE),
    (IMAGE, (1, 3, 1, 1)),
    (IMAGE, (2, 1, "height", "width")),
    (IMAGE, ("height", "width")),
    (("width",), IMAGE),
    (IMAGE, ("height", 1)),
    ((2, 1, "height", 1), (3, 1, "width")),
    ((4, 1), (1, 5)),
    ((1, 1, 1), (5,)),
    ((), ()),
]


@pytest.mark.parametrize(("a", "b"), BROADCASTS, ids=str)
@pytest.mark.parametrize("op", ["Add", "Sub", "Mul", "Div"])
def test_broadcasts(prove, op, a, b):
    prove(lambda g: g.add(op, "a", "b"), BINARY[op], {"a": a, "b": b}, sizes=SIZES, draw=positive, terms=120)


@pytest.mark.parametrize(("a", "b"), BROADCASTS[:8], ids=str)
@pytest.mark.parametrize("op", ["Sub", "Div"])
def test_one_operand_alone(prove, op, a, b):
    for wrt in ("a", "b"):
        prove(
            lambda g: g.add(op, "a", "b"),
            BINARY[op],
            {"a": a, "b": b},
            sizes=SIZES[:1],
            draw=positive,
            terms=120,
            wrt=[wrt],
            float32=False,
        )


@pytest.mark.parametrize("op", ["Add", "Sub", "Mul", "Div", "Sum"])
def test_both_operands_the_same(prove, op):
    reference = torch.add if op == "Sum" else BINARY[op]
    prove(lambda g: g.add(op, "x", "x"), lambda x: reference(x, x), {"x": IMAGE}, sizes=SIZES, draw=positive)


@pytest.mark.parametrize("shapes", [(IMAGE,), (IMAGE, (3, 1, 1)), ((1, "width"), IMAGE, ())], ids=str)
def test_sum_of_several(prove, shapes):
    names = ["a", "b", "c"][: len(shapes)]
    prove(
        lambda g: g.add("Sum", *names),
        lambda *terms: sum(terms[1:], terms[0] * 1),
        dict(zip(names, shapes, strict=True)),
        sizes=SIZES,
        terms=120,
    )


@pytest.mark.parametrize("exponent", [0.0, 0.5, 1.0, 1.25, 2.0, 3.0, -1.0, -2.5])
def test_powers(prove, exponent):
    prove(
        lambda g: g.add("Pow", "x", "p"), torch.pow, {"x": IMAGE, "p": np.array(exponent)}, sizes=SIZES, draw=positive
    )


@pytest.mark.parametrize("exponent", [0.0, 1.0, 1.25, 2.0, 3.0])
def test_powers_of_zero(prove, exponent):
    def draw(rng, shape):
        return rng.integers(0, 2, shape).astype(np.float64)

    prove(
        lambda g: g.add("Pow", "x", "p"),
        torch.pow,
        {"x": IMAGE, "p": np.array(exponent)},
        sizes=SIZES,
        draw=draw,
        smooth=False,
    )


@pytest.mark.parametrize("exponent", [0, 1, 2, 3])
def test_whole_powers_of_negative_numbers_with_an_integer_exponent(prove, exponent):
    prove(lambda g: g.add("Pow", "x", "p"), torch.pow, {"x": IMAGE, "p": np.array(exponent)}, sizes=SIZES)


@pytest.mark.parametrize(
    ("base", "exponent"), [((3, 1), [[1.5, 2.0, 0.0]]), ((), [2.0, 0.0]), ((2, 3), [[1.25], [3.0]])]
)
def test_powers_broadcast(prove, base, exponent):
    prove(lambda g: g.add("Pow", "x", "p"), torch.pow, {"x": base, "p": np.array(exponent)}, draw=positive)


def test_what_is_held_constant_must_not_depend_on_the_variable():
    graph = Graph()
    for name in ("x", "p"):
        graph.input(name, (4,))
    graph.input("low", ())
    graph.add("Pow", "x", "p", name="power")
    graph.add("Clip", "x", "low", name="clipped")
    graph.input("dy", (4,))
    with pytest.raises(GraphError, match=r"'power' \(Pow\): the exponent"):
        differentiate(graph, {"power": "dy"}, ["p"])
    with pytest.raises(GraphError, match=r"'clipped' \(Clip\): the bounds"):
        differentiate(graph, {"clipped": "dy"}, ["low"])


def test_dropout_is_the_identity(prove):
    for inputs in ({}, {"ratio": np.array(0.5)}, {"ratio": np.array(0.5), "training": np.array(False)}):
        prove(
            lambda g, inputs=inputs: g.add("Dropout", "x", *inputs),
            lambda x, *_: x * 1,
            {"x": IMAGE, **inputs},
            sizes=SIZES,
        )


def test_dropout_in_training_is_refused():
    graph = Graph()
    graph.input("x", (4,))
    graph.add("Dropout", "x", graph.literal(0.5, np.float32), graph.literal(True, np.bool_), name="drop")
    graph.input("dy", (4,))
    with pytest.raises(GraphError, match=r"'drop' \(Dropout\): training mode"):
        differentiate(graph, {"drop": "dy"}, ["x"])


def test_cast_there_and_back(prove):
    # Values and cotangents are exact in float32, so the way through it rounds nothing.
    prove(
        lambda g: g.add("Cast", g.add("Cast", "x", to=TensorProto.FLOAT), to=TensorProto.DOUBLE),
        lambda x: x.to(torch.float32).to(torch.float64),
        {"x": IMAGE},
        sizes=SIZES,
        smooth=False,
        float32=False,
    )


@pytest.mark.parametrize(
    ("tensor_type", "dtype"), [(TensorProto.FLOAT16, np.float16), (TensorProto.BFLOAT16, ml_dtypes.bfloat16)]
)
def test_cast_from_half_precision_carries_the_gradient(on_onnxruntime, tensor_type, dtype):
    graph = Graph()
    graph.input("x", (3,))
    graph.add("Cast", graph.add("Cast", "x", to=tensor_type, name="half"), to=TensorProto.FLOAT, name="y")
    graph.input("dy", (3,))
    gradients = differentiate(graph, {"y": "dy"}, ["x", "half"])
    assert graph.infer_shapes()[gradients["half"]][0] == dtype
    graph.outputs = [gradients["x"]]
    graph.prune()
    dy = np.array([1.0, -0.5, 3.0], np.float32)
    (dx,) = on_onnxruntime(graph, {"x": np.ones(3, np.float32), "dy": dy} if "x" in graph.inputs else {"dy": dy})
    assert np.array_equal(dx, dy)


def test_masks_and_counts_carry_no_gradient(prove):
    def build(graph):
        positive_ = graph.add("Greater", "x", graph.literal(0.0, graph.inputs["x"][0]))
        mask = graph.add(
            "Cast", positive_, to=TensorProto.DOUBLE if graph.inputs["x"][0] == "f8" else TensorProto.FLOAT
        )
        return graph.add("Mul", "x", mask)

    prove(build, torch.relu, {"x": IMAGE}, sizes=SIZES)


def test_a_count_may_be_an_exponent(prove):
    # The exponent is computed from the variable's shape, not from its value.
    def build(graph):
        rank = graph.add("Size", graph.add("Shape", "x"))
        to = TensorProto.DOUBLE if graph.inputs["x"][0] == "f8" else TensorProto.FLOAT
        return graph.add("Pow", "x", graph.add("Cast", rank, to=to))

    prove(build, lambda x: x**3, {"x": (2, "height", "width")}, sizes=SIZES)
