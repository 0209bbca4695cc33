"""Forward graphs: a layer table and its weights become ONNX, with a set of taps as outputs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

from impasto.errors import ImageError, UsageError
from impasto.export.graph import Dim, Graph
from impasto.models.backbones import Conv, Layer, Pool, Relu
from impasto.models.conventions import PixelSpace
from impasto.models.weights import Weights

Pooling = Literal["max", "average"]
POOLINGS: tuple[Pooling, ...] = ("max", "average")
IMAGE = "image"


def forward_graph(
    weights: Weights,
    taps: Sequence[str],
    *,
    pooling: Pooling = "max",
    space: PixelSpace | None = None,
    shape: tuple[int, int] | None = None,
    dtype: Any = np.float32,
) -> Graph:
    """Build the graph from ``image``, (1, 3, H, W), to each tap, (1, C, h, w), named as the tap.

    ``space`` is the convention that the image is given in, by default the weights' own; another one is folded into
    the first convolution exactly. ``shape`` fixes (H, W), which lets every later step do with fewer nodes; without
    it both are dynamic. Layers above the deepest tap are left out. Raises `MissingTapError` for a tap that the
    weights do not reach, `ImageError` for a fixed shape that is too small for one.
    """
    if pooling not in POOLINGS:
        raise UsageError(f"pooling {pooling!r} is unknown: choose max or average")
    wanted = {weights.require(tap) for tap in taps}
    if not wanted:
        raise UsageError("no taps were asked for: name at least one")
    if shape is not None:
        check_size(weights, taps, shape)
    graph = Graph(weights.backbone.name)
    height, width = shape or ("height", "width")
    image = graph.input(IMAGE, (1, 3, height, width), dtype)
    x = _enter(graph, image, weights, space or weights.convention, dtype)
    last = max(weights.backbone.index(tap) for tap in wanted)
    for layer in weights.backbone.layers[: last + 1]:
        x = _append(graph, layer, x, pooling)
    graph.outputs = [tap for tap in weights.backbone.taps if tap in wanted]
    return graph


def check_size(weights: Weights, taps: Sequence[str], shape: tuple[Dim, Dim]) -> None:
    """Raise `ImageError` if a picture of (H, W) leaves nothing at one of the taps; it names the one that needs most."""
    needs = {tap: weights.backbone.stride(weights.require(tap)) for tap in taps}
    tap = max(needs, key=lambda tap: needs[tap])
    need = needs[tap]
    if any(isinstance(side, int) and side < need for side in shape):
        raise ImageError(
            f"a picture of {shape[1]}x{shape[0]} pixels is too small for tap {tap}, "
            f"which needs at least {need}x{need}: give a larger picture or --size, or a shallower tap"
        )


def _enter(graph: Graph, image: str, weights: Weights, space: PixelSpace, dtype: Any) -> str:
    """Declare the weights, the first convolution's converted to ``space``; return what it shall read.

    Channel order and scale fold into the kernel. The offset cannot: the convolution pads with the zero of the
    weights' own convention, so it stays an addition on the three input channels.
    """
    affine = space.affine_to(weights.convention)
    first = weights.convs[0].name
    for name, value in weights.tensors.items():
        if name == f"{first}.weight" and space != weights.convention:
            scaled = value * np.reshape(np.asarray(affine.scale), (1, 3, 1, 1))
            kernel = np.empty_like(scaled)
            kernel[:, list(affine.permutation)] = scaled
            graph.weight(name, kernel.astype(dtype))
        else:
            graph.weight(name, value.astype(dtype, copy=False))
    # y = s·x[p] + o  =  s·(x + o/s, in x's channel order)[p]
    shift = np.zeros(3)
    shift[list(affine.permutation)] = np.divide(affine.offset, affine.scale)
    if not shift.any():
        return image
    return graph.add("Add", image, graph.literal(shift.reshape(1, 3, 1, 1), dtype), name="shifted")


def _append(graph: Graph, layer: Layer, x: str, pooling: Pooling) -> str:
    match layer:
        case Conv():
            pad = layer.kernel // 2
            return graph.add(
                "Conv",
                x,
                f"{layer.name}.weight",
                f"{layer.name}.bias",
                name=layer.name,
                kernel_shape=[layer.kernel, layer.kernel],
                pads=[pad] * 4,
            )
        case Relu():
            return graph.add("Relu", x, name=layer.name)
        case Pool():
            op = "MaxPool" if pooling == "max" else "AveragePool"
            return graph.add(op, x, name=layer.name, kernel_shape=[2, 2], strides=[2, 2])
