"""Rules of operators that move, cut, join or surround elements."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from impasto.export.autodiff.tape import Cotangents, Node, rule


@rule("Reshape", "Flatten", "Squeeze", "Unsqueeze")
def reshape(node: Node, dy: str) -> Cotangents:
    """Give the cotangent the input's shape."""
    return [node.reshape_like(dy, node.inputs[0])] + [None] * (len(node.inputs) - 1)


@rule("Transpose")
def transpose(node: Node, dy: str) -> Cotangents:
    """Transpose by the inverse permutation."""
    rank = len(node.shape(node.inputs[0]))
    order = list(node.attributes.get("perm", range(rank)[::-1]))
    return [node.add("Transpose", dy, perm=[order.index(axis) for axis in range(rank)])]


@rule("Expand")
def expand(node: Node, dy: str) -> Cotangents:
    """Sum over what was repeated."""
    return [node.reduce_to(dy, node.inputs[0]), None]


@rule("Concat")
def concat(node: Node, dy: str) -> Cotangents:
    """Cut the cotangent where the inputs were joined."""
    axis = int(node.attributes["axis"])
    sizes = [node.shape(name)[axis] for name in node.inputs]
    if None in sizes:
        raise node.error("the sizes along the joined axis must be static")
    ends = np.cumsum([size or 0 for size in sizes]).tolist()
    return [
        _cut(node, dy, axis, end - (size or 0), end) if node.wants(i) else None
        for i, (size, end) in enumerate(zip(sizes, ends, strict=True))
    ]


@rule("Slice")
def slice_(node: Node, dy: str) -> Cotangents:
    """Put the cotangent back between zeros; steps other than 1 are not covered."""
    x = node.inputs[0]
    rank = len(node.shape(x))
    starts, ends = (node.constant(i).tolist() for i in (1, 2))
    axes = node.constant(3).tolist() if node.has(3) else list(range(len(starts)))
    if node.has(4) and any(step != 1 for step in node.constant(4)):
        raise node.error("steps other than 1 are not covered")
    before, after = [0] * rank, [0] * rank
    computed: dict[int, tuple[str, str]] = {}
    for axis, start, end in zip(axes, starts, ends, strict=True):
        axis %= rank
        size = node.shape(x)[axis]
        if size is not None:
            first, last, _ = slice(start, end).indices(size)
            before[axis], after[axis] = first, size - max(last, first)
        elif start >= 0 and (end < 0 or end >= np.iinfo(np.int32).max):
            # Known amounts, as long as the axis is not shorter than what is cut off.
            before[axis], after[axis] = start, -end if end < 0 else 0
        else:
            computed[axis] = _cut_off(node, axis, start)
    rest: Cotangents = [None] * (len(node.inputs) - 1)
    amounts = node.ints(*before, *after)
    if computed:
        pieces = [computed[a][0] if a in computed else node.ints(before[a]) for a in range(rank)]
        pieces += [computed[a][1] if a in computed else node.ints(after[a]) for a in range(rank)]
        amounts = node.add("Concat", *pieces, axis=0)
    return [node.add("Pad", dy, amounts), *rest]


def _cut_off(node: Node, axis: int, start: int) -> tuple[str, str]:
    """Compute how much a slice left off before and after itself on an axis whose size shows at run time only."""
    size, length = (node.add("Shape", name, start=axis, end=axis + 1) for name in (node.inputs[0], node.outputs[0]))
    if start < 0:
        before = node.add("Max", node.add("Add", size, node.ints(start)), node.ints(0))
    else:
        before = node.add("Min", size, node.ints(start))
    return before, node.add("Sub", node.add("Sub", size, length), before)


@rule("Pad")
def pad(node: Node, dy: str) -> Cotangents:
    """Drop the surround; what replication or reflection put there goes back to where it came from."""
    x = node.inputs[0]
    rank = len(node.shape(x))
    amounts = node.constant(1).tolist()
    axes = node.constant(3).tolist() if node.has(3) else list(range(rank))
    if min(amounts) < 0:
        raise node.error("negative amounts are not covered")
    mode = node.attributes.get("mode", "constant")
    for position, axis in enumerate(axes):
        axis %= rank
        before, after = amounts[position], amounts[position + len(axes)]
        if before or after:
            dy = _unpad(node, dy, axis, before, after, mode)
    return [dy] + [None] * (len(node.inputs) - 1)


def _unpad(node: Node, dy: str, axis: int, before: int, after: int, mode: str) -> str:
    end = -after if after else _END
    inner = _cut(node, dy, axis, before, end)
    if mode == "constant":
        return inner
    if mode not in ("edge", "reflect"):
        raise node.error(f"mode {mode!r} is not covered")
    if before:
        rim = _cut(node, dy, axis, 0, before)
        inner = _fold(node, inner, rim, axis, before, mode, at_end=False)
    if after:
        rim = _cut(node, dy, axis, -after, _END)
        inner = _fold(node, inner, rim, axis, after, mode, at_end=True)
    return inner


def _fold(node: Node, inner: str, rim: str, axis: int, width: int, mode: str, at_end: bool) -> str:
    """Add a rim of the cotangent to the elements that it was copied from."""
    if mode == "edge":
        rim = node.add("ReduceSum", rim, node.ints(axis), keepdims=1)
        edges = (-1, _END) if at_end else (0, 1)
    else:
        rim = _cut(node, rim, axis, -1, _START, step=-1)
        edges = (-width - 1, -1) if at_end else (1, width + 1)
    copied = node.add("Add", _cut(node, inner, axis, *edges), rim)
    pieces = [_cut(node, inner, axis, 0, edges[0])] if edges[0] != 0 else []
    pieces.append(copied)
    if edges[1] != _END:
        pieces.append(_cut(node, inner, axis, edges[1], _END))
    return node.add("Concat", *pieces, axis=axis)


_START, _END = np.iinfo(np.int64).min, np.iinfo(np.int64).max


def _cut(node: Node, x: str, axis: int, start: int, end: int, step: int = 1) -> str:
    bounds: Sequence[str] = (node.ints(start), node.ints(end), node.ints(axis), node.ints(step))
    return node.add("Slice", x, *bounds)
