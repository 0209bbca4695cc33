"""How a problem is cut into windows, and how much memory and arithmetic that takes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from impasto.errors import LimitError
from impasto.export.objective import Objective
from impasto.export.precision import Precision
from impasto.export.windowed import gradient_window, statistics_window, values_window, window_network
from impasto.export.windows import Layout, Piece, layout, pieces
from impasto.models.layers import IMAGE
from impasto.models.weights import Weights
from impasto.runtime.plans.memory import bytes_per_position, sample_window, weight_bytes

TILED_MEMORY = 1 << 30
"""Bytes that the plan ``tiled`` takes for windows and arrays where nothing is said."""

KEPT = 48
"""Bytes a pixel up to which content targets are kept; larger ones are computed again at every evaluation.

A VGG's relu4_2 has 32 and would cost a quarter more time, the filter bank's have 436 and cost a tenth
(`docs/decisions/0012-tiling.md`).
"""

_WEIGHTS = 6
"""How many times its weights ONNX Runtime holds: as read, packed, and turned over for the gradient; measured."""


@dataclass(frozen=True, eq=False)
class Tiling:
    """Layouts of a problem's pieces, in the order of the data.

    ``window_bytes`` is what their sessions are predicted to hold.
    """

    layouts: tuple[Layout, ...]
    window_bytes: int

    @property
    def overhead(self) -> float:
        """How many times the picture's positions the windows read, by all pieces together; 1 for a single window."""
        return sum(each.pixels for each in self.layouts) / sum(math.prod(each.shape) for each in self.layouts)

    @property
    def count(self) -> int:
        """The number of windows of all pieces."""
        return sum(each.count for each in self.layouts)


def kept_content(weights: Weights, objective: Objective, shape: tuple[int, int]) -> tuple[str, ...]:
    """Return the content taps whose targets a tiled plan keeps for a picture of (H, W): all or none of them."""
    net = weights.backbone
    size = 4 * sum(net.channels(tap) * math.prod(net.grid(tap, shape)) for tap in objective.content)
    return tuple(objective.content) if size <= KEPT * math.prod(shape) else ()


def array_bytes(weights: Weights, objective: Objective, shape: tuple[int, int]) -> int:
    """Return the size of a tiled plan's arrays that are as large as the picture, of (H, W): gradients and levels."""
    net = weights.backbone
    sources = [part.source for part in pieces(net, objective.taps)]
    sizes = [math.prod(shape if source == IMAGE else net.grid(source, shape)) for source in sources]
    return 12 * (sum(sizes) + sum(sizes[1:]))


def tile(
    weights: Weights,
    objective: Objective,
    shape: tuple[int, int],
    memory: int | None = None,
    precision: Precision = "fp32",
) -> Tiling:
    """Cut a problem for a picture of (H, W) so that its sessions hold ``memory`` bytes at most; None: one window each.

    Every session has the same share, except those that need less. Raises `LimitError` where the smallest windows need
    more.
    """
    parts = pieces(weights.backbone, objective.taps)
    costs = _costs(weights, objective, shape, parts, precision)

    def cut(share: float) -> Tiling:
        most = {part.source: max(1, int(share / max(costs[part.source].each))) for part in parts}
        return _tiling(weights, parts, shape, costs, most)

    whole = _tiling(weights, parts, shape, costs, None)
    if memory is None or whole.window_bytes <= memory:
        return whole
    smallest = cut(1.0)
    if smallest.window_bytes > memory:
        raise LimitError(
            f"the smallest tiles of {shape[1]}x{shape[0]} px need {smallest.window_bytes} bytes and the limit is "
            f"{memory}: raise --memory-limit, or take a preset with shallower taps"
        )
    found, low, high = smallest, 0.0, float(memory)
    while high - low > memory / 100:
        share = (low + high) / 2
        tried = cut(share)
        if tried.window_bytes <= memory:
            found, low = tried, share
        else:
            high = share
    return found


@dataclass(frozen=True)
class _Cost:
    """Bytes a position of the source that each session of a piece holds, and those of the piece's weights."""

    each: tuple[float, ...]
    weights: int


def _tiling(
    weights: Weights,
    parts: tuple[Piece, ...],
    shape: tuple[int, int],
    costs: Mapping[str, _Cost],
    most: Mapping[str, int] | None,
) -> Tiling:
    layouts = tuple(layout(weights.backbone, part, shape, most[part.source] if most else None) for part in parts)
    held = sum(
        math.prod(each.window) * sum(costs[each.piece.source].each) + costs[each.piece.source].weights
        for each in layouts
    )
    return Tiling(layouts, int(held))


def _costs(
    weights: Weights,
    objective: Objective,
    shape: tuple[int, int],
    parts: tuple[Piece, ...],
    precision: Precision,
) -> dict[str, _Cost]:
    network = window_network(weights, objective, parts, precision)
    style = {tap: objective.statistic(tap) for tap in objective.style}
    again = objective.content.keys() - kept_content(weights, objective, shape)
    costs = {}
    for part in parts:
        size = sample_window(part)
        graphs = [gradient_window(network, part, size, objective)]
        if part.levels or not style.keys().isdisjoint(part.taps):
            graphs.append(statistics_window(network, part, size, style))
        if not again.isdisjoint(part.taps):
            graphs.append(values_window(network, part, size, again))
        each = tuple(bytes_per_position(graph, part, size) for graph in graphs)
        costs[part.source] = _Cost(each, _WEIGHTS * sum(weight_bytes(graph) for graph in graphs))
    return costs
