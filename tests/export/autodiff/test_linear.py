import numpy as np
import pytest
import torch

from impasto.errors import GraphError
from impasto.export.autodiff import differentiate
from impasto.export.graph import Graph

TURNS = [(0, 0), (0, 1), (1, 0), (1, 1)]


def turned(x, turn):
    return x.transpose(-1, -2) if turn else x


@pytest.mark.parametrize(("turn_a", "turn_b"), TURNS)
@pytest.mark.parametrize("alpha", [1.0, -0.75])
def test_gemm(prove, turn_a, turn_b, alpha):
    rows, inner, columns = "height", 4, "width"
    prove(
        lambda g: g.add("Gemm", "a", "b", transA=turn_a, transB=turn_b, alpha=alpha),
        lambda a, b: alpha * turned(a, turn_a) @ turned(b, turn_b),
        {"a": (inner, rows) if turn_a else (rows, inner), "b": (columns, inner) if turn_b else (inner, columns)},
        sizes=[(3, 5), (1, 1)],
        terms=5,
    )


@pytest.mark.parametrize("beta", [1.0, 0.5, 0.0])
@pytest.mark.parametrize("shape", [(3, 5), (5,), (1, 5), (3, 1), (1,), ()], ids=str)
def test_gemm_with_a_broadcast_summand(prove, shape, beta):
    prove(
        lambda g: g.add("Gemm", "a", "b", "c", beta=beta),
        lambda a, b, c: a @ b + beta * c,
        {"a": (3, 4), "b": (4, 5), "c": shape},
        terms=15,
    )


@pytest.mark.parametrize("wrt", [["a"], ["b"], ["c"]])
def test_gemm_with_one_operand_alone(prove, wrt):
    prove(
        lambda g: g.add("Gemm", "a", "b", "c", transA=1),
        lambda a, b, c: a.T @ b + c,
        {"a": (4, "height"), "b": (4, "width"), "c": ("height", "width")},
        sizes=[(2, 3)],
        wrt=wrt,
    )


@pytest.mark.parametrize(("turn_a", "turn_b"), TURNS)
def test_a_matrix_times_itself(prove, turn_a, turn_b):
    # Of unequal sides where one factor is transposed: the Gram matrices A·Aᵀ and Aᵀ·A.
    prove(
        lambda g: g.add("Gemm", "a", "a", transA=turn_a, transB=turn_b, alpha=0.5),
        lambda a: 0.5 * turned(a, turn_a) @ turned(a, turn_b),
        {"a": (4, 7) if turn_a != turn_b else (5, 5)},
        terms=14,
    )


def test_the_gram_matrix_of_a_tap(prove):
    def build(graph):
        features = graph.add("Reshape", "x", graph.ints(3, -1))
        return graph.add("Gemm", features, features, transB=1)

    prove(
        build,
        lambda x: x.reshape(3, -1) @ x.reshape(3, -1).T,
        {"x": (1, 3, "height", "width")},
        sizes=[(4, 5), (1, 1)],
        terms=20,
    )


def test_the_gradient_of_a_gram_matrix_is_one_product():
    graph = Graph()
    graph.input("a", (3, 8))
    graph.add("Gemm", "a", "a", transB=1, name="gram")
    graph.input("dy", (3, 3))
    differentiate(graph, {"gram": "dy"}, ["a"])
    assert [node.op_type for node in graph.nodes].count("Gemm") == 2  # the forward one, and one


MATRICES = [
    ((3, 4), (4, 5)),
    ((2, 3, 4), (2, 4, 5)),
    ((2, 3, 4), (4, 5)),
    ((3, 4), (2, 4, 5)),
    ((2, 1, 3, 4), (6, 4, 5)),
    ((1, 3, 4), (2, 4, 5)),
    ((2, "height", "width"), ("width", 3)),
    ((1, 2, "height", "width"), (1, 2, "width", "height")),
    ((1, 1), (1, 1)),
]


@pytest.mark.parametrize(("a", "b"), MATRICES, ids=str)
def test_mat_mul(prove, a, b):
    prove(lambda g: g.add("MatMul", "a", "b"), torch.matmul, {"a": a, "b": b}, sizes=[(4, 5), (1, 2)], terms=30)


@pytest.mark.parametrize("wrt", ["a", "b"])
def test_mat_mul_with_one_operand_alone(prove, wrt):
    prove(lambda g: g.add("MatMul", "a", "b"), torch.matmul, {"a": (2, 3, 4), "b": (4, 5)}, wrt=[wrt], terms=12)


def test_mat_mul_of_a_matrix_with_itself(prove):
    prove(lambda g: g.add("MatMul", "a", "a"), lambda a: a @ a, {"a": (2, 4, 4)})


@pytest.mark.parametrize(("a", "b"), [((4,), (4, 5)), ((3, 4), (4,)), ((4,), (4,))])
def test_vectors_are_refused(a, b):
    graph = Graph()
    graph.input("a", a)
    graph.input("b", b)
    graph.add("MatMul", "a", "b", name="product")
    graph.input("dy", graph.infer_shapes()["product"][1])
    with pytest.raises(GraphError, match=r"'product' \(MatMul\): vectors are not covered: give matrices"):
        differentiate(graph, {"product": "dy"}, ["a"])


def test_numbers_by_hand(evaluate):
    graph = Graph()
    graph.input("a", (2, 1), np.float64)
    graph.add("Gemm", "a", "a", transB=1, name="gram")
    graph.input("dy", (2, 2), np.float64)
    graph.outputs = [differentiate(graph, {"gram": "dy"}, ["a"])["a"]]
    # G = [[a², ab], [ab, b²]], so dG/da·dy = 2a·p + b·(q + r) for dy = [[p, q], [r, s]].
    (gradient,) = evaluate(graph, {"a": np.array([[2.0], [3.0]]), "dy": np.array([[1.0, 10.0], [100.0, 1000.0]])})
    assert gradient.tolist() == [[2 * 2 + 3 * 110], [2 * 3 * 1000 + 2 * 110]]
