"""Rules of pooling.

Positions of a stride-s grid that share their remainder modulo s make a *phase*, a picture of 1/s the size. Pooling's
gradient is worked out phase by phase, at the small size, and the phases are woven together by ``DepthToSpace``.
"""

from __future__ import annotations

from itertools import product

import numpy as np
from onnx import helper

from impasto.export.autodiff.tape import Cotangents, Node, rule


@rule("MaxPool")
def max_pool(node: Node, dy: str) -> Cotangents:
    """Send each window's cotangent to its first maximum in row-major order, as PyTorch does.

    No ``MaxUnpool`` and no ``Indices`` output, which TensorRT lacks.
    """
    x, y = node.inputs[0], node.outputs[0]
    kernel, stride, pads = _window(node)
    _check_ceil(node, kernel, stride, pads)
    padded = _pad_for_windows(node, x, stride, pads)
    rest = dy
    parts: dict[tuple[int, int], str] = {}
    offsets = list(product(range(kernel[0]), range(kernel[1])))
    for offset in offsets[:-1]:
        here = _every(node, padded, y, offset, stride)
        is_maximum = node.add("Cast", node.add("Equal", here, y), to=_type(node, x))
        parts[offset] = node.add("Mul", is_maximum, rest)
        rest = node.add("Sub", rest, parts[offset])
    parts[offsets[-1]] = rest  # where nothing before it was the maximum, the last one is
    woven, size = _weave(node, parts, kernel, stride)
    return [node.window_like(woven, x, pads[:2], size, stride - 1)]


@rule("AveragePool")
def average_pool(node: Node, dy: str) -> Cotangents:
    """Spread each cotangent evenly over its window: enlarged where windows do not overlap."""
    x, y = node.inputs[0], node.outputs[0]
    kernel, stride, pads = _window(node)
    if any(pads) and not node.attributes.get("count_include_pad", 0):
        raise node.error("padding that is not counted (count_include_pad=0) is not covered")
    if node.attributes.get("ceil_mode", 0):
        raise node.error("ceil_mode is not covered for averages")
    share = node.add("Mul", dy, node.scalar(1.0 / (kernel[0] * kernel[1]), x))
    if kernel == (stride, stride):
        scales = node.graph.literal([1, 1, stride, stride], np.float32)
        spread = node.add(
            "Resize",
            share,
            "",
            scales,
            mode="nearest",
            coordinate_transformation_mode="asymmetric",
            nearest_mode="floor",
        )
    else:
        channels = node.shape(x)[1]
        if channels is None:
            raise node.error("the number of channels must be static")
        ones = node.graph.literal(np.ones((channels, 1, *kernel)), node.dtype(x))
        spread = node.add("ConvTranspose", share, ones, group=channels, strides=[stride, stride])
    size = [None if n is None else (n - 1) * stride + k for n, k in zip(node.shape(y)[2:], kernel, strict=True)]
    return [node.window_like(spread, x, pads[:2], size, stride - 1)]


@rule("GlobalAveragePool")
def global_average_pool(node: Node, dy: str) -> Cotangents:
    """Each position gets an equal share."""
    x = node.inputs[0]
    size = node.add("Shape", x, start=2)
    count = node.add("Cast", node.add("ReduceProd", size, keepdims=0), to=_type(node, x))
    return [node.add("Expand", node.add("Div", dy, count), node.add("Shape", x))]


def _window(node: Node) -> tuple[tuple[int, int], int, list[int]]:
    if len(node.shape(node.inputs[0])) != 4:
        raise node.error("only two-dimensional pooling is covered")
    if len(node.outputs) > 1 and node.outputs[1]:
        raise node.error("the output of indices is not covered")
    if any(d != 1 for d in node.attributes.get("dilations", [1, 1])):
        raise node.error("dilated windows are not covered")
    height, width = node.attributes["kernel_shape"]
    strides = list(node.attributes.get("strides", [1, 1]))
    if strides[0] != strides[1]:
        raise node.error(f"strides {strides} must be equal")
    return (height, width), strides[0], node.explicit_pads(2)


def _check_ceil(node: Node, kernel: tuple[int, int], stride: int, pads: list[int]) -> None:
    """Refuse a fixed size whose last window in ceil mode would begin beyond the picture.

    Runtimes drop that window, but ONNX's shape inference counts it (seen in 1.23), so every shape after it is wrong.
    """
    if not node.attributes.get("ceil_mode", 0):
        return
    for axis, size in enumerate(node.shape(node.inputs[0])[2:]):
        if size is None:
            continue
        steps = -(-(size + pads[axis] + pads[axis + 2] - kernel[axis]) // stride)
        if steps * stride >= size + pads[axis]:
            raise node.error(f"in ceil_mode the last window begins beyond the size {size}: leave the size dynamic")


def _pad_for_windows(node: Node, x: str, stride: int, pads: list[int]) -> str:
    """Surround x by -∞ as the forward pool does; ceil mode may look up to stride - 1 further."""
    beyond = stride - 1 if node.attributes.get("ceil_mode", 0) else 0
    if not any(pads) and not beyond:
        return x
    top, left, bottom, right = pads
    amounts = node.ints(0, 0, top, left, 0, 0, bottom + beyond, right + beyond)
    return node.add("Pad", x, amounts, node.scalar(-np.inf, x))


def _every(node: Node, x: str, y: str, offset: tuple[int, int], stride: int) -> str:
    """Return the window element at ``offset`` of every window, in the shape of the pool's output y."""
    row, column = offset
    size = node.shape(y)[2:]
    last = (row - stride + 1, column - stride + 1)
    if None not in size:
        ends = node.ints(*(stride * (n or 0) + add for n, add in zip(size, last, strict=True)))
    else:
        reach = node.add("Mul", node.add("Shape", y, start=2), node.ints(stride))
        ends = node.add("Add", reach, node.ints(*last))
    return node.add("Slice", x, node.ints(row, column), ends, node.ints(2, 3), node.ints(stride, stride))


def _weave(
    node: Node, parts: dict[tuple[int, int], str], kernel: tuple[int, int], stride: int
) -> tuple[str, list[int | None]]:
    """Put what each window offset got back on the padded grid, adding where windows overlap.

    Returns the grid, and its height and width where they are known.
    """
    spare = [(k - 1) // stride for k in kernel]  # how far, in windows, the largest offset reaches
    size = [
        None if n is None else (n + m) * stride for n, m in zip(node.shape(node.outputs[0])[2:], spare, strict=True)
    ]
    phases: list[str] = []
    for phase in product(range(stride), repeat=2):
        total: str | None = None
        for offset, part in parts.items():
            if (offset[0] % stride, offset[1] % stride) != phase:
                continue
            down, right = offset[0] // stride, offset[1] // stride
            if any(spare):
                amounts = (0, 0, down, right, 0, 0, spare[0] - down, spare[1] - right)
                part = node.add("Pad", part, node.ints(*amounts))
            total = part if total is None else node.add("Add", total, part)
        if total is None:  # a stride larger than the window leaves positions that no window reads
            total = node.add("Mul", phases[0], node.scalar(0.0, node.inputs[0]))
        phases.append(total)
    if stride == 1:
        return phases[0], size
    joined = node.add("Concat", *phases, axis=1)
    return node.add("DepthToSpace", joined, blocksize=stride, mode="DCR"), size


def _type(node: Node, x: str) -> int:
    return helper.np_dtype_to_tensor_dtype(node.dtype(x))
