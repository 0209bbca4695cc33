"""How much memory a graph needs to run, from the tensors that are alive at once."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping

import numpy as np
import onnx

from impasto.export.graph import Graph, attributes
from impasto.export.windows import Piece

MakeGraph = Callable[[Piece, tuple[int, int]], Graph]
"""Builds a graph of a piece for windows (h, w)."""

_ARENA = 2.4
"""How much more than what is alive ONNX Runtime holds at most; measured (`docs/decisions/0012-tiling.md`)."""

_SAMPLE = 128

_ALIASES = frozenset({"Identity", "Reshape"})
_IN_PLACE = frozenset({"Add", "Cast", "Mul", "Neg", "Relu", "Sub"})


def weight_bytes(graph: Graph) -> int:
    """Return the size of a graph's constants."""
    return sum(value.nbytes for value in graph.constants.values())


def live_bytes(graph: Graph) -> int:
    """Return the most that inputs and computed tensors, which must all have known shapes, take at once.

    A tensor lives from the node that makes it to the last one that reads it. One that is read for the last time by an
    elementwise operator is overwritten by it, as runtimes do; ``ConvTranspose`` needs every product of its kernel
    besides, before it adds them up.
    """
    types = graph.infer_shapes()

    first = {node.output[0]: node.input[0] for node in graph.nodes}

    def size(name: str) -> int:
        dtype, shape = types.get(name, (None, (None,)))
        if dtype is None or not all(isinstance(side, int) for side in shape):
            return size(first[name])
        return dtype.itemsize * int(np.prod(np.asarray(shape, np.int64)))

    owner: dict[str, str] = {}
    for node in graph.nodes:
        for output in node.output:
            owner[output] = owner.get(node.input[0], node.input[0]) if node.op_type in _ALIASES else output
    readers = Counter(owner.get(name, name) for node in graph.nodes for name in set(node.input))
    readers.update(owner.get(name, name) for name in graph.outputs)
    alive = {name: size(name) for name in graph.inputs}
    most = sum(alive.values())
    for node in graph.nodes:
        made = {name: size(name) for name in node.output if owner[name] == name}
        read = {owner.get(name, name) for name in node.input}
        done = [name for name in read if readers[name] == 1 and name in alive and name not in graph.inputs]
        reused = max((alive[name] for name in done), default=0) if node.op_type in _IN_PLACE else 0
        now = sum(alive.values()) + sum(made.values()) + _workspace(node, types)
        most = max(most, now - min(reused, sum(made.values())))
        for name in read:
            readers[name] -= 1
        alive = {name: bytes_ for name, bytes_ in {**alive, **made}.items() if readers[name] or name in graph.inputs}
    return most


def _workspace(node: onnx.NodeProto, types: Mapping[str, tuple[np.dtype[np.float32], tuple[object, ...]]]) -> int:
    if node.op_type != "ConvTranspose":
        return 0
    height, width = types[node.input[0]][1][2:]
    channels = types[node.output[0]][1][1]
    kernel = attributes(node)["kernel_shape"]
    return 4 * int(np.prod(np.asarray([channels, *kernel, height, width], np.int64)))


def bytes_per_position(graph: Graph, piece: Piece, window: tuple[int, int]) -> float:
    """Return what a graph of `impasto.export.windowed` holds, over the positions of its window.

    The sides of the window are multiples of the piece's stride.
    """
    return _ARENA * live_bytes(with_whole_interiors(graph, piece, window)) / math.prod(window)


def with_whole_interiors(graph: Graph, piece: Piece, window: tuple[int, int]) -> Graph:
    """Return a window's graph with the largest interiors there can be, by which all shapes are known."""
    fixed = graph.copy(graph.name)
    for tap in piece.taps:
        grid = [side // piece.reach[tap].stride for side in window]
        for bound, value in {"begin": np.zeros(2, np.int64), "end": np.asarray(grid)}.items():
            if fixed.inputs.pop(f"{tap}.{bound}", None):
                fixed.constants[f"{tap}.{bound}"] = value
        if f"content.{tap}" in fixed.inputs:
            dtype, shape = fixed.inputs[f"content.{tap}"]
            fixed.inputs[f"content.{tap}"] = (dtype, (*shape[:2], *grid))
    return fixed


def most_positions(piece: Piece, make: MakeGraph, memory: int | None) -> int | None:
    """Return how many positions a window may have whose graph, as ``make`` builds it, holds ``memory`` bytes."""
    if memory is None:
        return None
    sample = sample_window(piece)
    return max(1, int(memory / bytes_per_position(make(piece, sample), piece, sample)))


def sample_window(piece: Piece) -> tuple[int, int]:
    """Return a window by which memory is predicted for larger and smaller ones."""
    return _SAMPLE * piece.stride, _SAMPLE * piece.stride
