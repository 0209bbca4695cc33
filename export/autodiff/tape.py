"""Reverse mode over ONNX: walk a graph backwards, one rule an operator, appending the nodes of the gradient.

The gradient is itself a graph of standard operators. Rules live in the modules beside this one; each registers
itself with `@rule("OpType")` and maps the cotangents of a node's outputs to those of its inputs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper

from impasto.errors import GraphError, UnsupportedOpError
from impasto.export.graph import Graph, Shape, attributes, label

Types = Mapping[str, tuple[np.dtype[Any], Shape]]
Cotangents = list[str | None]
Rule = Callable[["Node", str], Cotangents]

RULES: dict[str, Rule] = {}


def rule(*ops: str) -> Callable[[Rule], Rule]:
    """Register a rule for operators with one differentiable output (the first)."""

    def register(function: Rule) -> Rule:
        for op in ops:
            RULES[op] = function
        return function

    return register


def differentiate(graph: Graph, seeds: Mapping[str, str], wrt: Sequence[str]) -> dict[str, str]:
    """Append to ``graph`` the vector–Jacobian product and return the cotangent of each tensor of ``wrt``.

    ``seeds`` maps a tensor of the graph to the (already present) tensor holding its cotangent, of the same shape.
    The tensors of ``wrt`` may be inputs or intermediate; one that no seed depends on gets zeros.

    Dimensions that shape inference cannot tell are taken to be equal where an elementwise operator meets them: a
    broadcast over a dimension must be visible as a static 1.

    Raises `UnsupportedOpError` for a node on the way whose operator has no rule, and `GraphError` where a rule does
    not cover a node's attributes; both name the node. A tensor that the graph does not have is a `GraphError` too.
    """
    forward = list(graph.nodes)
    types = graph.infer_shapes()
    made = {output for node in forward for output in node.output}
    for name in (*seeds, *seeds.values(), *wrt):
        if name not in made and name not in types:
            raise GraphError(f"graph {graph.name!r} has no tensor {name!r} to differentiate")
    active = _dependents(forward, wrt, types)
    pending: dict[str, list[str]] = {tensor: [seed] for tensor, seed in seeds.items()}
    targets = set(wrt)
    result: dict[str, str] = {}
    for node in reversed(forward):
        total: str | None = None
        for position, output in enumerate(node.output):
            contributions = pending.pop(output, [])
            if not contributions:
                continue
            if position > 0:
                raise GraphError(f"node {label(node)}: output {position} of {node.op_type} is not differentiable")
            total = _sum(graph, contributions)
            if output in targets:
                result[output] = total
        if total is None or not active.intersection(node.input):
            continue
        if node.op_type not in RULES:
            raise UnsupportedOpError(
                f"node {label(node)}: no gradient rule for operator {node.op_type} "
                f"(rules exist for {', '.join(sorted(RULES))})"
            )
        view = Node(graph, node, types, active)
        for name, cotangent in zip(node.input, RULES[node.op_type](view, total), strict=True):
            if cotangent is not None and name in active:
                pending.setdefault(name, []).append(cotangent)
    for name in wrt:
        if name not in result:
            contributions = pending.get(name, [])
            result[name] = _sum(graph, contributions) if contributions else _zeros(graph, name, types)
    return result


class Node:
    """What a rule sees of a node: its attributes, the shapes around it, and how to append to the graph."""

    def __init__(
        self,
        graph: Graph,
        node: onnx.NodeProto,
        types: Types,
        active: set[str],
    ) -> None:
        self.graph = graph
        self.op = node.op_type
        self.inputs = list(node.input)
        self.outputs = list(node.output)
        self.attributes = attributes(node)
        self.label = label(node)
        self._types = types
        self._active = active

    def wants(self, index: int) -> bool:
        """Tell whether input ``index`` needs a cotangent."""
        return index < len(self.inputs) and self.inputs[index] in self._active

    def has(self, index: int) -> bool:
        """Tell whether the optional input ``index`` is there."""
        return index < len(self.inputs) and self.inputs[index] != ""

    def shape(self, name: str) -> tuple[int | None, ...]:
        """Return a tensor's static shape, None for a dynamic dimension; raise `GraphError` if the rank is unknown."""
        return tuple(d if isinstance(d, int) else None for d in self._type(name)[1])

    def dtype(self, name: str) -> np.dtype[Any]:
        """Return a tensor's element type."""
        return self._type(name)[0]

    def constant(self, index: int) -> NDArray[Any]:
        """Return the value of a constant input; raise `GraphError` if it is computed."""
        name = self.inputs[index]
        if name not in self.graph.constants:
            raise self.error(f"input {index} ({name!r}) must be a constant")
        return self.graph.constants[name]

    def add(self, op: str, *inputs: str, **attributes: Any) -> str:
        """Append a node of the gradient and return its output."""
        return self.graph.add(op, *inputs, name=self.graph.unique(f"grad.{self.outputs[0]}"), **attributes)

    def scalar(self, value: float, like: str) -> str:
        """Return a scalar constant of the element type of ``like``."""
        return self.graph.literal(value, self.dtype(like))

    def ints(self, *values: int) -> str:
        """Return a 1-D int64 constant."""
        return self.graph.ints(*values)

    def reshape_like(self, x: str, like: str) -> str:
        """Append a reshape of ``x`` to the shape of the forward tensor ``like``."""
        shape = self.shape(like)
        if sum(d is None for d in shape) <= 1:
            return self.add("Reshape", x, self.ints(*(-1 if d is None else d for d in shape)))
        return self.add("Reshape", x, self.add("Shape", like))

    def reduce_to(self, x: str, like: str) -> str:
        """Undo a broadcast: sum ``x``, of the node's output shape, down to the shape of the input ``like``."""
        have, want = self.shape(self.outputs[0]), self.shape(like)
        extra = len(have) - len(want)
        axes = list(range(extra)) + [
            axis for axis in range(extra, len(have)) if want[axis - extra] == 1 and have[axis] != 1
        ]
        if not axes:
            return x
        reduced = self.add("ReduceSum", x, self.ints(*axes), keepdims=1)
        return self.reshape_like(reduced, like) if extra else reduced

    def explicit_pads(self, rank: int) -> list[int]:
        """Return the ``pads`` attribute; raise `GraphError` for padding that is left to the runtime."""
        automatic = self.attributes.get("auto_pad", "NOTSET")
        if automatic not in ("NOTSET", "VALID"):
            raise self.error(f"auto_pad={automatic} is not covered: give explicit pads")
        return list(self.attributes.get("pads", [0] * (2 * rank)))

    def window_like(self, x: str, like: str, start: Sequence[int], size: Sequence[int | None], slack: int) -> str:
        """Cut from ``x``, beginning at ``start`` of the spatial axes, what has the spatial size of ``like``.

        ``size`` is x's own spatial size where it is known. x may end up to ``slack`` rows and columns early, where
        no window of a floor-mode operator reached: those are zero.
        """
        rank = len(start)
        want = self.shape(like)[2:]
        ends = [None if w is None else s + w for s, w in zip(start, want, strict=True)]
        static = None not in ends and None not in size
        if static and not any(start) and list(size) == ends:
            return x
        missing = [max(0, e - s) if s is not None and e is not None else slack for s, e in zip(size, ends, strict=True)]
        if any(missing):
            x = self.add("Pad", x, self.ints(*[0] * (4 + rank), *missing))
        if static:
            end = self.ints(*(e or 0 for e in ends))
        else:
            end = self.add("Add", self.add("Shape", like, start=2), self.ints(*start))
        return self.add("Slice", x, self.ints(*start), end, self.ints(*range(2, 2 + rank)))

    def error(self, reason: str) -> GraphError:
        """Make the error that a rule raises for a node that it does not cover."""
        return GraphError(f"node {self.label} ({self.op}): {reason}")

    def _type(self, name: str) -> tuple[np.dtype[Any], Shape]:
        if name not in self._types:
            raise self.error(f"the shape of {name!r} cannot be inferred")
        return self._types[name]


def is_real(dtype: np.dtype[Any]) -> bool:
    """Tell whether an element type carries derivatives; NumPy does not count bfloat16 among the floating ones."""
    return helper.np_dtype_to_tensor_dtype(dtype) in _REAL


_REAL = (TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.FLOAT16, TensorProto.BFLOAT16)


def _dependents(nodes: Sequence[onnx.NodeProto], sources: Sequence[str], types: Types) -> set[str]:
    """Return what depends on the sources by a derivative: shapes, comparisons and whole numbers do not."""
    active = set(sources)
    for node in nodes:
        if active.intersection(node.input):
            active.update(o for o in node.output if o and (o not in types or is_real(types[o][0])))
    return active


def _sum(graph: Graph, terms: Sequence[str]) -> str:
    """Append the sum; what was expanded is left to the addition to broadcast, unless there is nothing else."""
    if len(terms) == 1:
        return terms[0]
    narrow = {node.output[0]: node.input[0] for node in graph.nodes if node.op_type == "Expand"}
    total, *others = sorted(terms, key=lambda term: term in narrow)
    for term in others:
        total = graph.add("Add", total, _unexpanded(term, narrow), name=graph.unique("grad.sum"))
    return total


def _unexpanded(term: str, narrow: Mapping[str, str]) -> str:
    while term in narrow:
        term = narrow[term]
    return term


def _zeros(graph: Graph, like: str, types: Types) -> str:
    if like not in types:
        raise GraphError(f"graph {graph.name!r}: the shape of {like!r} cannot be inferred")
    zero, shape = graph.literal(0.0, types[like][0]), graph.add("Shape", like, name=graph.unique("grad.shape"))
    return graph.add("Expand", zero, shape, name=graph.unique("grad.zero"))
