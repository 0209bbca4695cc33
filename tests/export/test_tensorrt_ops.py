"""Every graph that TensorRT is to parse uses only operators and types that its ONNX parser documents.

The table is from the support matrix of onnx-tensorrt for TensorRT 10.15 (docs/operators.md, opsets 9 to 24), reduced
to the operators that occur here; a new one has to be looked up there. Its types are those of an operator's data;
shapes, axes, pads and the like are int64, and comparisons give booleans.
"""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from impasto.export.calibration import calibration_graph
from impasto.export.forward import forward_graph
from impasto.export.fused import fused_graph
from impasto.export.graph import BFLOAT16_OPSET, OPSET, attributes
from impasto.export.precision import PRECISIONS
from impasto.export.slices import sliced
from impasto.export.statistics import statistics_graph
from impasto.models.conventions import pixel_space
from impasto.models.random_weights import filterbank_weights, random_weights
from impasto.runtime.recipes import PRESETS

FLOATS = frozenset({"FLOAT", "FLOAT16", "BFLOAT16"})
NUMBERS = FLOATS | {"INT32", "INT64"}
ANY = NUMBERS | {"BOOL"}
DOCUMENTED = {
    **dict.fromkeys(
        ["AveragePool", "Conv", "ConvTranspose", "Gemm", "MaxPool", "Reciprocal", "Resize", "Sqrt"], FLOATS
    ),
    **dict.fromkeys(["Abs", "Add", "DepthToSpace", "Div", "Equal", "Greater", "Max", "Min", "Mul", "Neg"], NUMBERS),
    **dict.fromkeys(["Pad", "Pow", "ReduceMean", "ReduceProd", "ReduceSum", "ReduceSumSquare"], NUMBERS),
    **dict.fromkeys(["Relu", "Sign", "Sub"], NUMBERS),
    **dict.fromkeys(["Cast", "Concat", "Expand", "Identity", "Reshape", "Shape", "Slice", "Transpose"], ANY),
    **dict.fromkeys(["Squeeze", "Unsqueeze"], ANY),
}
DATA = {"Concat": None, "Resize": 1, "Pad": 1, "Reshape": 1, "Slice": 1, "Expand": 1, "Squeeze": 1, "Unsqueeze": 1}
"""How many of an operator's inputs are data, where not all are; reductions are covered by their name."""


def presets():
    """Each preset's objective with weights that it is for."""
    vgg, bank = random_weights("vgg19", 1), filterbank_weights()
    for name, preset in PRESETS.items():
        weights = bank if preset.weights == "filterbank" else vgg
        objective = preset.for_weights(weights).objective
        yield name, weights, preset.objective_at(weights, (160, 192)) if preset.smallest_grid else objective


def graphs(weights, objective, shape, precision):
    space = pixel_space(objective.convention)
    style = {tap: objective.statistic(tap) for tap in objective.style}
    options = {"pooling": objective.pooling, "space": space, "shape": shape}
    yield fused_graph(objective, weights, shape, precision)
    yield statistics_graph(weights, list(objective.content), style, precision=precision, **options)
    for piece in sliced(weights, objective.taps, precision, **options)[0]:
        yield piece.forward
        yield piece.gradient
    if precision == "fp32":
        yield forward_graph(weights, objective.taps, **options)
        calibration = calibration_graph(weights, objective.taps, space)
        if calibration.outputs:
            yield calibration


def undocumented(graph):
    """What the matrix does not have, one line each."""
    types = {
        name: onnx.TensorProto.DataType.Name(onnx.helper.np_dtype_to_tensor_dtype(dtype))
        for name, (dtype, _) in graph.infer_shapes().items()
    }
    constants = set(graph.constants)
    for node in graph.nodes:
        op, values = node.op_type, attributes(node)
        if op not in DOCUMENTED:
            yield f"{op} is not in the table"
            continue
        data = list(node.input[: 1 if op.startswith("Reduce") else DATA.get(op)]) + list(node.output)
        if op in {"Equal", "Greater"}:
            data = list(node.input)
        elif op == "Shape":
            data = [node.input[0]]
        for name in data:
            found = types.get(name, "an unknown type")
            if found not in DOCUMENTED[op]:
                yield f"{op} of {found}"
        # What "Restrictions" and the rows' notes say.
        fixed = [name for name in node.input[1:2] if name]
        if (op.startswith("Reduce") or op in {"Squeeze", "Unsqueeze"}) and not constants.issuperset(fixed):
            yield f"{op} whose axes are computed"
        if op.endswith("Pool"):
            plain = len(node.output) == 1 and set(values.get("dilations", [1])) == {1}
            if not plain or len(values["kernel_shape"]) not in (2, 3):
                yield f"{op} with {values}"
        if op == "Resize":
            way = (values["coordinate_transformation_mode"], values["mode"], values["nearest_mode"])
            if way != ("asymmetric", "nearest", "floor") or "axes" in values or values.get("antialias", 0):
                yield f"Resize with {values}"


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("name", PRESETS)
def test_graphs_use_what_tensorrt_documents(name, precision, all_presets):
    weights, objective = all_presets[name]
    count = 0
    # fp16 has bf16's nodes with other types, and a multiplication; one shape of it will do.
    for shape in [(160, 192)] if precision == "fp16" else [(160, 192), None]:
        for graph in graphs(weights, objective, shape, precision):
            assert sorted(set(undocumented(graph))) == []
            assert graph.opset == (BFLOAT16_OPSET if precision == "bf16" else OPSET)
            count += 1
    assert count > 3


@pytest.fixture(scope="module")
def all_presets():
    return {name: (weights, objective) for name, weights, objective in presets()}


def test_what_is_not_documented_is_found(shallow):
    graph = forward_graph(shallow, ["relu2_1"], shape=(16, 16))
    graph.add("Det", "relu2_1", name="determinant")
    graph.add("Cast", "relu2_1", name="whole", to=onnx.TensorProto.INT64)
    graph.add("AveragePool", "whole", name="pooled", kernel_shape=[2, 2])
    graph.add("MaxPool", "relu2_1", name="dilated", kernel_shape=[2, 2], dilations=[2, 2])
    graph.input("axes", (1,), np.int64)
    graph.add("ReduceSum", "relu2_1", "axes", name="summed")
    assert {line.split(" with")[0] for line in undocumented(graph)} == {
        "Det is not in the table",
        "AveragePool of INT64",
        "MaxPool",
        "ReduceSum whose axes are computed",
        "ReduceSum of an unknown type",  # since it has any shape
    }
