"""Rules of reductions and of the softmax family."""

from __future__ import annotations

from onnx import helper

from impasto.export.autodiff.tape import Cotangents, Node, rule


@rule("ReduceSum")
def reduce_sum(node: Node, dy: str) -> Cotangents:
    """Every element gets its sum's cotangent."""
    if not _reduces(node):
        return [dy] + [None] * (len(node.inputs) - 1)
    x = node.inputs[0]
    return [node.add("Expand", _kept(node, dy), node.add("Shape", x))] + [None] * (len(node.inputs) - 1)


@rule("ReduceMean")
def reduce_mean(node: Node, dy: str) -> Cotangents:
    """Every element gets an equal share of its mean's cotangent."""
    x, y = node.inputs[0], node.outputs[0]
    sizes = [node.add("ReduceProd", node.add("Shape", t), keepdims=0) for t in (x, y)]
    count = node.add("Cast", node.add("Div", *sizes), to=helper.np_dtype_to_tensor_dtype(node.dtype(x)))
    return reduce_sum(node, node.add("Div", dy, count))


@rule("ReduceSumSquare")
def reduce_sum_square(node: Node, dy: str) -> Cotangents:
    """dX = 2·X·dY; dY stays small and is broadcast."""
    x = node.inputs[0]
    double = node.add("Mul", dy, node.scalar(2.0, x))
    kept = _kept(node, double) if _reduces(node) else double
    return [node.add("Mul", x, kept)] + [None] * (len(node.inputs) - 1)


@rule("Softmax")
def softmax(node: Node, dy: str) -> Cotangents:
    """dX = Y·(dY - Σ dY·Y)."""
    y = node.outputs[0]
    axis = node.ints(int(node.attributes.get("axis", -1)))
    total = node.add("ReduceSum", node.add("Mul", dy, y), axis, keepdims=1)
    return [node.add("Mul", y, node.add("Sub", dy, total))]


@rule("LogSoftmax")
def log_softmax(node: Node, dy: str) -> Cotangents:
    """dX = dY - softmax(X)·Σ dY."""
    axis = node.ints(int(node.attributes.get("axis", -1)))
    total = node.add("ReduceSum", dy, axis, keepdims=1)
    return [node.add("Sub", dy, node.add("Mul", node.add("Exp", node.outputs[0]), total))]


def _reduces(node: Node) -> bool:
    return node.has(1) or not node.attributes.get("noop_with_empty_axes", 0)


def _kept(node: Node, dy: str) -> str:
    """Bring back the reduced axes of the cotangent, of size 1."""
    rank = len(node.shape(node.inputs[0]))
    if node.attributes.get("keepdims", 1):
        return dy
    if not node.has(1):
        return node.add("Reshape", dy, node.ints(*[1] * rank))
    return node.add("Unsqueeze", dy, node.ints(*sorted(int(a) % rank for a in node.constant(1))))
