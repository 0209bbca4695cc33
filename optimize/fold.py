"""Folding: what nodes make of constants alone, computed before the graph is compiled.

The gradient of a convolution turns the kernels over by nodes (`impasto.export.autodiff`), so that a file holds each
kernel once. A compiler that must keep weights replaceable cannot fold those nodes, and would convolve with a kernel
that it computes anew at each run; folded here, both kernels are weights like any other.
"""

from __future__ import annotations

from typing import Any

import onnx
from numpy.typing import NDArray
from onnx import helper

from impasto.export.graph import Graph

_MOVES = frozenset({"Concat", "Flatten", "Identity", "Reshape", "Slice", "Squeeze", "Transpose", "Unsqueeze"})
"""Operators that rearrange and make nothing larger; TensorRT folds the arithmetic among constants itself."""


def fold_constants(graph: Graph) -> Graph:
    """Return the graph with every tensor made of constants alone by moving them about as a constant of its name.

    A node that makes an output of the graph stays. The arrays are shared with ``graph``, which is not changed.
    """
    folded = graph.copy(graph.name)
    folded.nodes = []
    for node in graph.nodes:
        constant = all(name in folded.constants for name in node.input if name)
        if constant and node.op_type in _MOVES and not set(node.output) & set(graph.outputs):
            folded.constants.update(_evaluate(node, folded))
        else:
            folded.nodes.append(node)
    folded.prune()
    return folded


def _evaluate(node: onnx.NodeProto, graph: Graph) -> dict[str, NDArray[Any]]:
    from onnx.reference import ReferenceEvaluator

    feeds = {name: graph.constants[name] for name in node.input if name}
    inputs = [
        helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(value.dtype), value.shape)
        for name, value in feeds.items()
    ]
    outputs = [onnx.ValueInfoProto(name=name) for name in node.output]
    opset = [helper.make_opsetid("", graph.opset)]
    model = helper.make_model(helper.make_graph([node], "fold", inputs, outputs), opset_imports=opset)
    return dict(zip(node.output, ReferenceEvaluator(model).run(None, feeds), strict=True))
