"""Slices: a forward graph cut at its taps, each piece with the graph of its vector–Jacobian product.

Between slices the caller may do what it likes with a tap and its cotangent, which is where custom kernels sit.
Tensors keep the names that they have in the whole graph: running the forward slices in order fills a dictionary of
activations, running the gradient slices in reverse order turns cotangents ``cotangent.<tensor>`` into those of the
tensors before them.

In fp16 and bf16 (`impasto.export.precision`) what travels between slices, taps, residuals and cotangents, is of that
type; the image, its cotangent and the parameters are float32.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx

from impasto.errors import GraphError
from impasto.export.autodiff import differentiate
from impasto.export.forward import Pooling
from impasto.export.graph import Graph, Shape
from impasto.export.precision import Precision, network_graph
from impasto.models.conventions import PixelSpace
from impasto.models.layers import IMAGE
from impasto.models.weights import Weights


@dataclass(frozen=True, eq=False)
class Slice:
    """The part of a graph that computes one tap from what earlier slices made.

    ``forward`` maps ``inputs`` to ``outputs`` (the tap, and what later slices read) and ``residuals`` (what only the
    gradient needs). ``gradient`` maps ``cotangent.<output>`` for every output, and the residuals, to
    ``cotangent.<input>`` for every input. ``parameters`` are the graph's inputs other than the image that the slice
    reads, too; they have no cotangents, and the gradient needs some of them as residuals.

    ``masked`` tells that ``cotangent.<tap>`` must arrive as zero where the tap, a ReLU, is not positive: whoever adds a
    term's part to it can mask it in the same pass, and the gradient graph need not.
    """

    tap: str
    forward: Graph
    gradient: Graph
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    residuals: tuple[str, ...]
    parameters: tuple[str, ...]
    masked: bool = False


def cotangent(tensor: str) -> str:
    """Return the name under which the cotangent of a tensor travels."""
    return f"cotangent.{tensor}"


def sliced(
    weights: Weights,
    taps: Sequence[str],
    precision: Precision = "fp32",
    *,
    pooling: Pooling = "max",
    space: PixelSpace | None = None,
    shape: tuple[int, int] | None = None,
    masked: bool = False,
) -> tuple[list[Slice], dict[str, float]]:
    """Return the slices of a network at a precision, in the order of the data, and the factor s of each tap.

    A tap is F' = s·F, of the precision's type, with F the activation that targets are measured by; the cotangent of F'
    is that of F over s. s is 1 but in fp16, where cotangents also need a scale of the caller's, which the image's
    cotangent then has. ``masked`` is that of `slice_graph`. Raises as `network_graph` and `differentiate` do.
    """
    graph, factors = network_graph(weights, taps, precision, pooling=pooling, space=space, shape=shape)
    return slice_graph(graph, graph.outputs, masked=masked), factors


def slice_graph(graph: Graph, taps: Sequence[str], *, masked: bool = False) -> list[Slice]:
    """Cut ``graph`` at ``taps``, given in the order of the data; the last tap ends it.

    With ``masked``, the cotangents of taps that are ReLUs are to arrive masked (`Slice.masked`).

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
        slices.append(_make_slice(graph, tap, nodes, later, types, masked))
    return slices


def _make_slice(
    graph: Graph,
    tap: str,
    nodes: list[onnx.NodeProto],
    later: set[str],
    types: Mapping[str, tuple[np.dtype[Any], Shape]],
    masked: bool,
) -> Slice:
    made = [output for node in nodes for output in node.output]
    read = dict.fromkeys(name for node in nodes for name in node.input if name)
    outside = [name for name in read if name not in made and name not in graph.constants]
    inputs = tuple(name for name in outside if name == IMAGE or name not in graph.inputs)
    parameters = tuple(name for name in outside if name not in inputs)
    outputs = tuple(name for name in made if name == tap or name in later)

    forward = Graph(f"{graph.name}.{tap}.forward", opset=graph.opset)
    for name in outside:
        forward.input(name, types[name][1], types[name][0])
    for name in read:
        if name in graph.constants:
            forward.weight(name, graph.constants[name])
    for node in nodes:
        forward.append(node)

    whole = forward.copy(f"{graph.name}.{tap}.gradient")
    before = nodes[-1].input[0]
    masked = masked and nodes[-1].op_type == "Relu" and before in made and before not in outputs
    seeds = {}
    for name in outputs:
        # A masked cotangent of the ReLU's output is the cotangent of its input.
        seed = whole.input(cotangent(name), types[name][1], types[name][0])
        seeds[before if masked and name == tap else name] = seed
    results = differentiate(whole, seeds, inputs)
    backward = whole.nodes[len(nodes) :]
    wanted = {name for node in backward for name in node.input}
    residuals = tuple(name for name in (*outside, *made) if name in wanted)

    gradient = Graph(f"{graph.name}.{tap}.gradient", opset=graph.opset)
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
    return Slice(tap, forward, gradient, inputs, outputs, residuals, parameters, masked)


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
