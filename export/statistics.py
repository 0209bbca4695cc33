"""The graph that measures targets: activations for content, Gram matrices for style."""

from __future__ import annotations

from collections.abc import Sequence

from impasto.export.forward import Pooling, forward_graph
from impasto.export.graph import Graph
from impasto.export.terms import gram_product
from impasto.models.conventions import PixelSpace
from impasto.models.weights import Weights


def statistics_graph(
    weights: Weights,
    content: Sequence[str],
    style: Sequence[str],
    *,
    pooling: Pooling = "max",
    space: PixelSpace | None = None,
    shape: tuple[int, int] | None = None,
) -> Graph:
    """Build the graph from ``image`` to ``content.<tap>``, (1, C, h, w), and ``style.<tap>``, (C, C).

    The latter is F·Fᵀ, over nothing: divide by the number of positions. Raises as `forward_graph` does.
    """
    graph = forward_graph(weights, [*content, *style], pooling=pooling, space=space, shape=shape)
    outputs = [graph.add("Identity", tap, name=f"content.{tap}") for tap in content]
    for tap in style:
        product = gram_product(graph, tap, weights.backbone.channels(tap))
        outputs.append(graph.add("Identity", product, name=f"style.{tap}"))
    graph.outputs = outputs
    return graph
