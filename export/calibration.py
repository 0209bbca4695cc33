"""The graph that calibrates filters: a style picture gives the scale and the threshold of each."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from impasto.export.forward import LayerBuilder
from impasto.export.graph import Graph
from impasto.models.conventions import PixelSpace, smallest_deviation
from impasto.models.layers import IMAGE, Filters
from impasto.models.weights import Weights


def calibration_graph(weights: Weights, taps: Sequence[str], space: PixelSpace | None = None) -> Graph:
    """Build the graph from ``image``, the style picture, (1, 3, H, W), to ``<layer>.scale`` and ``<layer>.threshold``.

    There is a pair, each (C,), for every `Filters` layer that a tap needs; with none of them the graph has no outputs.
    Over the picture's positions a response has mean μ and standard deviation σ: scale = 1/σ, threshold = μ/σ + offset.
    ``space`` is the image's, by default the weights'. Raises `MissingTapError` for a tap that the weights do not reach.
    """
    graph = Graph(f"{weights.backbone.name}.calibration")
    graph.input(IMAGE, (1, 3, "height", "width"))
    needed = weights.backbone.needed(weights.require(tap) for tap in taps)
    filters = [layer.name for layer in needed if isinstance(layer, Filters)]
    builder = LayerBuilder(graph, weights, filters, space=space)
    least = graph.literal(smallest_deviation(weights.convention), np.float32)
    for layer in builder.layers:
        if isinstance(layer, Filters):
            response = builder.respond(layer)
            mean = _mean(graph, response)
            centred = graph.add("Sub", response, mean)
            deviation = graph.add("Sqrt", _mean(graph, graph.add("Mul", centred, centred)))
            scale = graph.add("Reciprocal", graph.add("Max", deviation, least))
            level = graph.add("Reshape", graph.add("Mul", mean, scale), graph.ints(-1))
            names = layer.calibration()
            graph.add("Reshape", scale, graph.ints(-1), name=names[0])
            graph.add("Add", level, f"{layer.name}.offset", name=names[1])
            graph.outputs += names
        else:
            builder.append(layer)
    graph.prune()
    return graph


def _mean(graph: Graph, x: str) -> str:
    """Append the mean over the positions of each channel, one axis at a time, which keeps float32 exact enough."""
    return graph.add("ReduceMean", graph.add("ReduceMean", x, graph.ints(3)), graph.ints(2))
