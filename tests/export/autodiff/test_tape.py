import hashlib
import subprocess
import sys

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper

from impasto.errors import GraphError, UnsupportedOpError
from impasto.export.autodiff import RULES, differentiate
from impasto.export.graph import Graph

PICTURE = (1, 2, "height", "width")
KERNEL = np.arange(36, dtype=np.float64).reshape(2, 2, 3, 3) / 16 - 1
FOUR = {name: np.array([0.5, 2.0]) for name in ("scale", "shift", "mean", "variance")}

# One plain case of every rule: the node's inputs and attributes, and the shapes (or values) of those inputs.
CASES = {
    "Abs": ({"x": PICTURE}, {}),
    "Add": ({"x": PICTURE, "y": ("width",)}, {}),
    "AveragePool": ({"x": PICTURE}, {"kernel_shape": [2, 2], "strides": [2, 2]}),
    "BatchNormalization": ({"x": PICTURE, **FOUR}, {}),
    "Cast": ({"x": PICTURE}, {"to": TensorProto.DOUBLE}),
    "Clip": ({"x": PICTURE, "low": np.array(0.75), "high": np.array(1.5)}, {}),
    "Concat": ({"x": PICTURE, "y": PICTURE}, {"axis": 1}),
    "Conv": ({"x": PICTURE, "w": KERNEL}, {"pads": [1, 1, 1, 1], "strides": [2, 2]}),
    "Div": ({"x": PICTURE, "y": PICTURE}, {}),
    "Dropout": ({"x": PICTURE}, {}),
    "Exp": ({"x": PICTURE}, {}),
    "Expand": ({"x": (2, 1), "to": np.array([3, 2, 4])}, {}),
    "Flatten": ({"x": PICTURE}, {}),
    "Gemm": ({"x": (2, 3), "y": (3, 4)}, {}),
    "GlobalAveragePool": ({"x": PICTURE}, {}),
    "Identity": ({"x": PICTURE}, {}),
    "LeakyRelu": ({"x": PICTURE}, {}),
    "Log": ({"x": PICTURE}, {}),
    "LogSoftmax": ({"x": PICTURE}, {}),
    "MatMul": ({"x": (2, 3), "y": (3, 4)}, {}),
    "MaxPool": ({"x": PICTURE}, {"kernel_shape": [2, 2], "strides": [2, 2]}),
    "Mul": ({"x": PICTURE, "y": ("width",)}, {}),
    "Neg": ({"x": PICTURE}, {}),
    "Pad": ({"x": PICTURE, "by": np.array([0, 0, 1, 1, 0, 0, 2, 1])}, {"mode": "reflect"}),
    "Pow": ({"x": PICTURE, "p": np.array(1.25)}, {}),
    "Reciprocal": ({"x": PICTURE}, {}),
    "ReduceMean": ({"x": PICTURE, "axes": np.array([2, 3])}, {}),
    "ReduceSum": ({"x": PICTURE, "axes": np.array([1])}, {"keepdims": 0}),
    "ReduceSumSquare": ({"x": PICTURE}, {}),
    "Relu": ({"x": PICTURE}, {}),
    "Reshape": ({"x": PICTURE, "to": np.array([2, -1])}, {}),
    "Sigmoid": ({"x": PICTURE}, {}),
    "Slice": ({"x": PICTURE, "first": np.array([1]), "last": np.array([-1]), "axis": np.array([2])}, {}),
    "Softmax": ({"x": PICTURE}, {}),
    "Sqrt": ({"x": PICTURE}, {}),
    "Squeeze": ({"x": PICTURE, "axes": np.array([0])}, {}),
    "Sub": ({"x": PICTURE, "y": ("width",)}, {}),
    "Sum": ({"x": PICTURE, "y": ("width",)}, {}),
    "Tanh": ({"x": PICTURE}, {}),
    "Transpose": ({"x": PICTURE}, {}),
    "Unsqueeze": ({"x": PICTURE, "axes": np.array([1])}, {}),
}


@pytest.mark.parametrize("op", sorted(RULES))
def test_every_rule(prove, op):
    assert op in CASES, f"the rule of {op} has no case"
    inputs, attributes = CASES[op]
    prove(
        lambda g: g.add(op, *inputs, **attributes),
        None,
        inputs,
        sizes=[(5, 4), (3, 7)],
        draw=lambda rng, shape: rng.uniform(0.5, 2.0, shape),
        terms=36,
        float32=op != "Cast",  # its case says float64
    )


def test_no_case_is_without_a_rule():
    assert set(CASES) <= set(RULES)


def test_a_tensor_used_several_times_gathers_its_cotangents(prove):
    def build(graph):
        a = graph.add("Tanh", "x")
        b = graph.add("Mul", a, "x")
        c = graph.add("Add", graph.add("Exp", a), b)
        return graph.add("Div", graph.add("Add", c, "x"), graph.add("Exp", a))

    def reference(x):
        a = torch.tanh(x)
        return (torch.exp(a) + a * x + x) / torch.exp(a)

    prove(build, reference, {"x": PICTURE}, sizes=[(3, 4)])


def network(dtype=np.float64):
    """x → a = exp(x) → b = a·x → c = tanh(b), and beside it the input z → d = exp(z)."""
    graph = Graph("chain")
    graph.input("x", (2, "width"), dtype)
    graph.input("z", (2, "width"), dtype)
    graph.add("Exp", "x", name="a")
    graph.add("Mul", "a", "x", name="b")
    graph.add("Tanh", "b", name="c")
    graph.add("Exp", "z", name="d")
    for name in "abcdxz":
        graph.input(f"d{name}", (2, "width"), dtype)
    return graph


@pytest.fixture
def values():
    rng = np.random.default_rng(3)
    return {name: rng.standard_normal((2, 5)) for name in ["x", "z", *(f"d{n}" for n in "abcdxz")]}


@pytest.mark.parametrize("seeds", ["a", "c", "ab", "ac", "abc", "x", "xc", "cd"])
def test_seeds_on_any_tensors(evaluate, values, seeds):
    graph = network()
    gradients = differentiate(graph, {name: f"d{name}" for name in seeds}, ["x", "a", "b", "z"])
    graph.outputs = [gradients[name] for name in "xabz"]
    graph.prune()
    have = evaluate(graph, {name: values[name] for name in graph.inputs})
    x, z = (torch.tensor(values[name], requires_grad=True) for name in "xz")
    tensors = {"x": x, "z": z, "a": torch.exp(x), "d": torch.exp(z)}
    tensors["b"] = tensors["a"] * x
    tensors["c"] = torch.tanh(tensors["b"])
    loss = sum((tensors[name] * torch.from_numpy(values[f"d{name}"])).sum() for name in seeds)
    want = torch.autograd.grad(loss, [tensors[name] for name in "xabz"], allow_unused=True)
    for name, computed, truth in zip("xabz", have, want, strict=True):
        # Products of a few numbers of magnitude 1, in float64 on both sides.
        assert np.allclose(computed, np.zeros((2, 5)) if truth is None else truth, rtol=1e-13, atol=1e-13), name


def total(graph, x, *axes):
    return graph.add("ReduceSum", x, graph.ints(*axes))


def doubled(graph):
    return total(graph, graph.add("Add", "x", "x"), 0, 1, 2, 3)


# What reaches x: cotangents of sums, which are expanded to its shape, alone or beside one that has that shape already.
SUMS = {
    "a sum beside a square": (
        lambda g: g.add("Mul", total(g, "x", 3), total(g, g.add("Mul", "x", "x"), 3)),
        lambda x: x.sum(3, keepdim=True) * (x * x).sum(3, keepdim=True),
    ),
    "a sum of sums beside a product": (
        lambda g: g.add("Mul", "x", total(g, total(g, "x", 3), 2)),
        lambda x: x * x.sum((2, 3), keepdim=True),
    ),
    "sums along two axes": (
        lambda g: g.add("Mul", total(g, "x", 3), total(g, "x", 2)),
        lambda x: x.sum(3, keepdim=True) * x.sum(2, keepdim=True),
    ),
    "one sum twice": (doubled, lambda x: 2 * x.sum((0, 1, 2, 3), keepdim=True)),
    "one sum twice and another": (
        lambda g: g.add("Mul", total(g, "x", 3), doubled(g)),
        lambda x: x.sum(3, keepdim=True) * 2 * x.sum(),
    ),
    "one sum twice, others and what is summed itself": (
        lambda g: g.add("Mul", g.add("Sum", total(g, "x", 3), total(g, "x", 2), "x"), doubled(g)),
        lambda x: (x.sum(3, keepdim=True) + x.sum(2, keepdim=True) + x) * 2 * x.sum(),
    ),
}


@pytest.mark.parametrize("case", SUMS)
def test_cotangents_of_sums_are_added_up(prove, case):
    prove(*SUMS[case], {"x": PICTURE}, sizes=[(3, 4), (1, 1), (5, 2)], terms=80)


@pytest.mark.parametrize("sides", [("height", "width"), (3, 4)])
def test_expansions_beside_a_full_cotangent_are_left_to_broadcasting(sides):
    graph = Graph()
    graph.input("x", (1, 2, *sides))
    graph.add("Mul", graph.add("Mul", "x", "x"), total(graph, total(graph, "x", 3), 2), name="y")
    graph.input("dy", (1, 2, *sides))
    graph.outputs = [differentiate(graph, {"y": "dy"}, ["x"])["x"]]
    graph.prune()
    assert "Expand" not in {node.op_type for node in graph.nodes}


def test_a_seed_that_was_expanded(evaluate, values):
    graph = network()
    graph.input("level", (1,), np.float64)
    graph.add("Expand", "level", graph.add("Shape", "a"), name="wide")
    gradients = [differentiate(graph, seeds, ["x"])["x"] for seeds in ({"a": "wide", "c": "dc"}, {"a": "wide"})]
    graph.outputs = gradients
    graph.prune()
    values["level"] = np.array([0.75])
    have = evaluate(graph, {name: values[name] for name in graph.inputs})
    x, a = values["x"], np.exp(values["x"])
    through_c = values["dc"] * (1 - np.tanh(a * x) ** 2)
    # As above: products of a few numbers of magnitude 1.
    np.testing.assert_allclose(have[0], (0.75 + through_c * x) * a + through_c * a, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(have[1], 0.75 * a, rtol=1e-13)


def test_the_seed_itself_may_be_computed(evaluate, values):
    graph = network()
    graph.add("Mul", "c", "c", name="square")
    graph.outputs = [differentiate(graph, {"c": "square"}, ["b"])["b"]]
    graph.prune()
    (have,) = evaluate(graph, {name: values[name] for name in graph.inputs})
    c = np.tanh(np.exp(values["x"]) * values["x"])
    assert np.allclose(have, c * c * (1 - c * c), rtol=1e-13)


@pytest.mark.parametrize("wrt", ["z", "d", "c"])
def test_what_no_seed_depends_on_gets_zeros(evaluate, values, wrt):
    # Even where the tensor itself is not finite.
    graph = network()
    graph.outputs = [differentiate(graph, {"b": "db"}, [wrt])[wrt]]
    graph.prune()
    values["z"][:] = np.nan
    values["x"][0, 0] = np.inf
    (have,) = evaluate(graph, {name: values[name] for name in graph.inputs})
    assert np.array_equal(have, np.zeros((2, 5)))


def test_differentiating_twice_appends_twice(evaluate, values):
    graph = network()
    first = differentiate(graph, {"c": "dc"}, ["x"])["x"]
    second = differentiate(graph, {"c": "dc"}, ["x"])["x"]
    graph.outputs = [first, second]
    one, two = evaluate(graph, values)
    assert first != second
    assert np.array_equal(one, two)


def test_the_gradient_of_a_gradient(evaluate):
    # ½‖∇(Σ x³/3)‖² has the gradient 2x³: differentiated once for ∇ = x², and again through that graph.
    graph = Graph()
    graph.input("x", (4,), np.float64)
    cube = graph.add("Mul", graph.add("Mul", "x", "x"), "x")
    third = graph.literal(np.full(4, 1 / 3), np.float64)
    slope = differentiate(graph, {cube: third}, ["x"])["x"]
    half = graph.add("Mul", graph.add("ReduceSumSquare", slope, keepdims=0), graph.literal(0.5, np.float64))
    graph.outputs = [differentiate(graph, {half: graph.literal(1.0, np.float64)}, ["x"])["x"]]
    x = np.array([-1.5, 0.0, 0.5, 2.0])
    (have,) = evaluate(graph, {"x": x})
    assert np.allclose(have, 2 * x**3, rtol=1e-14)


def test_second_outputs_are_not_differentiable():
    graph = Graph()
    graph.input("x", (1, 1, 4, 4))
    graph.add_many("Dropout", ["x"], ["kept", "mask"])
    graph.input("dy", (1, 1, 4, 4))
    assert differentiate(graph, {"kept": "dy"}, ["x"]) == {"x": "dy"}
    with pytest.raises(GraphError, match="node 'kept': output 1 of Dropout is not differentiable"):
        differentiate(graph, {"mask": "dy"}, ["x"])


def test_an_operator_without_a_rule_names_itself_and_its_node():
    graph = Graph()
    graph.input("x", (4,))
    graph.add("Sin", "x", name="wave")
    graph.input("dy", (4,))
    with pytest.raises(UnsupportedOpError, match=r"node 'wave': no gradient rule for operator Sin \(.*Abs, Add, "):
        differentiate(graph, {"wave": "dy"}, ["x"])


def test_an_operator_without_a_rule_matters_only_on_the_way():
    graph = Graph()
    for name in ("x", "z", "dy"):
        graph.input(name, (4,))
    graph.add("Sin", "z", name="aside")
    graph.add("Mul", "x", "aside", name="y")
    graph.add("Cos", "y", name="later")
    assert differentiate(graph, {"y": "dy"}, ["x"]).keys() == {"x"}


def test_an_operator_of_another_domain_names_itself_and_its_node():
    graph = Graph()
    graph.input("x", (4,))
    with pytest.raises(UnsupportedOpError, match=r"node 'gelu': com\.microsoft::FastGelu"):
        graph.add("FastGelu", "x", name="gelu", domain="com.microsoft")


def test_absent_optional_tensors_connect_nothing():
    # The empty name stands for "none": the output that the pool does not give is not the bound that Clip does not take.
    graph = Graph()
    graph.input("x", (1, 1, 4, 4))
    graph.input("z", (1, 1, 4, 4))
    graph.append(helper.make_node("Dropout", ["x"], ["kept", ""]))
    graph.add("Clip", "z", "", graph.literal(1.0, np.float32), name="clipped")
    graph.add("Add", "kept", graph.add("Sin", "clipped"), name="y")
    graph.input("dy", (1, 1, 4, 4))
    assert differentiate(graph, {"y": "dy"}, ["x"]) == {"x": "dy"}


@pytest.mark.parametrize(
    ("seeds", "wrt"), [({"nowhere": "dc"}, ["x"]), ({"c": "nowhere"}, ["x"]), ({"c": "dc"}, ["nowhere"])]
)
def test_tensors_that_are_not_there(seeds, wrt):
    with pytest.raises(GraphError, match=r"graph 'chain' has no tensor 'nowhere'"):
        differentiate(network(), seeds, wrt)


def test_a_graph_that_contradicts_itself():
    graph = Graph("odd")
    graph.input("a", (2, 3))
    graph.input("b", (4, 5))
    graph.add("MatMul", "a", "b", name="y")
    graph.input("dy", (2, 5))
    with pytest.raises(GraphError, match="graph 'odd' is not consistent"):
        differentiate(graph, {"y": "dy"}, ["a"])


def test_a_tensor_of_unknown_rank_is_named():
    graph = Graph()
    graph.input("x", (4,))
    graph.input("shape", ("rank",), np.int64)
    graph.add("Reshape", "x", "shape", name="any")
    graph.add("Softmax", "any", name="soft")
    graph.add("Transpose", "soft", name="y")
    graph.input("dy", (None,))
    with pytest.raises(GraphError, match=r"node 'y' \(Transpose\): the shape of 'soft' cannot be inferred"):
        differentiate(graph, {"y": "dy"}, ["x"])


SAMPLE = """
import hashlib
import numpy as np
from impasto.export.autodiff import differentiate
from impasto.export.graph import Graph

graph = Graph("sample")
graph.input("x", (1, 2, "height", "width"))
graph.weight("w", np.ones((3, 2, 3, 3), np.float32))
conv = graph.add("Conv", "x", "w", pads=[1, 1, 1, 1])
pool = graph.add("MaxPool", graph.add("Relu", conv), kernel_shape=[3, 3], strides=[2, 2])
both = graph.add("Concat", pool, graph.add("Tanh", pool), graph.add("Mul", pool, pool), axis=1)
features = graph.add("Reshape", both, graph.ints(9, -1))
gram = graph.add("Gemm", features, features, transB=1)
loss = graph.add("ReduceSumSquare", gram, keepdims=0)
gradients = differentiate(graph, {loss: graph.literal(1.0, np.float32), pool: pool}, ["x", conv])
graph.outputs = [loss, gradients["x"], gradients[conv]]
graph.prune()
digest = hashlib.sha256(graph.model({"b": "2", "a": "1"}).SerializeToString()).hexdigest()
"""


def test_the_same_calls_make_the_same_bytes():
    digests = set()
    for _ in range(2):
        scope = {}
        exec(SAMPLE, scope)
        digests.add(scope["digest"])
    for seed in ("0", "1"):
        child = subprocess.run(
            [sys.executable, "-c", f"{SAMPLE}\nprint(digest)"],
            env={"PYTHONHASHSEED": seed, "PYTHONPATH": ":".join(sys.path)},
            capture_output=True,
            text=True,
            check=True,
        )
        digests.add(child.stdout.strip())
    assert len(digests) == 1
    assert len(digests.pop()) == hashlib.sha256().digest_size * 2


def test_gradients_are_of_the_standard_domain_and_opset():
    scope = {}
    exec(SAMPLE, scope)
    model = scope["graph"].model()
    onnx.checker.check_model(model, full_check=True)
    assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", 18)]
    assert all(not node.domain for node in model.graph.node)
