"""An ONNX graph under construction: nodes in the order of the data, weights kept as NumPy arrays.

`Graph` is what every exporter here writes into and what autodiff reads from and appends to. Names are given
deterministically, so the same calls make the same bytes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from numpy.typing import ArrayLike, NDArray
from onnx import helper, numpy_helper

from impasto.errors import GraphError, UnsupportedOpError

OPSET = 18
IR_VERSION = 8
"""Opset 18 and IR 8 are read by ONNX Runtime, OpenVINO and TensorRT 10 and 11 alike."""

BFLOAT16_OPSET = 22
"""The first whose convolutions and poolings take bfloat16; its IR is 10."""

Dim = int | str | None
Shape = tuple[Dim, ...]


@dataclass
class Graph:
    """A directed acyclic graph of ONNX nodes.

    ``inputs`` maps a name to its element type and shape (a string is a dynamic dimension, ``None`` an unknown one);
    ``constants`` holds weights and literals; ``outputs`` lists tensor names. ``opset`` is the version of the operators,
    whose meaning is the same in all that are used here.
    """

    name: str = "impasto"
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    inputs: dict[str, tuple[np.dtype[Any], Shape]] = field(default_factory=dict)
    constants: dict[str, NDArray[Any]] = field(default_factory=dict)
    outputs: list[str] = field(default_factory=list)
    _names: set[str] = field(default_factory=set)
    _literals: dict[tuple[str, tuple[int, ...], bytes], str] = field(default_factory=dict)
    opset: int = OPSET

    def input(self, name: str, shape: Sequence[Dim], dtype: Any = np.float32) -> str:
        """Declare an input and return its name."""
        self.inputs[self._claim(name)] = (np.dtype(dtype), tuple(shape))
        return name

    def weight(self, name: str, value: NDArray[Any]) -> str:
        """Declare a named constant and return its name."""
        self.constants[self._claim(name)] = value
        return name

    def literal(self, value: ArrayLike, dtype: Any) -> str:
        """Return the name of a small constant; equal ones are declared once."""
        array = np.asarray(value, dtype=dtype)
        key = (array.dtype.str, array.shape, array.tobytes())
        if key not in self._literals:
            self._literals[key] = self.weight(self.unique("const"), array)
        return self._literals[key]

    def ints(self, *values: int) -> str:
        """Return the name of a 1-D int64 constant: axes, pads, shapes."""
        return self.literal(values, np.int64)

    def add(self, op: str, *inputs: str, name: str | None = None, **attributes: Any) -> str:
        """Append a node with one output and return the output's name."""
        return self.add_many(op, inputs, [name or self.unique(op.lower())], **attributes)[0]

    def add_many(self, op: str, inputs: Iterable[str], outputs: Sequence[str], **attributes: Any) -> list[str]:
        """Append a node with named outputs and return their names."""
        self.append(helper.make_node(op, list(inputs), list(outputs), name=outputs[0], **attributes))
        return list(outputs)

    def append(self, node: onnx.NodeProto) -> None:
        """Append a node that was made elsewhere, under the names that it has.

        Raises `UnsupportedOpError` for an operator outside the standard domain, `GraphError` for one with subgraphs.
        """
        if node.domain:
            raise _foreign(node)
        if any(a.HasField("g") or a.graphs for a in node.attribute):
            raise GraphError(f"node {label(node)} ({node.op_type}) holds subgraphs: export it without control flow")
        for output in node.output:
            if output:
                self._claim(output)
        self.nodes.append(node)

    def unique(self, stem: str) -> str:
        """Return a name that no tensor has yet: ``stem``, ``stem.1``, ``stem.2``, …."""
        if stem not in self._names:
            return stem
        number = 1
        while f"{stem}.{number}" in self._names:
            number += 1
        return f"{stem}.{number}"

    def infer_shapes(self) -> dict[str, tuple[np.dtype[Any], Shape]]:
        """Return element type and shape of every tensor, as far as ONNX's shape inference can tell.

        A tensor whose rank cannot be told is left out. Weights take part by shape only, so this costs nothing like
        their size. Raises `GraphError` for a graph that contradicts itself.
        """
        try:
            model = onnx.shape_inference.infer_shapes(self._skeleton([]), strict_mode=True, data_prop=True)
        except onnx.shape_inference.InferenceError as error:
            raise GraphError(f"graph {self.name!r} is not consistent: {_first_line(error)}") from error
        inferred: dict[str, tuple[np.dtype[Any], Shape]] = {}
        for name, value in self.constants.items():
            inferred[name] = (value.dtype, tuple(value.shape))
        for info in [*model.graph.input, *model.graph.value_info]:
            if info.type.tensor_type.HasField("shape"):
                inferred[info.name] = _type_of(info)
        return inferred

    def model(self, metadata: Mapping[str, str] | None = None) -> onnx.ModelProto:
        """Return the ONNX model, checked; ``metadata`` becomes its ``metadata_props``.

        Raises `GraphError` for a graph that is not valid, or an output whose rank cannot be inferred.
        """
        types = self.infer_shapes()
        for name in self.outputs:
            if name not in types:
                raise GraphError(f"graph {self.name!r}: the shape of output {name!r} cannot be inferred")
        outputs = [_value_info(name, *types[name]) for name in self.outputs]
        try:
            onnx.checker.check_model(self._skeleton(outputs))
        except onnx.checker.ValidationError as error:
            raise GraphError(f"graph {self.name!r} is not valid: {_first_line(error)}") from error
        model = _model(self.name, self.nodes, self.inputs, self._used_constants(), outputs, self.opset)
        helper.set_model_props(model, dict(sorted((metadata or {}).items())))
        return model

    def digest(self) -> str:
        """Return the SHA-256 of all that the graph computes: nodes, inputs, outputs, and every constant's bytes."""
        skeleton = _model(self.name, self.nodes, self.inputs, {}, [], self.opset)
        digest = hashlib.sha256(skeleton.SerializeToString(deterministic=True))
        digest.update(repr(self.outputs).encode())
        for name, value in sorted(self._used_constants().items()):
            digest.update(f"{name} {value.dtype.str} {value.shape}".encode())
            # As bytes, for bfloat16 arrays give no buffer of their own.
            digest.update(np.ascontiguousarray(value).reshape(-1).view(np.uint8).data)
        return digest.hexdigest()

    def copy(self, name: str) -> Graph:
        """Return a graph that can grow without changing this one; the arrays are shared."""
        return Graph(
            name,
            list(self.nodes),
            dict(self.inputs),
            dict(self.constants),
            list(self.outputs),
            set(self._names),
            dict(self._literals),
            self.opset,
        )

    def with_shapes(self, shapes: Mapping[str, Sequence[int]]) -> Graph:
        """Return a copy whose inputs of those names have those shapes, all dimensions fixed."""
        copy = self.copy(self.name)
        for name, shape in shapes.items():
            copy.inputs[name] = (self.inputs[name][0], tuple(shape))
        return copy

    def prune(self) -> None:
        """Drop the nodes and constants that no output needs."""
        needed = set(self.outputs)
        kept: list[onnx.NodeProto] = []
        for node in reversed(self.nodes):
            if needed.intersection(node.output):
                needed.update(name for name in node.input if name)
                kept.append(node)
        self.nodes = kept[::-1]
        self.constants = {name: v for name, v in self.constants.items() if name in needed}
        self._literals = {k: name for k, name in self._literals.items() if name in self.constants}

    def _skeleton(self, outputs: Sequence[onnx.ValueInfoProto]) -> onnx.ModelProto:
        """Return the model without the values of its weights; int64 constants stay, for they steer shapes."""
        small = {name: value for name, value in self.constants.items() if value.dtype == np.int64}
        large = {name: (v.dtype, v.shape) for name, v in self.constants.items() if name not in small}
        return _model(self.name, self.nodes, {**self.inputs, **large}, small, outputs, self.opset)

    def _used_constants(self) -> dict[str, NDArray[Any]]:
        used = {name for node in self.nodes for name in node.input} | set(self.outputs)
        return {name: value for name, value in self.constants.items() if name in used}

    def _claim(self, name: str) -> str:
        if name in self._names:
            raise ValueError(f"tensor {name!r} exists already in graph {self.name!r}")
        self._names.add(name)
        return name


def graph_from_model(model: onnx.ModelProto) -> Graph:
    """Read a model of any source into a `Graph`; ``Constant`` nodes become constants.

    Raises `GraphError` when the model is not valid, not of an opset that this version reads, or keeps weights in files
    that were not loaded with it, and `UnsupportedOpError` for operators outside the standard domain.
    """
    tensors = [*model.graph.initializer, *(a.t for node in model.graph.node for a in node.attribute)]
    for tensor in tensors:
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            raise GraphError(
                f"the data of {tensor.name!r} are in another file: read the model from its path (onnx.load)"
            )
    if model.graph.sparse_initializer:
        raise GraphError("sparse weights are not read: export the model with dense ones")
    for node in model.graph.node:
        if node.domain:
            raise _foreign(node)
    try:
        model = _converted(model)
        return _read(model.graph)
    except _INVALID as error:
        raise GraphError(f"not a valid ONNX model: {_first_line(error)}") from error


_INVALID = (
    onnx.checker.ValidationError,
    onnx.shape_inference.InferenceError,
    onnx.version_converter.ConvertError,
    onnx.defs.SchemaError,
    RuntimeError,
    ValueError,
    KeyError,
    TypeError,
)
"""What the onnx package raises, depending on the place, for a model that is damaged."""


def _converted(model: onnx.ModelProto) -> onnx.ModelProto:
    """Check the model and bring it to our opset."""
    onnx.checker.check_model(model)
    version = next((entry.version for entry in model.opset_import if not entry.domain), None)
    if version is None or version == OPSET:
        return model
    model = onnx.version_converter.convert_version(model, OPSET)
    for node in model.graph.node:
        # The converter leaves attributes of newer opsets in place; those at their default change nothing.
        known = onnx.defs.get_schema(node.op_type, OPSET).attributes
        newer = onnx.defs.get_schema(node.op_type, version).attributes if version > OPSET else known
        for attribute in list(node.attribute):
            if attribute.name not in known and attribute.name in newer:
                default = helper.get_attribute_value(newer[attribute.name].default_value)
                if helper.get_attribute_value(attribute) == default:
                    node.attribute.remove(attribute)
    onnx.checker.check_model(model)
    return model


def _read(source: onnx.GraphProto) -> Graph:
    graph = Graph(source.name or "model")
    for initializer in source.initializer:
        graph.weight(initializer.name, numpy_helper.to_array(initializer))
    for value in source.input:
        if value.name not in graph.constants:
            dtype, shape = _type_of(value)
            graph.input(value.name, shape, dtype)
    for node in source.node:
        if node.op_type == "Constant":
            graph.weight(node.output[0], _constant_value(node))
        else:
            graph.append(node)
    graph.outputs = [value.name for value in source.output]
    return graph


def label(node: onnx.NodeProto) -> str:
    """Return how an error calls a node: its name, or else its first output's."""
    return repr(node.name or (node.output[0] if node.output else ""))


def attributes(node: onnx.NodeProto) -> dict[str, Any]:
    """Return a node's attributes as Python values; strings are decoded."""
    values = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    return {k: v.decode(errors="replace") if isinstance(v, bytes) else v for k, v in values.items()}


def _model(
    name: str,
    nodes: Iterable[onnx.NodeProto],
    inputs: Mapping[str, tuple[np.dtype[Any], Shape]],
    constants: Mapping[str, NDArray[Any]],
    outputs: Sequence[onnx.ValueInfoProto],
    opset: int,
) -> onnx.ModelProto:
    graph = helper.make_graph(
        list(nodes),
        name,
        [_value_info(key, dtype, shape) for key, (dtype, shape) in inputs.items()],
        list(outputs),
        [numpy_helper.from_array(value, key) for key, value in constants.items()],
    )
    imports = [helper.make_opsetid("", opset)]
    return helper.make_model(
        graph,
        opset_imports=imports,
        ir_version=helper.find_min_ir_version_for(imports),
        producer_name="impasto",
    )


def _value_info(name: str, dtype: np.dtype[Any], shape: Shape | None) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(dtype), shape)


def _type_of(value: onnx.ValueInfoProto) -> tuple[np.dtype[Any], Shape]:
    tensor = value.type.tensor_type
    if tensor.elem_type not in _ELEMENT_TYPES:
        raise GraphError(f"{value.name!r} is not a tensor of numbers: such models are not read")
    dims = tuple(d.dim_value if d.HasField("dim_value") else (d.dim_param or None) for d in tensor.shape.dim)
    if any(isinstance(d, bytes) for d in dims):  # as protobuf gives a string that is none
        raise GraphError(f"{value.name!r} has a dimension whose name is not UTF-8")
    return np.dtype(helper.tensor_dtype_to_np_dtype(tensor.elem_type)), dims


_ELEMENT_TYPES = frozenset(helper.get_all_tensor_dtypes()) - {onnx.TensorProto.STRING}


def _constant_value(node: onnx.NodeProto) -> NDArray[Any]:
    values = attributes(node)
    if "value" in values:
        return numpy_helper.to_array(values["value"])
    for name, dtype in (
        ("value_float", np.float32),
        ("value_floats", np.float32),
        ("value_int", np.int64),
        ("value_ints", np.int64),
    ):
        if name in values:
            return np.asarray(values[name], dtype=dtype)
    raise GraphError(f"node {label(node)}: a Constant of an unknown kind")


def _foreign(node: onnx.NodeProto) -> UnsupportedOpError:
    return UnsupportedOpError(
        f"node {label(node)}: {node.domain}::{node.op_type} is not a standard ONNX operator: "
        "export the model without it"
    )


def _first_line(error: BaseException) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
