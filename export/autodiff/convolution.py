"""Rules of convolutions and what travels with them; gradients are for the activations, not for the weights."""

from __future__ import annotations

import numpy as np

from impasto.export.autodiff.tape import Cotangents, Node, rule

_FEW = 4
"""Up to so many input channels, a turned-over kernel leaves most of a convolution's inner loop idle (decision 7)."""


@rule("Conv")
def conv(node: Node, dy: str) -> Cotangents:
    """Correlate dY with the kernel turned over.

    With stride 1 that is a Conv with flipped kernels and exchanged channels, several times faster than ConvTranspose
    on ONNX Runtime's CPU; where it would have very few output channels, as for a picture, it is twice as slow. Other
    strides take ConvTranspose.
    """
    if node.wants(1) or node.wants(2):
        raise node.error("gradients with respect to weights are not covered, only to activations")
    x, weight = node.inputs[:2]
    rank = len(node.shape(x)) - 2
    kernel = node.shape(weight)[2:]
    if None in kernel:
        raise node.error("the kernel's size must be static")
    sizes = [k for k in kernel if k is not None]
    strides = list(node.attributes.get("strides", [1] * rank))
    dilations = list(node.attributes.get("dilations", [1] * rank))
    pads = node.explicit_pads(rank)
    reach = [d * (k - 1) for d, k in zip(dilations, sizes, strict=True)]
    turned = [r - p for r, p in zip(reach * 2, pads, strict=True)]
    rest: Cotangents = [None] * (len(node.inputs) - 1)
    few = (node.shape(weight)[1] or _FEW) <= _FEW
    if strides == [1] * rank and min(turned) >= 0 and not few:
        group = int(node.attributes.get("group", 1))
        flipped = _flipped(node, weight, rank, group)
        dx = node.add("Conv", dy, flipped, kernel_shape=sizes, pads=turned, dilations=dilations, group=group)
        return [dx, *rest]
    spread = node.add(
        "ConvTranspose",
        dy,
        weight,
        kernel_shape=sizes,
        strides=strides,
        dilations=dilations,
        group=int(node.attributes.get("group", 1)),
    )
    if strides == [1] * rank and not any(pads):
        return [spread, *rest]
    size = [
        None if n is None else (n - 1) * stride + r + 1
        for n, stride, r in zip(node.shape(node.outputs[0])[2:], strides, reach, strict=True)
    ]
    return [node.window_like(spread, x, pads[:rank], size, max(strides) - 1), *rest]


def _flipped(node: Node, weight: str, rank: int, group: int) -> str:
    """Turn kernels (O, I/g, …) into (I, O/g, …), reversed along every spatial axis.

    Done by nodes on the constant, which every runtime folds: the file holds each kernel once.
    """
    axes = range(2, 2 + rank)
    if group == 1:
        swapped = node.add("Transpose", weight, perm=[1, 0, *axes])
    else:
        out, inner, *kernel = (d or -1 for d in node.shape(weight))
        split = node.add("Reshape", weight, node.ints(group, out // group, inner, *kernel))
        turned = node.add("Transpose", split, perm=[0, 2, 1, *(a + 1 for a in axes)])
        swapped = node.add("Reshape", turned, node.ints(group * inner, out // group, *kernel))
    if all(k == 1 for k in node.shape(weight)[2:]):
        return swapped
    lowest = np.iinfo(np.int64).min
    return node.add(
        "Slice",
        swapped,
        node.ints(*[-1] * rank),
        node.ints(*[lowest] * rank),
        node.ints(*axes),
        node.ints(*[-1] * rank),
    )


@rule("BatchNormalization")
def batch_normalization(node: Node, dy: str) -> Cotangents:
    """At inference: dX = dY·scale / √(variance + ε), per channel."""
    if node.attributes.get("training_mode", 0):
        raise node.error("training mode is not covered: export the model for inference")
    if any(node.wants(index) for index in range(1, 5)):
        raise node.error("gradients with respect to its parameters are not covered, only to activations")
    x, scale, _, _, variance = node.inputs
    epsilon = node.scalar(float(node.attributes.get("epsilon", 1e-5)), variance)
    factor = node.add("Div", scale, node.add("Sqrt", node.add("Add", variance, epsilon)))
    column = node.add("Reshape", factor, node.ints(-1, *[1] * (len(node.shape(x)) - 2)))
    return [node.add("Mul", dy, column), None, None, None, None]
