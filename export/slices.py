"""Slices: a forward graph cut at its taps, each piece with the graph of its vector–Jacobian product.

Between slices the caller may do what it likes with a tap and its cotangent, which is where custom kernels sit.
Tensors keep the names that they have in the whole graph: running the forward slices in order fills a dictionary of
activations, running the gradient slices in reverse order turns cotangents ``cotangent.<tensor>`` into those of the
tensors before them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx

from impasto.errors import GraphError
from impasto.export.autodiff import differentiate
from impasto.export.graph import Graph, Shape
from impasto.models.layers import IMAGE


@dataclass(frozen=True, eq=False)
class Slice:
    """The part of a graph that computes one tap from what earlier slices made.

    ``forward`` maps ``inputs`` to ``outputs`` (the tap, and what later slices read) and ``residuals`` (what only the
    gradient needs). ``gradient`` maps ``cotangent.<output>`` for every output, and the residuals, to
    ``cotangent.<input>`` for every input. ``parameters`` are the graph's inputs other than the image that the slice
    reads, too; they have no cotangents, and the gradient needs some of them as residuals.
    """

    tap: str
    forward: Graph
    gradient: Graph
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    residuals: tuple[str, ...]
    parameters: tuple[str, ...]


def cotangent(tensor: str) -> str:
    """Return the name under which the cotangent of a tensor travels."""
    return f"cotangent.{tensor}"


def slice_graph(graph: Graph, taps: Sequence[str]) -> list[Slice]:
    """Cut ``graph`` at ``taps``, given in the order of the data; the last tap ends it.

    Raises `GraphError` for a tap that the graph does not compute, and as `differentiate` does.
    """
    types = graph.infer_shapes()
    producers = {output: node for node in graph.nodes for output in node.output}
    done: set[str] = set()
    pieces: list[list[onnx.NodeProto]] = []
    for tap in taps:
        if tap not in producers:
            raise GraphError(f"graph {graph.name!r} does not compute a tensor {tap!r}: it cannot be cut there")
        needed = _ancestors(producers, tap)
        nodes = [n for n in graph.nodes if n.output[0] in needed and n.output[0] not in done]
        if not nodes:
            raise GraphError(f"tap {tap!r} comes before an earlier tap of {list(taps)}: order them as the data flows")
        done.update(output for node in nodes for output in node.output)
        pieces.append(nodes)
    slices = []
    for index, (tap, nodes) in enumerate(zip(taps, pieces, strict=True)):
        later = {name for piece in pieces[index + 1 :] for node in piece for name in node.input}
        slices.append(_make_slice(graph, tap, nodes, later, types))
    return slices


def _make_slice(
    graph: Graph,
    tap: str,
    nodes: list[onnx.NodeProto],
    later: set[str],
    types: Mapping[str, tuple[np.dtype[Any], Shape]],
) -> Slice:
    made = [output for node in nodes for output in node.output]
    read = dict.fromkeys(name for node in nodes for name in node.input if name)
    outside = [name for name in read if name not in made and name not in graph.constants]
    inputs = tuple(name for name in outside if name == IMAGE or name not in graph.inputs)
    parameters = tuple(name for name in outside if name not in inputs)
    outputs = tuple(name for name in made if name == tap or name in later)

    forward = Graph(f"{graph.name}.{tap}.forward")
    for name in outside:
        forward.input(name, types[name][1], types[name][0])
    for name in read:
        if name in graph.constants:
            forward.weight(name, graph.constants[name])
    for node in nodes:
        forward.append(node)

    whole = forward.copy(f"{graph.name}.{tap}.gradient")
    seeds = {}
    for name in outputs:
        seeds[name] = whole.input(cotangent(name), types[name][1], types[name][0])
    results = differentiate(whole, seeds, inputs)
    backward = whole.nodes[len(nodes) :]
    wanted = {name for node in backward for name in node.input}
    residuals = tuple(name for name in (*outside, *made) if name in wanted)

    gradient = Graph(f"{graph.name}.{tap}.gradient")
    for name in residuals:
        gradient.input(name, types[name][1], types[name][0])
    for name in seeds.values():
        gradient.input(name, *reversed(whole.inputs[name]))
    for name, value in whole.constants.items():
        gradient.weight(name, value)
    for node in backward:
        gradient.append(node)
    for name in inputs:
        gradient.add("Identity", results[name], name=cotangent(name))
    gradient.outputs = [cotangent(name) for name in inputs]
    gradient.prune()
    forward.outputs = list(dict.fromkeys([*outputs, *(name for name in residuals if name in made)]))
    return Slice(tap, forward, gradient, inputs, outputs, residuals, parameters)


def _ancestors(producers: Mapping[str, onnx.NodeProto], tap: str) -> set[str]:
    found: set[str] = set()
    stack = [tap]
    while stack:
        name = stack.pop()
        if name in found or name not in producers:
            continue
        node = producers[name]
        found.update(node.output)
        stack.extend(node.input)
    return found
