"""The graph that measures targets: activations for content, sums of products for style."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from impasto.export.forward import Pooling
from impasto.export.graph import Graph
from impasto.export.objective import Statistic
from impasto.export.precision import Precision, features, network_graph
from impasto.export.terms import channel_sums, gram_product
from impasto.models.conventions import PixelSpace
from impasto.models.weights import Weights


def statistics_graph(
    weights: Weights,
    content: Sequence[str],
    style: Mapping[str, Statistic],
    *,
    pooling: Pooling = "max",
    space: PixelSpace | None = None,
    shape: tuple[int, int] | None = None,
    precision: Precision = "fp32",
) -> Graph:
    """Build the graph from ``image`` to ``content.<tap>``, (1, C, h, w), and ``style.<tap>``, (C, C).

    The latter is F·Fᵀ, over nothing: divide by the number of positions. A style tap whose statistic is the covariance
    has its channels' sums beside it, ``style.<tap>.sum``, (C, 1). All float32; ``precision`` is the network's between.
    Raises as `network_graph` does.
    """
    network, factors = network_graph(weights, [*content, *style], precision, pooling=pooling, space=space, shape=shape)
    graph = features(network, factors)
    outputs = [graph.add("Identity", tap, name=f"content.{tap}") for tap in content]
    for tap, statistic in style.items():
        channels = weights.backbone.channels(tap)
        outputs.append(graph.add("Identity", gram_product(graph, tap, channels), name=f"style.{tap}"))
        if statistic == "covariance":
            outputs.append(graph.add("Identity", channel_sums(graph, tap, channels), name=f"style.{tap}.sum"))
    graph.outputs = outputs
    return graph
