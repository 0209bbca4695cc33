"""Forward graphs: a layer table and its weights become ONNX, with a set of taps as outputs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Literal

import numpy as np

from impasto.errors import GraphError, ImageError, UsageError
from impasto.export.graph import Dim, Graph
from impasto.models.conventions import Affine, PixelSpace
from impasto.models.layers import BINOMIAL, IMAGE, Conv, Filters, Halve, Layer, Pool, Relu
from impasto.models.weights import Weights

Pooling = Literal["max", "average"]
POOLINGS: tuple[Pooling, ...] = ("max", "average")


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
    it both are dynamic. Layers that no tap needs are left out. Each `Filters` layer adds two inputs of (C,),
    ``<layer>.scale`` and ``<layer>.threshold``, which a graph of `impasto.export.calibration` gives.

    Raises `MissingTapError` for a tap that the weights do not reach, `ImageError` for a fixed shape that is too small
    for one.
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
    graph.input(IMAGE, (1, 3, height, width), dtype)
    builder = LayerBuilder(graph, weights, wanted, pooling=pooling, space=space, dtype=dtype)
    for layer in builder.layers:
        builder.append(layer)
    graph.outputs = [tap for tap in weights.backbone.taps if tap in wanted]
    return graph


def check_size(weights: Weights, taps: Sequence[str], shape: tuple[Dim, Dim]) -> None:
    """Raise `ImageError` if a picture of (H, W) leaves nothing at one of the taps; it names the one that needs most."""
    if not taps:
        return
    needs = {tap: weights.backbone.smallest(weights.require(tap)) for tap in taps}
    tap = max(needs, key=lambda tap: needs[tap])
    need = needs[tap]
    if any(isinstance(side, int) and side < need for side in shape):
        raise ImageError(
            f"a picture of {shape[1]}x{shape[0]} pixels is too small for tap {tap}, "
            f"which needs at least {need}x{need}: give a larger picture or --size, or a shallower tap"
        )


class LayerBuilder:
    """Appends layers to a graph that has the input ``image``, each under its own name.

    ``layers`` are those that the taps need, in order; their weights are declared in the graph.
    """

    def __init__(
        self,
        graph: Graph,
        weights: Weights,
        taps: Iterable[str],
        *,
        pooling: Pooling = "max",
        space: PixelSpace | None = None,
        dtype: Any = np.float32,
    ) -> None:
        self.layers = weights.backbone.needed(taps)
        self._graph = graph
        self._pooling = pooling
        self._dtype = dtype
        self._padded: dict[tuple[str, int], str] = {}
        for layer in self.layers:
            for name in layer.tensors():
                graph.weight(name, weights.tensors[name].astype(dtype, copy=False))
        self._image = self._enter((space or weights.convention).affine_to(weights.convention))

    def append(self, layer: Layer) -> str:
        """Append a layer whose source is there already; return its name."""
        x = self._source(layer)
        match layer:
            case Filters():
                scale, threshold = (
                    self._graph.input(name, (layer.out_channels,), self._dtype) for name in layer.calibration()
                )
                column = self._graph.add("Reshape", scale, self._graph.ints(-1, 1, 1, 1))
                # Into the kernels, which are small, and not onto the response, which is the largest tensor of all.
                kernels = self._graph.add("Mul", f"{layer.name}.weight", column)
                return self._filter(layer, kernels, self._graph.add("Neg", threshold), name=layer.name)
            case Conv():
                weight, bias = layer.tensors()
                pads = [layer.kernel // 2] * 4
                return self._graph.add("Conv", x, weight, bias, name=layer.name, kernel_shape=_square(layer), pads=pads)
            case Relu():
                return self._graph.add("Relu", x, name=layer.name)
            case Halve():
                row = np.asarray(BINOMIAL)
                kernel = self._graph.literal(np.broadcast_to(np.outer(row, row), (3, 1, 5, 5)), self._dtype)
                padded = self._reflected(x, 2)
                return self._graph.add(
                    "Conv", padded, kernel, name=layer.name, kernel_shape=[5, 5], strides=[2, 2], group=3
                )
            case Pool():
                op = "MaxPool" if self._pooling == "max" else "AveragePool"
                return self._graph.add(op, x, name=layer.name, kernel_shape=[2, 2], strides=[2, 2])
        raise GraphError(f"layer {layer.name!r}: there is no ONNX form of a {type(layer).__name__}")

    def respond(self, layer: Filters) -> str:
        """Append the response of a bank of filters as it is, neither scaled nor thresholded; return its name."""
        return self._filter(layer, f"{layer.name}.weight")

    def _filter(self, layer: Filters, *tensors: str, name: str | None = None) -> str:
        padded = self._reflected(self._source(layer), layer.kernel // 2)
        return self._graph.add("Conv", padded, *tensors, name=name, kernel_shape=_square(layer))

    def _source(self, layer: Layer) -> str:
        return self._image if layer.source == IMAGE else layer.source

    def _reflected(self, x: str, amount: int) -> str:
        """Surround x by its reflection, once for all that need it equally wide."""
        if (x, amount) not in self._padded:
            amounts = self._graph.ints(0, 0, amount, amount, 0, 0, amount, amount)
            padded = self._graph.add("Pad", x, amounts, name=self._graph.unique(f"{x}.reflected"), mode="reflect")
            self._padded[x, amount] = padded
        return self._padded[x, amount]

    def _enter(self, affine: Affine) -> str:
        """Bring the image to the weights' convention; return what the layers that read it shall read.

        Where only convolutions read it, channel order and scale fold into their kernels. The offset cannot: they pad
        with the zero of the weights' own convention, so it stays an addition on the three input channels.
        """
        matrix = np.zeros((3, 3))
        matrix[range(3), affine.permutation] = affine.scale
        readers = [layer for layer in self.layers if layer.source == IMAGE]
        if not all(isinstance(layer, Conv) for layer in readers):
            if not np.any(affine.offset) and np.array_equal(matrix, np.eye(3)):
                return IMAGE
            kernel = self._graph.literal(matrix.reshape(3, 3, 1, 1), self._dtype)
            bias = self._graph.literal(affine.offset, self._dtype)
            return self._graph.add("Conv", IMAGE, kernel, bias, name="converted", kernel_shape=[1, 1])
        if not np.array_equal(matrix, np.eye(3)):
            for layer in readers:
                weight, _ = layer.tensors()
                value = self._graph.constants[weight]
                self._graph.constants[weight] = np.einsum("ochw,ci->oihw", value, matrix).astype(self._dtype)
        # y = s·x[p] + o  =  s·(x + o/s, in x's channel order)[p]
        shift = np.zeros(3)
        shift[list(affine.permutation)] = np.divide(affine.offset, affine.scale)
        if not shift.any():
            return IMAGE
        return self._graph.add(
            "Add", IMAGE, self._graph.literal(shift.reshape(1, 3, 1, 1), self._dtype), name="shifted"
        )


def _square(layer: Conv | Filters) -> list[int]:
    return [layer.kernel, layer.kernel]
