"""How much memory a backend takes for one picture's objective, by its plan, from graphs that are not built.

What is alive at once follows from the graphs (`impasto.runtime.execution`) or, for PyTorch, from what autograd keeps.
How much more a runtime holds does not: these few factors were measured, once for each backend, and are the same for all
presets, plans and sizes (`docs/decisions/0014-memory.md`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import cast

from impasto.export.forward import forward_graph
from impasto.export.fused import fused_graph
from impasto.export.graph import Graph
from impasto.export.objective import Objective
from impasto.export.precision import Precision
from impasto.export.slices import slice_graph
from impasto.export.statistics import statistics_graph
from impasto.export.windowed import gradient_window, statistics_window, values_window, window_network
from impasto.models.conventions import pixel_space
from impasto.models.layers import Conv, Filters, Pool, Relu
from impasto.models.weights import Weights
from impasto.runtime.backends.protocol import Backend, Plan
from impasto.runtime.execution import held_bytes
from impasto.runtime.plans.memory import weight_bytes, with_whole_interiors
from impasto.runtime.plans.tiling import TILED_MEMORY, Tiling, array_bytes, kept_content, tile

_MEASURING = 0.25
"""Of the plan ``tiled``'s memory, what a session takes that measures: its windows would fill half with their estimate,
which is twice what they need."""


@dataclass(frozen=True)
class Runtime:
    """What was measured of a backend.

    ``base``: bytes that it takes whatever it runs (threads, kernels, what its allocator does not give back).
    ``weights``: how many times the weights of the fused graph it holds, packed, turned over, and as read, by
    precision. ``painting`` and ``measuring``: how much of the tensors alive it holds, in graphs that are run again and
    again, and once; ``sliced``: in those of the plan ``sliced``, each of which holds its inputs and outputs apart.
    ``plain``: it frees what is dead (see `held_bytes`).
    """

    base: int
    weights: Mapping[str, float]
    painting: float
    measuring: float
    plain: bool
    sliced: float


_RUNTIMES = {
    "onnxruntime": Runtime(80_000_000, {"fp32": 4.0}, 1.06, 1.0, plain=False, sliced=1.06),
    "openvino": Runtime(110_000_000, {"fp32": 6.0, "bf16": 4.0, "fp16": 4.0}, 1.15, 1.4, plain=True, sliced=2.75),
    "torch": Runtime(120_000_000, {"fp32": 1.0, "fp64": 2.0}, 1.0, 1.0, plain=True, sliced=1.0),
}


@dataclass(frozen=True)
class Footprint:
    """Bytes that an objective takes at one size, by what takes them.

    ``weights`` are the backend's copies, ``targets`` what the terms compare with, ``session`` what graphs hold while
    the picture is painted, ``measuring`` what they hold, for a moment, while targets are measured. ``windows`` is the
    number of windows of the plan ``tiled``, 0 for other plans; ``overhead`` how many times their arithmetic exceeds
    that of one window. ``arrays`` are that plan's that are as large as the picture, wherever they are, and ``band`` are
    the pixels that a row of its windows covers.
    """

    weights: int
    targets: int
    session: int
    measuring: int
    windows: int = 0
    overhead: float = 1.0
    arrays: int = 0
    band: int = 0


def is_known(backend: Backend) -> bool:
    """Tell whether the backend's memory can be foretold: on the CPU; a GPU's is another matter."""
    return backend.name in _RUNTIMES


def footprint(
    backend: Backend,
    weights: Weights,
    objective: Objective,
    shape: tuple[int, int],
    style_shape: tuple[int, int],
    plan: Plan,
    memory: int | None = None,
) -> Footprint:
    """Return what an objective with canonical tap names takes for a picture of (H, W) and a style picture.

    ``memory`` is the plan ``tiled``'s, None for `TILED_MEMORY`. Raises `LimitError` where the smallest tiles need more,
    `ImageError` for a picture that is too small for a tap.
    """
    runtime = _RUNTIMES[backend.name]
    precision = cast("Precision", "fp32" if backend.precision in ("tf32", "fp64") else backend.precision)
    scale = 2 if backend.precision == "fp64" else 1
    plain = runtime.plain
    if plan == "tiled":
        return _tiled(runtime, weights, objective, shape, precision, memory or TILED_MEMORY)
    net = weights.backbone
    content = sum(_bytes(weights, tap, shape) for tap in objective.content)
    grams = 4 * sum(net.channels(tap) ** 2 for tap in objective.style)
    packed = runtime.base + runtime.weights[backend.precision] * _weight_bytes(weights, objective)
    largest = shape if math.prod(shape) >= math.prod(style_shape) else style_shape
    if backend.name == "torch":
        session = scale * _saved(weights, objective, shape)
        measuring = _measured_by_torch(weights, objective, largest) * scale
    else:
        if plan == "fused":
            session = int(runtime.painting * held_bytes(fused_graph(objective, weights, shape, precision), plain=plain))
        else:
            held = sum(held_bytes(graph, plain=plain) for graph in _slices(weights, objective, shape))
            session = int(runtime.sliced * held) + _between(weights, objective, shape)
        held = held_bytes(_statistics(weights, objective, largest), plain=True)
        # Outputs are copied from what measured them.
        measuring = int(runtime.measuring * held) + (content if plain else 0)
    return Footprint(int(packed), content + grams, session, measuring)


def _tiled(
    runtime: Runtime,
    weights: Weights,
    objective: Objective,
    shape: tuple[int, int],
    precision: Precision,
    memory: int,
) -> Footprint:
    """Return what windows take: they have the same arrays and the same room as `GraphBackend` gives them."""
    arrays = array_bytes(weights, objective, shape)
    in_memory = arrays if arrays <= memory // 2 else 0
    tiling = tile(weights, objective, shape, memory - in_memory, precision)
    graphs = _window_graphs(weights, objective, shape, tiling, precision)
    held = sum(held_bytes(graph, plain=runtime.plain) for graph in graphs)
    copies = runtime.weights[precision] * sum(weight_bytes(graph) for graph in graphs) / 2
    kept = sum(_bytes(weights, tap, shape) for tap in kept_content(weights, objective, shape))
    grams = 4 * sum(weights.backbone.channels(tap) ** 2 for tap in objective.style)
    return Footprint(
        int(runtime.base + copies),
        grams + (kept if in_memory else 0),
        int(runtime.painting * held) + in_memory,
        int(_MEASURING * memory),
        tiling.count,
        tiling.overhead,
        arrays + kept,
        max(each.window[0] * each.shape[1] for each in tiling.layouts),
    )


def _window_graphs(
    weights: Weights, objective: Objective, shape: tuple[int, int], tiling: Tiling, precision: Precision
) -> list[Graph]:
    """Return the graphs that `TiledPlan.compile` compiles, for the windows with the largest interiors."""
    network = window_network(weights, objective, [each.piece for each in tiling.layouts], precision)
    style = {tap: objective.statistic(tap) for tap in objective.style}
    again = objective.content.keys() - kept_content(weights, objective, shape)
    graphs = []
    for each in tiling.layouts:
        piece, window = each.piece, each.window
        made = [gradient_window(network, piece, window, objective)]
        if piece.levels or not style.keys().isdisjoint(piece.taps):
            made.append(statistics_window(network, piece, window, style))
        if not again.isdisjoint(piece.taps):
            made.append(values_window(network, piece, window, again))
        graphs += [with_whole_interiors(graph, piece, window) for graph in made]
    return graphs


def _bytes(weights: Weights, tap: str, shape: tuple[int, int]) -> int:
    """Return the size of a tap's activations in float32."""
    return 4 * weights.backbone.channels(tap) * math.prod(weights.backbone.grid(tap, shape))


def _weight_bytes(weights: Weights, objective: Objective) -> int:
    needed = weights.backbone.needed(objective.taps)
    return sum(weights.tensors[name].nbytes for layer in needed for name in layer.tensors())


def _statistics(weights: Weights, objective: Objective, shape: tuple[int, int]) -> Graph:
    statistics = {tap: objective.statistic(tap) for tap in objective.style}
    return statistics_graph(
        weights,
        tuple(objective.content),
        statistics,
        pooling=objective.pooling,
        space=pixel_space(objective.convention),
        shape=shape,
    )


def _slices(weights: Weights, objective: Objective, shape: tuple[int, int]) -> list[Graph]:
    """Return every graph of the plan ``sliced``: each has a session, which keeps its memory."""
    space = pixel_space(objective.convention)
    graph = forward_graph(weights, objective.taps, pooling=objective.pooling, space=space, shape=shape)
    pieces = slice_graph(graph, graph.outputs)
    return [each for piece in pieces for each in (piece.forward, piece.gradient)]


def _between(weights: Weights, objective: Objective, shape: tuple[int, int]) -> int:
    """Return what the kernels between slices hold: a cotangent of each tap, and as much again while they are added."""
    sizes = [_bytes(weights, tap, shape) for tap in objective.taps]
    return 2 * sum(sizes) + max(sizes)


def _saved(weights: Weights, objective: Objective, shape: tuple[int, int]) -> int:
    """Return what PyTorch holds as it turns back: what layers saved, the cotangents of all terms, and one to add.

    Autograd saves a ReLU's output and not its input; of a maximum pooling its output and, of 8 bytes, where each
    maximum was; what terms read is saved as well. The terms came last, so their cotangents are computed first, and wait
    for those of the layers.
    """
    held = dict.fromkeys(objective.taps, 1.0)
    for layer in weights.backbone.needed(objective.taps):
        match layer:
            case Relu():
                held[layer.name] = 1.0
            case Pool():
                held[layer.name] = 3.0 if objective.pooling == "max" else 1.0
            case Conv() | Filters():
                held.setdefault(layer.name, 0.0)
            case _:
                held[layer.name] = 1.0
    layers = sum(share * _bytes(weights, name, shape) for name, share in held.items())
    centred = [tap for tap in objective.style if objective.statistic(tap) == "covariance"]
    read_twice = (*objective.style, *centred, *objective.content, *objective.content)
    terms = sum(_bytes(weights, tap, shape) for tap in read_twice)
    widest = max(_bytes(weights, tap, shape) for tap in held)
    return int(layers + terms + widest)


def _measured_by_torch(weights: Weights, objective: Objective, shape: tuple[int, int]) -> int:
    """Return what PyTorch holds as it measures: all taps, and two of the widest layers."""
    sizes = [_bytes(weights, layer.name, shape) for layer in weights.backbone.needed(objective.taps)]
    return sum(_bytes(weights, tap, shape) for tap in objective.taps) + 2 * max(sizes)
