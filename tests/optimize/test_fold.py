"""What nodes make of constants alone is computed beforehand, and nothing else changes."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

from impasto.export.forward import forward_graph
from impasto.export.graph import BFLOAT16_OPSET, OPSET, Graph
from impasto.export.slices import slice_graph
from impasto.optimize.fold import fold_constants


def run(graph, feeds):
    ort = pytest.importorskip("onnxruntime")
    session = ort.InferenceSession(graph.model().SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, feeds)


def test_gradients_convolve_with_constants_and_give_the_same(shallow):
    taps = ["relu1_2", "relu2_2", "conv3_1"]
    graph = forward_graph(shallow, taps, shape=(12, 17))
    random = np.random.default_rng(5)
    for piece in slice_graph(graph, graph.outputs):
        folded = fold_constants(piece.gradient)
        kernels = [node.input[1] for node in folded.nodes if node.op_type == "Conv"]
        assert kernels
        assert set(kernels) <= set(folded.constants)
        feeds = {
            name: random.standard_normal(shape).astype(dtype) for name, (dtype, shape) in piece.gradient.inputs.items()
        }
        # The same kernels to the bit, in the same convolutions.
        for ours, theirs in zip(run(folded, feeds), run(piece.gradient, feeds), strict=True):
            np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize(
    ("dtype", "opset"), [(np.float32, OPSET), (np.float16, OPSET), (ml_dtypes.bfloat16, BFLOAT16_OPSET)]
)
def test_a_turned_kernel_is_a_constant_of_its_type(make_graph, dtype, opset):
    graph = make_graph(1, dtype=dtype)
    graph.opset = opset
    folded = fold_constants(graph)
    assert folded.model().opset_import[0].version == opset
    assert [node.op_type for node in folded.nodes] == ["Conv", "Mul", "Conv"]
    # Nothing is kept that no node needs.
    assert set(folded.constants) == {name for node in folded.nodes for name in node.input} & set(folded.constants)
    assert all(value.dtype == dtype for value in folded.constants.values())
    turned = folded.constants[folded.nodes[-1].input[1]]
    assert turned.dtype == dtype
    np.testing.assert_array_equal(turned, graph.constants["kernel"].transpose(1, 0, 2, 3)[..., ::-1, ::-1])


def test_the_graph_that_was_given_stays_as_it_is(make_graph):
    graph = make_graph(2)
    before, nodes = graph.digest(), len(graph.nodes)
    fold_constants(graph)
    assert graph.digest() == before
    assert len(graph.nodes) == nodes


def test_outputs_and_what_depends_on_inputs_stay_nodes():
    graph = Graph("both")
    x = graph.input("x", (2, 3))
    fixed = graph.weight("fixed", np.arange(6, dtype=np.float32).reshape(3, 2))
    graph.add("Transpose", fixed, name="turned", perm=[1, 0])
    graph.add("Transpose", x, name="moved", perm=[1, 0])
    graph.outputs = ["turned", "moved"]
    folded = fold_constants(graph)
    assert [node.op_type for node in folded.nodes] == ["Transpose", "Transpose"]
    value = np.ones((2, 3), np.float32)
    np.testing.assert_array_equal(run(folded, {"x": value})[0], graph.constants["fixed"].T)
