"""Graphs of a piece of a backbone (`impasto.export.windows`) that are run window by window.

All of them have the piece's source as input, (1, 3, h, w) of one window, and the calibration of the filters that they
need. Of each tap there is the interior, which is another part of every window: ``<tap>.begin`` and ``<tap>.end``, each
(2,) int64, are its first row and column in the window's own grid, and those past its last.

All floats are float32.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence

import numpy as np
from onnx import helper

from impasto.export.autodiff import differentiate
from impasto.export.forward import LayerBuilder
from impasto.export.graph import Graph, Shape
from impasto.export.objective import Objective, Statistic
from impasto.export.precision import Precision, features, network_graph
from impasto.export.terms import channel_sums, gram_product, total_of
from impasto.export.windows import Piece
from impasto.models.conventions import PixelSpace, pixel_space
from impasto.models.layers import IMAGE, Filters
from impasto.models.weights import Weights

GRADIENT = "gradient"


def window_network(
    weights: Weights, objective: Objective, pieces: Iterable[Piece], precision: Precision = "fp32"
) -> Graph:
    """Build the forward graph of all pieces, of which the other functions here take their parts.

    Taps and levels are float32; ``precision`` is the network's between. Raises as `network_graph` does.
    """
    names = dict.fromkeys(name for piece in pieces for name in piece.reach)
    space = pixel_space(objective.convention)
    return features(*network_graph(weights, list(names), precision, pooling=objective.pooling, space=space))


def statistics_window(
    network: Graph,
    piece: Piece,
    window: tuple[int, int],
    style: Mapping[str, Statistic],
    energies: Collection[str] = (),
) -> Graph:
    """Build the graph of a window (h, w) to what adds up to a picture's statistics, and to the levels.

    Of the style taps that lie in the piece it gives ``style.<tap>``, F·Fᵀ over the interior, (C, C), and, where the
    statistic is the covariance, ``style.<tap>.sum``, that of each channel, (C, 1). Of the taps of ``energies`` it gives
    ``energy.<tap>``, ΣF², (). Levels are outputs under their names, halo and all.
    """
    statistics = {tap: style[tap] for tap in piece.taps if tap in style}
    measured = [tap for tap in piece.taps if tap in energies]
    graph = _part(network, piece, window, [*piece.levels, *statistics, *measured])
    interiors = _interiors(graph, dict.fromkeys([*statistics, *measured]))
    outputs = list(piece.levels)
    for tap, statistic in statistics.items():
        inner, channels = interiors[tap]
        outputs.append(graph.add("Identity", gram_product(graph, inner, channels), name=f"style.{tap}"))
        if statistic == "covariance":
            outputs.append(graph.add("Identity", channel_sums(graph, inner, channels), name=f"style.{tap}.sum"))
    for tap in measured:
        total = total_of(graph, interiors[tap][0], 4, squared=True)
        outputs.append(graph.add("Identity", total, name=f"energy.{tap}"))
    graph.outputs = outputs
    return graph


def values_window(
    network: Graph, piece: Piece, window: tuple[int, int], taps: Collection[str], *, levels: bool = False
) -> Graph:
    """Build the graph of a window (h, w) to ``content.<tap>``, the interior of each of ``taps`` in the piece.

    With ``levels`` these are outputs too, as of `statistics_window`.
    """
    wanted = [tap for tap in piece.taps if tap in taps]
    made = list(piece.levels) if levels else []
    graph = _part(network, piece, window, [*made, *wanted])
    for tap, (inner, _) in _interiors(graph, wanted).items():
        graph.add("Identity", inner, name=f"content.{tap}")
    graph.outputs = [*made, *(f"content.{tap}" for tap in wanted)]
    return graph


def gradient_window(network: Graph, piece: Piece, window: tuple[int, int], objective: Objective) -> Graph:
    """Build the graph of a window (h, w) to ``gradient``, its part of that of the source, (1, 3, h, w).

    ==========================  ============  =========================================================
    input                       shape         meaning
    ==========================  ============  =========================================================
    ``style.<tap>.factor``      (C, C)        S of the cotangent S·F + b of the style term
    ``style.<tap>.shift``       (C, 1)        b, of taps whose statistic is the covariance
    ``content.<tap>``           (1, C, h, w)  content target P on the interior
    ``content.<tap>.factor``    ()            s of the cotangent s·(F - P) of the content term
    ``cotangent.<level>``       (1, 3, h, w)  of the whole window, zero outside of the interior
    ==========================  ============  =========================================================

    Cotangents of taps are zero outside of the interior. Beside the gradient there is ``squares.<tap>``, Σ(F - P)² over
    the interior, for each content tap. Raises as `differentiate` does.
    """
    graph = _part(network, piece, window, [*piece.reach])
    types = graph.infer_shapes()
    seeds = {}
    outputs = []
    for tap, (inner, channels) in _interiors(graph, piece.taps).items():
        parts = []
        if tap in objective.style:
            flat = graph.add("Reshape", inner, graph.ints(channels, -1))
            operands = [graph.input(f"style.{tap}.factor", (channels, channels)), flat]
            if objective.statistic(tap) == "covariance":
                operands.append(graph.input(f"style.{tap}.shift", (channels, 1)))
            parts.append(graph.add("Reshape", graph.add("Gemm", *operands), graph.add("Shape", inner)))
        if tap in objective.content:
            target = graph.input(f"content.{tap}", (1, channels, f"{tap}.h", f"{tap}.w"))
            difference = graph.add("Sub", inner, target)
            squares = total_of(graph, difference, 4, squared=True)
            outputs.append(graph.add("Identity", squares, name=f"squares.{tap}"))
            parts.append(graph.add("Mul", difference, graph.input(f"content.{tap}.factor", ())))
        seed = parts[0] if len(parts) == 1 else graph.add("Add", *parts)
        seeds[tap] = _surrounded(graph, seed, tap, types[tap][1])
    for level in piece.levels:
        seed = graph.input(f"cotangent.{level}", types[level][1])
        seeds[level] = graph.add("Add", seeds[level], seed) if level in seeds else seed
    gradient = differentiate(graph, seeds, [piece.source])[piece.source]
    graph.outputs = [graph.add("Identity", gradient, name=GRADIENT), *outputs]
    graph.prune()
    return graph


def response_network(weights: Weights, taps: Iterable[str], space: PixelSpace) -> Graph:
    """Build the graph of every level and, as ``response.<layer>``, of the responses of filters that the taps need.

    Responses are neither scaled nor thresholded. Raises `MissingTapError` for a tap that the weights do not reach.
    """
    graph = Graph(f"{weights.backbone.name}.responses")
    graph.input(IMAGE, (1, 3, "height", "width"))
    needed = weights.backbone.needed(weights.require(tap) for tap in taps)
    builder = LayerBuilder(graph, weights, [layer.name for layer in needed if isinstance(layer, Filters)], space=space)
    for layer in builder.layers:
        if isinstance(layer, Filters):
            graph.add("Identity", builder.respond(layer), name=f"response.{layer.name}")
        else:
            builder.append(layer)
    return graph


def calibration_window(network: Graph, piece: Piece, window: tuple[int, int]) -> Graph:
    """Build the graph of a window (h, w) to the moments of every response of the piece's taps, and to the levels.

    ``network`` is of `response_network`; taps are names of filters. ``mean.<layer>``, (C,), is the mean μ over the
    interior, ``spread.<layer>``, (C,), is Σ(x - μ)².
    """
    outputs = list(piece.levels)
    graph = _part(network, piece, window, [*outputs, *(f"response.{name}" for name in piece.taps)])
    for name in piece.taps:
        inner = _interior(graph, f"response.{name}", name)
        mean = graph.add("ReduceMean", graph.add("ReduceMean", inner, graph.ints(3)), graph.ints(2))
        centred = graph.add("Sub", inner, mean)
        rows = graph.add("ReduceSumSquare", centred, graph.ints(3))
        spread = graph.add("ReduceSum", rows, graph.ints(2))
        outputs.append(graph.add("Reshape", mean, graph.ints(-1), name=f"mean.{name}"))
        outputs.append(graph.add("Reshape", spread, graph.ints(-1), name=f"spread.{name}"))
    graph.outputs = outputs
    return graph


def _part(network: Graph, piece: Piece, window: tuple[int, int], outputs: Sequence[str]) -> Graph:
    """Return the part of a graph between the piece's source, for windows of one size, and ``outputs``."""
    # Of a level that is not float32 within the network, `features` makes the output; what reads it reads another name.
    lowered = f"{piece.source}.network"
    needed, nodes = set(outputs), []
    for node in reversed(network.nodes):
        if needed.intersection(node.output) and lowered not in node.output:
            nodes.append(node)
            needed.update(name for name in node.input if name and name != piece.source)
    part = Graph(f"{network.name}.{piece.source}", opset=network.opset)
    part.input(piece.source, (1, 3, *window))
    if lowered in needed:
        part.add(
            "Cast", piece.source, name=lowered, to=helper.np_dtype_to_tensor_dtype(network.infer_shapes()[lowered][0])
        )
    for name, (dtype, shape) in network.inputs.items():
        if name in needed and name != IMAGE:
            part.input(name, shape, dtype)
    for name, value in network.constants.items():
        if name in needed:
            part.weight(name, value)
    for node in reversed(nodes):
        part.append(node)
    return part


def _interiors(graph: Graph, taps: Iterable[str]) -> dict[str, tuple[str, int]]:
    """Append the interior of each tap; return it and its number of channels."""
    types = graph.infer_shapes()
    found = {}
    for tap in taps:
        channels = types[tap][1][1]
        assert isinstance(channels, int)
        found[tap] = _interior(graph, tap, tap), channels
    return found


def _interior(graph: Graph, x: str, tap: str) -> str:
    begin, end = (graph.input(f"{tap}.{bound}", (2,), np.int64) for bound in ("begin", "end"))
    return graph.add("Slice", x, begin, end, graph.ints(2, 3))


def _surrounded(graph: Graph, x: str, tap: str, shape: Shape) -> str:
    """Surround what is as large as a tap's interior by zeros, to the shape of the tap."""
    none = graph.ints(0, 0)
    sides = [side for side in shape if isinstance(side, int)]
    after = graph.add("Sub", graph.ints(*sides[2:]), f"{tap}.end")
    padded = graph.add("Pad", x, graph.add("Concat", none, f"{tap}.begin", none, after, axis=0))
    # Changes nothing, but tells runtimes the shape of all that comes after.
    return graph.add("Reshape", padded, graph.ints(*sides))
