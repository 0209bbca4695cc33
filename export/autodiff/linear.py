"""Rules of matrix products."""

from __future__ import annotations

from impasto.export.autodiff.tape import Cotangents, Node, rule


@rule("Gemm")
def gemm(node: Node, dy: str) -> Cotangents:
    """Y = alpha·A'·B' + beta·C, where a prime may transpose.

    A Gram matrix A·Aᵀ gets (dY + dYᵀ)·A in one product instead of two.
    """
    a, b = node.inputs[:2]
    alpha = float(node.attributes.get("alpha", 1.0))
    turned_a = bool(node.attributes.get("transA", 0))
    turned_b = bool(node.attributes.get("transB", 0))
    rest: Cotangents = [None] * (len(node.inputs) - 2)
    if node.has(2) and node.wants(2):
        beta = node.scalar(float(node.attributes.get("beta", 1.0)), a)
        rest = [node.reduce_to(node.add("Mul", dy, beta), node.inputs[2])]
    if a == b and turned_a != turned_b and node.wants(0):
        both = node.add("Add", dy, node.add("Transpose", dy, perm=[1, 0]))
        pair = (a, both) if turned_a else (both, a)
        return [node.add("Gemm", *pair, alpha=alpha), None, *rest]
    da = db = None
    if node.wants(0):
        if turned_a:
            da = node.add("Gemm", b, dy, alpha=alpha, transA=int(turned_b), transB=1)
        else:
            da = node.add("Gemm", dy, b, alpha=alpha, transB=int(not turned_b))
    if node.wants(1):
        if turned_b:
            db = node.add("Gemm", dy, a, alpha=alpha, transA=1, transB=int(turned_a))
        else:
            db = node.add("Gemm", a, dy, alpha=alpha, transA=int(not turned_a))
    return [da, db, *rest]


@rule("MatMul")
def mat_mul(node: Node, dy: str) -> Cotangents:
    """dA = dY·Bᵀ, dB = Aᵀ·dY, over the last two axes."""
    a, b = node.inputs
    if min(len(node.shape(a)), len(node.shape(b))) < 2:
        raise node.error("vectors are not covered: give matrices")
    da = node.add("MatMul", dy, _transposed(node, b)) if node.wants(0) else None
    db = node.add("MatMul", _transposed(node, a), dy) if node.wants(1) else None
    return [da and _unbatch(node, da, a), db and _unbatch(node, db, b)]


def _transposed(node: Node, x: str) -> str:
    rank = len(node.shape(x))
    return node.add("Transpose", x, perm=[*range(rank - 2), rank - 1, rank - 2])


def _unbatch(node: Node, gradient: str, like: str) -> str:
    """Sum over the batch axes along which the operand was broadcast."""
    batch, own = node.shape(node.outputs[0])[:-2], node.shape(like)[:-2]
    extra = len(batch) - len(own)
    axes = [i for i, d in enumerate(batch) if i < extra or (own[i - extra] == 1 and d != 1)]
    if not axes:
        return gradient
    return node.reshape_like(node.add("ReduceSum", gradient, node.ints(*axes), keepdims=1), like)
