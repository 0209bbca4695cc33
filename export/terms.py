"""The terms of an objective as ONNX nodes: content, style and total variation, each weighted by inputs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from impasto.export.graph import Dim, Graph
from impasto.export.objective import Statistic, TvForm
from impasto.models.layers import IMAGE


def content_term(graph: Graph, tap: str, shape: Sequence[Dim]) -> str:
    """Append ``c·Σ(F - P)²`` of a tap of that shape, with inputs for c and P; return ``loss.content.<tap>``."""
    dims = [d if d is not None else f"{tap}.{side}" for d, side in zip(shape, "nchw", strict=True)]
    target = graph.input(f"content.{tap}", dims)
    weight = graph.input(f"content.{tap}.weight", ())
    squares = total_of(graph, graph.add("Sub", tap, target), 4, squared=True)
    return graph.add("Mul", squares, weight, name=f"loss.content.{tap}")


def gram_term(graph: Graph, tap: str, channels: int) -> str:
    """Append ``c·Σ(F·Fᵀ/N - A)²`` with inputs for c, 1/N and A; return ``loss.style.<tap>``."""
    scale = graph.input(f"style.{tap}.scale", ())
    gram = graph.add("Mul", gram_product(graph, tap, channels), scale)
    return _distance(graph, f"style.{tap}", gram, (channels, channels), name=f"loss.style.{tap}")


def covariance_term(graph: Graph, tap: str, channels: int) -> str:
    """Append ``c·Σ(F·Fᵀ/N - μμᵀ - A)² + d·Σ(μ - m)²`` with inputs for c, d, 1/N, A and m; return ``loss.style.<tap>``.

    μ is the mean of F over its N positions.
    """
    scale = graph.input(f"style.{tap}.scale", ())
    mean = graph.add("Mul", channel_sums(graph, tap, channels), scale)
    gram = graph.add("Mul", gram_product(graph, tap, channels), scale)
    covariance = graph.add("Sub", gram, graph.add("Gemm", mean, mean, transB=1))
    spread = _distance(graph, f"style.{tap}", covariance, (channels, channels))
    level = _distance(graph, f"style.{tap}.mean", mean, (channels, 1))
    return graph.add("Add", spread, level, name=f"loss.style.{tap}")


STYLE_TERMS: Mapping[Statistic, Callable[[Graph, str, int], str]] = {"gram": gram_term, "covariance": covariance_term}


def total_variation(graph: Graph, form: TvForm, image: str = IMAGE) -> str:
    """Append the weighted total variation of the image and return ``loss.tv``.

    Differences across a single row or column, where the graph's shape says so, are left out: OpenVINO takes no
    tensor without elements.
    """
    weight = graph.input("tv.weight", ())
    lengths = graph.inputs[image][1] if image in graph.inputs else (None, None, None, None)
    axes = [axis for axis in (2, 3) if lengths[axis] != 1]
    if not axes or (form == "power" and len(axes) < 2):
        return graph.add("Mul", weight, graph.literal(0.0, np.float32), name="loss.tv")
    if form == "power":
        squares = [
            graph.add("Mul", d, d) for d in (_difference(graph, image, 2, cut=3), _difference(graph, image, 3, cut=2))
        ]
        power = graph.add("Pow", graph.add("Add", *squares), graph.literal(1.25, np.float32))
        return graph.add("Mul", total_of(graph, power, 4), weight, name="loss.tv")
    sums = []
    for axis in axes:
        difference = _difference(graph, image, axis)
        if form == "squared":
            sums.append(total_of(graph, difference, 4, squared=True))
        else:
            sums.append(total_of(graph, graph.add("Abs", difference), 4))
    total = graph.add("Add", *sums) if len(sums) == 2 else sums[0]
    if form == "squared":
        total = graph.add("Mul", total, graph.literal(0.5, np.float32))
    return graph.add("Mul", total, weight, name="loss.tv")


def gram_product(graph: Graph, tap: str, channels: int) -> str:
    """Append F·Fᵀ, (C, C), of a tap (1, C, h, w)."""
    features = graph.add("Reshape", tap, graph.ints(channels, -1))
    return graph.add("Gemm", features, features, transB=1)


def channel_sums(graph: Graph, tap: str, channels: int) -> str:
    """Append the sum of each channel of a tap (1, C, h, w), (C, 1), one axis at a time (see `total_of`)."""
    rows = graph.add("ReduceSum", tap, graph.ints(3))
    return graph.add("Reshape", graph.add("ReduceSum", rows, graph.ints(2)), graph.ints(channels, 1))


def total_of(graph: Graph, x: str, rank: int, *, squared: bool = False) -> str:
    """Append the sum of all elements (or of their squares), one axis at a time.

    Runtimes may add up a whole tensor naively in float32, with errors of 1e-4 at a million elements; sums of sums
    stay at 1e-7.
    """
    for axis in reversed(range(rank)):
        op = "ReduceSumSquare" if squared and axis == rank - 1 else "ReduceSum"
        x = graph.add(op, x, graph.ints(axis), keepdims=0)
    return x


def _distance(graph: Graph, target: str, value: str, shape: tuple[int, int], name: str | None = None) -> str:
    """Append ``c·Σ(value - target)²`` with inputs for the target and, as ``<target>.weight``, c."""
    squares = total_of(graph, graph.add("Sub", value, graph.input(target, shape)), 2, squared=True)
    return graph.add("Mul", squares, graph.input(f"{target}.weight", ()), name=name)


def _difference(graph: Graph, image: str, axis: int, cut: int | None = None) -> str:
    """Forward differences along ``axis``, without the last row or column of ``cut``."""
    axes, starts, ends = [axis], [1], [_END]
    far = graph.add("Slice", image, *_bounds(graph, starts, ends, axes))
    near = graph.add("Slice", image, *_bounds(graph, [0], [-1], axes))
    difference = graph.add("Sub", far, near)
    if cut is None:
        return difference
    return graph.add("Slice", difference, *_bounds(graph, [0], [-1], [cut]))


_END = np.iinfo(np.int64).max


def _bounds(graph: Graph, starts: Sequence[int], ends: Sequence[int], axes: Sequence[int]) -> list[str]:
    return [graph.ints(*starts), graph.ints(*ends), graph.ints(*axes)]
