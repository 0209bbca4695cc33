"""Precision: graphs whose network computes in fp16 or bf16, with every tensor's type in the graph itself.

That is what strongly typed builders (TensorRT 11 has no others) take it from. The network is what a forward graph
holds from its first layer to its taps, and the gradient of that: convolutions, ReLUs, pools. Pictures, what is done to
them before the first layer, targets, terms, and the gradient that leaves are float32. Nothing has to tell the two apart
node by node: a forward graph is lowered, terms in float32 are put on its taps, and `impasto.export.autodiff` casts a
cotangent wherever it passes a ``Cast``.

fp16 has a narrow range. `impasto.export.rescale` keeps activations within it; cotangents are kept there by a power of
two that the caller chooses: see `impasto.export.fused`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper

from impasto.errors import GraphError, UnsupportedOpError
from impasto.export.forward import Pooling, forward_graph
from impasto.export.graph import BFLOAT16_OPSET, Graph, label
from impasto.export.rescale import rescaled
from impasto.models.conventions import PixelSpace
from impasto.models.weights import Weights

Precision = Literal["fp32", "fp16", "bf16"]
PRECISIONS: tuple[Precision, ...] = ("fp32", "fp16", "bf16")

_TENSOR_TYPES: Mapping[Precision, TensorProto.DataType] = {
    "fp32": TensorProto.FLOAT,
    "fp16": TensorProto.FLOAT16,
    "bf16": TensorProto.BFLOAT16,
}

_ENTRANCE = frozenset({"Add", "Div", "Identity", "Mul", "Neg", "Reshape", "Sub"})
"""What is done in float32 to inputs ahead of the first layer: cheap there, and a rounding less."""

_LAYERS = {"AveragePool", "Clip", "Conv", "ConvTranspose", "GlobalAveragePool", "LeakyRelu", "MaxPool", "Relu"}
_BETWEEN = {"Add", "Concat", "Div", "Identity", "Mul", "Neg", "Pad", "Reshape", "Slice", "Sub", "Transpose"}
NETWORK_OPS = frozenset(_LAYERS | _BETWEEN)
"""Operators whose floating-point inputs and outputs are all of one type, which may be half."""


def element_type(precision: Precision) -> np.dtype[Any]:
    """Return the NumPy type of a network's tensors; bfloat16 is `ml_dtypes.bfloat16`."""
    return np.dtype(helper.tensor_dtype_to_np_dtype(_TENSOR_TYPES[precision]))


def network_graph(
    weights: Weights,
    taps: Sequence[str],
    precision: Precision,
    *,
    pooling: Pooling = "max",
    space: PixelSpace | None = None,
    shape: tuple[int, int] | None = None,
) -> tuple[Graph, dict[str, float]]:
    """Build the forward graph (see `forward_graph`) at a precision, and give each tap's factor s.

    The taps are F' = s·F in the type of the precision; s is 1 but for fp16, whose weights are rescaled. Raises as
    `forward_graph`, `rescaled` and `lower` do.
    """
    factors = dict.fromkeys(weights.taps, 1.0)
    if precision == "fp16":
        weights, factors = rescaled(weights, pooling)
    graph = forward_graph(weights, taps, pooling=pooling, space=space, shape=shape)
    return lower(graph, precision), {tap: factors[tap] for tap in graph.outputs}


def lower(graph: Graph, precision: Precision) -> Graph:
    """Return a copy of a float32 forward graph that computes in the type of a precision.

    Inputs stay float32, and so does arithmetic that reads nothing but inputs and constants, such as a picture's way
    into the weights' pixel space; what reads those casts them. Constants are cast here. All else, outputs included,
    is of the precision's type, under the names that it had. bf16 takes a newer opset, `BFLOAT16_OPSET`.

    Raises `UnsupportedOpError` for an operator outside `NETWORK_OPS` that computes float32, `GraphError` for a constant
    that fp16 cannot hold, and for a tensor whose type cannot be inferred.
    """
    if precision == "fp32":
        return graph.copy(graph.name)
    return _Lowering(graph, precision).run()


def features(graph: Graph, factors: Mapping[str, float]) -> Graph:
    """Return a copy of a forward graph in which each output is the float32 F = F'/s under its name.

    The tensor F' that the graph computed, of any type, becomes ``<tap>.network``. ``factors`` maps outputs to s, powers
    of two; a float32 output whose s is 1 stays as it is.
    """
    types = graph.infer_shapes()
    changed = [tap for tap in graph.outputs if types[tap][0] != np.float32 or factors[tap] != 1]
    if not changed:
        return graph.copy(graph.name)
    names = {tap: f"{tap}.network" for tap in changed}
    result = _like(graph)
    for name, value in graph.constants.items():
        result.weight(name, value)
    for node in graph.nodes:
        result.append(_renamed(node, names, names))
    for tap in changed:
        raised = names[tap]
        if types[tap][0] != np.float32:
            name = tap if factors[tap] == 1 else f"{tap}.float32"
            raised = result.add("Cast", raised, name=name, to=TensorProto.FLOAT)
        if factors[tap] != 1:
            result.add("Mul", raised, result.literal(1 / factors[tap], np.float32), name=tap)
    result.outputs = list(graph.outputs)
    return result


class _Lowering:
    """One run of `lower`."""

    def __init__(self, graph: Graph, precision: Precision) -> None:
        self._graph = graph
        self._precision = precision
        self._types = graph.infer_shapes()
        self._entrance = _entrance(graph)
        self._wide = {name for node in graph.nodes if node.output[0] in self._entrance for name in node.input}
        self._result = _like(graph)
        if precision == "bf16":
            self._result.opset = BFLOAT16_OPSET
        self._narrowed: dict[str, str] = {}

    def run(self) -> Graph:
        for name, value in self._graph.constants.items():
            if name in self._wide or value.dtype != np.float32:
                self._result.weight(name, value)
        for node in self._graph.nodes:
            if node.output[0] in self._entrance:
                self._result.append(node)
                continue
            if node.op_type not in NETWORK_OPS and any(self._is_float32(output) for output in node.output):
                raise UnsupportedOpError(
                    f"node {label(node)}: {node.op_type} has no form in {self._precision}: export in fp32"
                )
            inputs = {name: self._narrow(name) for name in node.input if self._is_float32(name)}
            self._result.append(_renamed(node, inputs, {}))
        self._result.outputs = list(self._graph.outputs)
        return self._result

    def _narrow(self, name: str) -> str:
        """Return the tensor of the precision's type that stands for a float32 one."""
        if name not in self._narrowed:
            own = f"{name}.{self._precision}" if name in self._wide or name in self._entrance else name
            if name in self._graph.constants:
                self._result.weight(own, self._cast(name))
            elif name in self._entrance:
                self._result.add("Cast", name, name=own, to=_TENSOR_TYPES[self._precision])
            self._narrowed[name] = own
        return self._narrowed[name]

    def _cast(self, name: str) -> NDArray[Any]:
        value = self._graph.constants[name]
        with np.errstate(over="ignore"):
            cast = value.astype(element_type(self._precision))
        if not np.array_equal(np.isfinite(cast), np.isfinite(value)):
            raise GraphError(
                f"constant {name!r} reaches {np.abs(value).max():g}, which {self._precision} cannot hold: "
                "rescale the weights, or take bf16"
            )
        return cast

    def _is_float32(self, name: str) -> bool:
        if not name:  # an optional input that is not there
            return False
        if name not in self._types:
            raise GraphError(f"graph {self._graph.name!r}: the type of {name!r} cannot be inferred: export in fp32")
        return bool(self._types[name][0] == np.float32)


def _entrance(graph: Graph) -> set[str]:
    """Return the inputs and what is computed from nothing but inputs and constants by `_ENTRANCE`."""
    found = set(graph.inputs)
    for node in graph.nodes:
        known = found.union(graph.constants).issuperset(node.input)
        if node.op_type in _ENTRANCE and known and found.intersection(node.input):
            found.update(node.output)
    return found


def _like(graph: Graph) -> Graph:
    """Return an empty graph of the same name, opset and inputs."""
    result = Graph(graph.name, opset=graph.opset)
    for name, (dtype, shape) in graph.inputs.items():
        result.input(name, shape, dtype)
    return result


def _renamed(node: onnx.NodeProto, inputs: Mapping[str, str], outputs: Mapping[str, str]) -> onnx.NodeProto:
    """Return a node that reads and makes tensors under other names."""
    copy = onnx.NodeProto()
    copy.CopyFrom(node)
    copy.input[:] = [inputs.get(name, name) for name in node.input]
    copy.output[:] = [outputs.get(name, name) for name in node.output]
    copy.name = copy.output[0]
    return copy
