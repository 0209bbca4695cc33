"""Gram matrices for runtimes that keep activations with the channels last, as OpenVINO does on CPUs.

``F·Fᵀ`` of channels × positions asks for the channels first: OpenVINO turns every tap over before the product, and the
cotangent back after it. Written with positions × channels, as ``FᵀF`` there, nothing is moved: the transposition to
(1, h, w, C) is how the tap lies in memory already. Where the network computes in bf16, the cotangent's product does so
as well, since it is rounded to bf16 right after; Gram matrices themselves stay products in float32, for targets are
taken from them. Figures are in `docs/decisions/0011-cpu-backends.md`.
"""

from __future__ import annotations

from collections import defaultdict

import numpy as np
import onnx
from onnx import TensorProto

from impasto.export.graph import Graph, attributes

_BFLOAT16 = "bfloat16"


def channels_last_grams(graph: Graph) -> Graph:
    """Return a graph of the same inputs, outputs and values, to rounding, with its Gram matrices written so.

    That is every ``Gemm(F, F, transB=1)`` of a reshaped tap (1, C, h, w), and the product that is its cotangent where
    the tap's shape is fixed. Other nodes stay as they are.
    """
    return _Rewriting(graph).run()


class _Rewriting:
    """One run of `channels_last_grams`."""

    def __init__(self, graph: Graph) -> None:
        self._graph = graph
        self._makers = {name: node for node in graph.nodes for name in node.output}
        self._readers: defaultdict[str, list[onnx.NodeProto]] = defaultdict(list)
        for node in graph.nodes:
            for name in node.input:
                self._readers[name].append(node)
        self._types = graph.infer_shapes()
        flattened = [node.input[0] for node in graph.nodes if self._is_gram(node)]
        self._taps = {name: self._makers[name].input[0] for name in flattened}
        self._result = Graph(graph.name, outputs=list(graph.outputs), opset=graph.opset)
        for name, (dtype, shape) in graph.inputs.items():
            self._result.input(name, shape, dtype)
        for name, value in graph.constants.items():
            self._result.weight(name, value)
        self._turned: dict[str, str] = {}

    def run(self) -> Graph:
        products = {node.output[0]: node for node in self._graph.nodes if self._is_cotangent(node)}
        for node in self._graph.nodes:
            if node.output[0] in products:
                continue
            if self._is_gram(node):
                features = self._positions_first(self._taps[node.input[0]])
                self._result.add("Gemm", features, features, name=node.output[0], transA=1)
            elif node.op_type == "Reshape" and node.input[0] in products:
                self._cotangent(products[node.input[0]], node.output[0])
            else:
                self._result.append(node)
        self._result.prune()
        return self._result

    def _is_gram(self, node: onnx.NodeProto) -> bool:
        if node.op_type != "Gemm" or len(node.input) != 2 or node.input[0] != node.input[1]:
            return False
        if attributes(node) != {"transB": 1} or node.input[0] not in self._makers:
            return False
        reshape = self._makers[node.input[0]]
        if reshape.op_type != "Reshape" or reshape.input[0] not in self._types:
            return False
        shape, target = self._types[reshape.input[0]][1], self._graph.constants.get(reshape.input[1])
        return len(shape) == 4 and shape[0] == 1 and target is not None and target.tolist() == [shape[1], -1]

    def _is_cotangent(self, node: onnx.NodeProto) -> bool:
        """Tell whether a node is (dG + dGᵀ)·F, reshaped to the tap's shape and nothing else."""
        if node.op_type != "Gemm" or len(node.input) != 2 or node.input[1] not in self._taps:
            return False
        if attributes(node) not in ({}, {"alpha": 1.0}) or node.input[0] == node.input[1]:
            return False
        readers = self._readers[node.output[0]]
        if len(readers) != 1 or readers[0].op_type != "Reshape" or node.output[0] in self._graph.outputs:
            return False
        shape = self._types[self._taps[node.input[1]]][1]
        _, reshaped = self._types.get(readers[0].output[0], (None, ()))
        return reshaped == shape and all(isinstance(side, int) for side in shape)

    def _positions_first(self, tensor: str) -> str:
        """Append a tensor (1, C, h, w) as (h·w, C)."""
        if tensor not in self._turned:
            channels = self._types[tensor][1][1]
            assert isinstance(channels, int)
            turned = self._result.add("Transpose", tensor, name=f"{tensor}.channels_last", perm=[0, 2, 3, 1])
            shape = self._shape(f"{tensor}.positions.shape", -1, channels)
            self._turned[tensor] = self._result.add("Reshape", turned, shape, name=f"{tensor}.positions")
        return self._turned[tensor]

    def _cotangent(self, product: onnx.NodeProto, name: str) -> None:
        tap, upstream = self._taps[product.input[1]], product.input[0]
        _, channels, height, width = (side for side in self._types[tap][1] if isinstance(side, int))
        narrow = self._narrow(tap)
        if narrow is not None:
            tap = narrow
            upstream = self._result.add("Cast", upstream, name=f"{name}.upstream", to=TensorProto.BFLOAT16)
        rows = self._result.add("Gemm", self._positions_first(tap), upstream, name=f"{name}.positions", transB=1)
        shape = self._shape(f"{name}.shape", 1, height, width, channels)
        last = self._result.add("Reshape", rows, shape, name=f"{name}.channels_last")
        if narrow is None:
            self._result.add("Transpose", last, name=name, perm=[0, 3, 1, 2])
            return
        first = self._result.add("Transpose", last, name=f"{name}.half", perm=[0, 3, 1, 2])
        self._result.add("Cast", first, name=name, to=TensorProto.FLOAT)

    def _narrow(self, tap: str) -> str | None:
        """Return the bfloat16 tensor that a tap is cast from, None where it is not."""
        maker = self._makers.get(tap)
        if maker is None or maker.op_type != "Cast" or self._types[maker.input[0]][0].name != _BFLOAT16:
            return None
        return str(maker.input[0])

    def _shape(self, name: str, *sides: int) -> str:
        return self._result.weight(name, np.array(sides, np.int64))
