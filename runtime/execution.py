"""How ONNX Runtime lays out in memory what a graph computes, foretold without building it.

Its CPU provider runs nodes one after the other, and what it holds follows from rules that are read off its sources
(``allocation_planner.cc``, ``nchwc_transformer.cc``, ``graph_viewer.cc``, version 1.31):

- Nodes are ordered depth first from the outputs, the last input first. So the masks of a gradient are computed right
  after the layer that they belong to, and are held until the gradient comes back to it.
- Convolutions whose channels fill vectors work in a blocked layout, ReLUs and poolings after them too. Whoever reads
  such a tensor in the plain layout gets a copy; a ReLU that is its convolution's only reader is fused with it.
- Elementwise nodes overwrite an input that nobody else reads; a tensor that is dead gives its place to a later one of
  the same shape, and that place is kept in between.

Nodes of constants alone are folded, and take nothing here: weights are counted by whoever calls.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx

from impasto.export.graph import Graph, attributes

_ALIASES = frozenset({"Flatten", "Identity", "Reshape", "Squeeze", "Unsqueeze"})
_IN_PLACE = frozenset({"Add", "Cast", "Div", "Mul", "Neg", "Relu", "Sub"})
_BLOCK = 16
"""Channels of a vector with AVX-512; with shorter ones the same layers are blocked."""


@dataclass
class Operation:
    """A node at run time: what it reads of what was computed, and the bytes and shape that it writes.

    ``workspace`` is what it needs besides, while it runs.
    """

    op: str
    inputs: list[str]
    output: str
    size: int
    shape: tuple[object, ...]
    workspace: int = 0


def held_bytes(graph: Graph, *, plain: bool = False) -> int:
    """Return the most bytes that the computed tensors of a graph take at once, its outputs included.

    All shapes must be fixed. With ``plain`` no layer is blocked and no place is kept for later, which is how a runtime
    that frees what is dead would run the same nodes in the same order.
    """
    operations, outputs = _operations(graph, blocked=not plain)
    return _peak(_depth_first(operations), outputs, keeps=not plain)


def _operations(graph: Graph, blocked: bool) -> tuple[list[Operation], list[str]]:
    """Return the nodes as they are run, in the order of the graph, and what the graph's outputs are called there."""
    return _Lowering(graph, blocked).run()


class _Lowering:
    """One run of `_operations`."""

    def __init__(self, graph: Graph, blocked: bool) -> None:
        self._graph = graph
        self._blocks = blocked
        self._types = graph.infer_shapes()
        self._folded = set(graph.constants)
        self._readers = Counter(name for node in graph.nodes for name in node.input)
        self._readers.update(graph.outputs)
        self._makers = {node.output[0]: node for node in graph.nodes}
        self._found: dict[str, Operation] = {}
        self._blocked: dict[str, str] = {}
        self._plain: dict[str, str] = {}

    def run(self) -> tuple[list[Operation], list[str]]:
        for node in self._graph.nodes:
            self._append(node)
        outputs = [self._in_plain(name) for name in self._graph.outputs]
        return list(self._found.values()), outputs

    def _append(self, node: onnx.NodeProto) -> None:
        inputs = [name for name in node.input if name and name not in self._folded]
        output = node.output[0]
        if not inputs or node.op_type == "Shape":
            self._folded.add(output)
            return
        first = node.input[0]
        if node.op_type == "Relu" and self._is_blocked(first) and self._readers[first] == 1:
            fused = self._found.pop(first)
            fused.output = output
            self._found[output] = fused
            self._blocked[output] = output
            return
        stays = node.op_type in ("Relu", "MaxPool", "AveragePool") and self._is_blocked(first)
        if stays or self._is_blocked_conv(node):
            self._blocked[output] = output
            inputs = [first] if stays or self._channels(first) < _BLOCK else [self._in_blocks(first)]
        else:
            inputs = [self._in_plain(name) for name in inputs]
        size, shape = self._size(output)
        self._found[output] = Operation(node.op_type, inputs, output, size, shape, self._workspace(node))

    def _is_blocked_conv(self, node: onnx.NodeProto) -> bool:
        if not self._blocks or node.op_type != "Conv" or node.input[1] not in self._folded:
            return False
        grouped = attributes(node).get("group", 1) != 1
        given, made = self._channels(node.input[0]), self._channels(node.output[0])
        return not grouped and made % _BLOCK == 0 and (given % _BLOCK == 0 or given < _BLOCK)

    def _is_blocked(self, name: str) -> bool:
        return self._blocked.get(name) == name

    def _in_blocks(self, name: str) -> str:
        if name not in self._blocked:
            self._blocked[name] = self._copy(name, f"{name}#blocked")
        return self._blocked[name]

    def _in_plain(self, name: str) -> str:
        if not self._is_blocked(name):
            return name
        if name not in self._plain:
            self._plain[name] = self._copy(name, f"{name}#plain")
        return self._plain[name]

    def _copy(self, name: str, copy: str) -> str:
        size, shape = self._size(name)
        self._found[copy] = Operation("Reorder", [name], copy, size, shape)
        return copy

    def _channels(self, name: str) -> int:
        channels = self._types[name][1][1]
        return channels if isinstance(channels, int) else 0

    def _size(self, name: str) -> tuple[int, tuple[object, ...]]:
        dtype, shape = self._types.get(name, (None, (None,)))
        if dtype is not None and all(isinstance(side, int) for side in shape[1:]):
            # The only batch there is has one picture.
            sides = [side if isinstance(side, int) else 1 for side in shape]
            return dtype.itemsize * math.prod(sides), tuple(sides)
        # Inference cannot tell the shape of an enlarged gradient, nor that of one that was never reduced.
        node = self._makers[name]
        size, _ = self._size(node.input[0])
        if node.op_type == "Resize":
            size = round(size * float(np.prod(self._graph.constants[node.input[2]])))
        return size, (name,)

    def _workspace(self, node: onnx.NodeProto) -> int:
        """Return what a transposed convolution needs: every product of its kernel, before they are added up."""
        if node.op_type != "ConvTranspose":
            return 0
        kernel: list[int] = attributes(node)["kernel_shape"]
        positions = self._size(node.input[0])[0] // self._channels(node.input[0])
        return self._channels(node.output[0]) * math.prod(kernel) * positions


def _depth_first(operations: Sequence[Operation]) -> list[Operation]:
    number = {operation.output: index for index, operation in enumerate(operations)}
    read = {name for operation in operations for name in operation.inputs}
    stack = [(index, False) for index, operation in enumerate(operations) if operation.output not in read]
    seen: set[int] = set()
    ordered = []
    while stack:
        index, is_done = stack.pop()
        if is_done:
            ordered.append(operations[index])
        elif index not in seen:
            seen.add(index)
            stack.append((index, True))
            inputs = sorted({number[name] for name in operations[index].inputs if name in number})
            stack += [(each, False) for each in inputs if each not in seen]
    return ordered


def _peak(operations: Sequence[Operation], outputs: Sequence[str], keeps: bool) -> int:
    """Return the most bytes that the places of tensors take at once."""
    places, sizes = _places(operations, outputs, keeps)
    spans: dict[str, tuple[int, int]] = {}
    for index, operation in enumerate(operations):
        for name in (operation.output, *operation.inputs):
            if name in places:
                begin, _ = spans.get(places[name], (index, index))
                spans[places[name]] = begin, index
    change: Counter[int] = Counter()
    kept = {places[name] for name in outputs if name in places}
    for place, (begin, end) in spans.items():
        change[begin] += sizes[place]
        if place not in kept:
            change[end + 1] -= sizes[place]
    held = most = 0
    for index, operation in enumerate(operations):
        held += change[index]
        most = max(most, held + operation.workspace)
    return most


def _places(
    operations: Sequence[Operation], outputs: Sequence[str], keeps: bool
) -> tuple[dict[str, str], dict[str, int]]:
    """Return the place of each tensor, named by the first that has it, and the size of each place in bytes."""
    uses = Counter(name for operation in operations for name in operation.inputs)
    uses.update(outputs)
    places: dict[str, str] = {}
    sizes: dict[str, int] = {}
    left: Counter[str] = Counter()
    free: defaultdict[tuple[object, ...], list[str]] = defaultdict(list)
    shapes: dict[str, tuple[object, ...]] = {}
    for operation in operations:
        read = [places[name] for name in operation.inputs if name in places]
        place = _taken_over(operation, places, sizes, left)
        shape = (operation.size, *operation.shape)
        if place is None and keeps and free[shape] and operation.output not in outputs:
            place = free[shape].pop()
        if place is None:
            place = operation.output
            sizes[place], shapes[place] = operation.size, shape
        places[operation.output] = place
        left[place] += uses[operation.output]
        for name in read:
            left[name] -= 1
        for name in dict.fromkeys((*read, place)):
            if left[name] == 0:
                free[shapes[name]].append(name)
    return places, sizes


def _taken_over(operation: Operation, places: dict[str, str], sizes: dict[str, int], left: Counter[str]) -> str | None:
    """Return the place of the input that an operation writes over, or that it only gives another name."""
    known = [places[name] for name in operation.inputs if name in places]
    if operation.op in _ALIASES:
        return known[0] if known else None
    if operation.op in _IN_PLACE:
        for place in known:
            if left[place] == known.count(place) and sizes[place] == operation.size:
                return place
    return None
