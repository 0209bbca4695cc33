"""Reading models of other makers: versions, habits and damage."""

import numpy as np
import onnx
import onnxruntime
import pytest
from google.protobuf.message import DecodeError
from onnx import TensorProto, helper, numpy_helper

from impasto.errors import GraphError, UnsupportedOpError
from impasto.export.autodiff import differentiate
from impasto.export.graph import graph_from_model

IR_OF_OPSET = {9: 4, 11: 6, 13: 7, 15: 8, 17: 8, 18: 8, 19: 9, 20: 9, 21: 10, 22: 10}
WEIGHTS = np.random.default_rng(5).standard_normal((4, 3, 3, 3)).astype(np.float32)


def tensor(value, name):
    return numpy_helper.from_array(np.asarray(value), name)


def model(nodes, initializers=(), *, opset=18, ir=None, inputs=(), out=(None, None), domains=()):
    graph = helper.make_graph(
        nodes,
        "made elsewhere",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, "h", "w"]), *inputs],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, out)],
        list(initializers),
    )
    imports = [helper.make_opsetid("", opset), *(helper.make_opsetid(domain, 1) for domain in domains)]
    return helper.make_model(graph, opset_imports=imports, ir_version=ir or IR_OF_OPSET[opset])


def classifier(opset, **options):
    """A small classifier in the words of its opset: axes and paddings moved from attributes to inputs over time."""
    initializers = [tensor(WEIGHTS, "w"), tensor(np.array([1, -1]), "flat")]
    nodes = [helper.make_node("Pad", ["x"], ["p"], mode="edge", pads=[0, 0, 1, 1, 0, 0, 1, 1])]
    if opset >= 11:
        nodes = [helper.make_node("Pad", ["x", "pads"], ["p"], mode="edge")]
        initializers.append(tensor(np.array([0, 0, 1, 1, 0, 0, 1, 1]), "pads"))
    nodes += [
        helper.make_node("Conv", ["p", "w"], ["c"], kernel_shape=[3, 3]),
        helper.make_node("Relu", ["c"], ["r"]),
        helper.make_node("MaxPool", ["r"], ["m"], kernel_shape=[2, 2], strides=[2, 2]),
        helper.make_node("Dropout", ["m"], ["d"]),
    ]
    if opset >= 18:
        nodes.append(helper.make_node("ReduceMean", ["d", "axes"], ["g"]))
        initializers.append(tensor(np.array([2, 3]), "axes"))
    else:
        nodes.append(helper.make_node("ReduceMean", ["d"], ["g"], axes=[2, 3]))
    nodes += [
        helper.make_node("Reshape", ["g", "flat"], ["f"]),
        helper.make_node("LogSoftmax", ["f"], ["y"], axis=1),
    ]
    return model(nodes, initializers, opset=opset, **options)


def gradient_of(graph):
    graph = graph.copy("gradient")
    graph.input("dy", (1, 4))
    graph.outputs = ["y", differentiate(graph, {"y": "dy"}, ["x"])["x"]]
    graph.prune()
    return graph


FEEDS = {
    "x": np.random.default_rng(6).standard_normal((1, 3, 7, 6)).astype(np.float32),
    "dy": np.array([[1.0, -2.0, 0.5, 3.0]], np.float32),
}


@pytest.mark.parametrize("opset", IR_OF_OPSET)
def test_opsets_older_and_newer(on_onnxruntime, opset):
    source = classifier(opset)
    session = onnxruntime.InferenceSession(source.SerializeToString(), providers=["CPUExecutionProvider"])
    (y,) = session.run(None, {"x": FEEDS["x"]})
    have, dx = on_onnxruntime(gradient_of(graph_from_model(source)), FEEDS)
    _, want = on_onnxruntime(gradient_of(graph_from_model(classifier(18))), FEEDS)
    # The same nodes in the same order, but for what the conversion rewrites: float32 sums of 27 terms.
    assert np.allclose(have, y, rtol=0, atol=1e-6)
    assert np.allclose(dx, want, rtol=0, atol=1e-6)
    assert np.abs(dx).max() > 0.1


def test_softmax_before_opset_13_flattened(on_onnxruntime):
    # There, axis=1 meant "over all axes from 1 on".
    source = model([helper.make_node("Softmax", ["x"], ["y"], axis=1)], opset=11, out=[1, 3, "h", "w"])
    graph = graph_from_model(source)
    graph.input("dy", (1, 3, "h", "w"))
    graph.outputs = ["y", differentiate(graph, {"y": "dy"}, ["x"])["x"]]
    dy = np.random.default_rng(7).standard_normal((1, 3, 7, 6)).astype(np.float32)
    y, dx = on_onnxruntime(graph, {"x": FEEDS["x"], "dy": dy})
    x = FEEDS["x"].astype(np.float64)
    want = np.exp(x) / np.exp(x).sum()
    assert np.allclose(y, want, rtol=1e-5, atol=1e-7)  # a sum of 126 exponentials in float32
    assert np.allclose(dx, want * (dy - (dy * want).sum()), rtol=0, atol=1e-6)


@pytest.mark.parametrize("opset", [19, 21])
def test_attributes_of_newer_opsets_at_their_defaults(opset):
    source = model([helper.make_node("Cast", ["x"], ["y"], to=1, saturate=1)], opset=opset, out=[1, 3, "h", "w"])
    (node,) = graph_from_model(source).nodes
    assert [a.name for a in node.attribute] == ["to"]
    source = model([helper.make_node("Cast", ["x"], ["y"], to=1, saturate=0)], opset=opset, out=[1, 3, "h", "w"])
    with pytest.raises(GraphError, match=r"not a valid ONNX model: .*saturate"):
        graph_from_model(source)


def test_the_model_that_was_read_is_leftexclusive():
    source = classifier(13)
    before = source.SerializeToString()
    graph_from_model(source)
    assert source.SerializeToString() == before


def test_initializers_listed_as_inputs_are_constants():
    # Up to IR 3 every initializer had to be an input as well.
    value = helper.make_tensor_value_info("w", TensorProto.FLOAT, WEIGHTS.shape)
    source = model(
        [helper.make_node("Conv", ["x", "w"], ["y"])],
        [tensor(WEIGHTS, "w")],
        opset=9,
        ir=3,
        inputs=[value],
        out=[1, 4, None, None],
    )
    graph = graph_from_model(source)
    assert list(graph.inputs) == ["x"]
    assert np.array_equal(graph.constants["w"], WEIGHTS)


CONSTANTS = [
    ({"value": tensor(np.float32(2.5), "v")}, np.float32(2.5)),
    ({"value_float": 2.5}, np.float32(2.5)),
    ({"value_floats": [2.5, 1.0]}, np.array([2.5, 1.0], np.float32)),
    ({"value_int": -3}, np.int64(-3)),
    ({"value_ints": [1, -2]}, np.array([1, -2])),
]


@pytest.mark.parametrize(("attribute", "want"), CONSTANTS, ids=[next(iter(a)) for a, _ in CONSTANTS])
def test_constant_nodes(attribute, want):
    nodes = [
        helper.make_node("Constant", [], ["k"], **attribute),
        helper.make_node("Cast", ["k"], ["f"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["x", "f"], ["y"]),
    ]
    if want.ndim:
        nodes[-1] = helper.make_node("Identity", ["x"], ["y"])
    graph = graph_from_model(model(nodes, out=[1, 3, None, None]))
    assert graph.nodes[0].op_type == "Cast"
    assert graph.constants["k"].dtype == want.dtype
    assert np.array_equal(graph.constants["k"], want)


def test_constants_of_strings_are_refused():
    nodes = [
        helper.make_node("Constant", [], ["k"], value_string="word"),
        helper.make_node("Identity", ["x"], ["y"]),
    ]
    with pytest.raises(GraphError, match="node 'k': a Constant of an unknown kind"):
        graph_from_model(model(nodes, out=[1, 3, None, None]))


@pytest.mark.parametrize("present", [False, True])
def test_weights_in_another_file_must_be_loaded_with_the_model(tmp_path, monkeypatch, present):
    source = model([helper.make_node("Conv", ["x", "w"], ["y"])], [tensor(WEIGHTS, "w")], out=[1, 4, None, None])
    path = tmp_path / "model.onnx"
    onnx.save_model(source, path, save_as_external_data=True, location="weights.bin", size_threshold=0)
    monkeypatch.chdir(tmp_path)  # found by chance is not good enough: the data belong to the path of the model
    if not present:
        (tmp_path / "weights.bin").unlink()
    with pytest.raises(GraphError, match=r"the data of 'w' are in another file: .*onnx\.load"):
        graph_from_model(onnx.load(path, load_external_data=False))
    if present:
        assert np.array_equal(graph_from_model(onnx.load(path)).constants["w"], WEIGHTS)


def test_constants_in_another_file_too():
    value = tensor(np.zeros(4, np.float32), "")
    value.ClearField("raw_data")
    value.data_location = TensorProto.EXTERNAL
    value.external_data.add(key="location", value="../../etc/passwd")
    nodes = [helper.make_node("Constant", [], ["k"], value=value), helper.make_node("Identity", ["x"], ["y"])]
    with pytest.raises(GraphError, match="are in another file"):
        graph_from_model(model(nodes, out=[1, 3, None, None]))


def test_operators_of_other_domains_name_themselves():
    nodes = [
        helper.make_node("FusedConv", ["x", "w"], ["c"], domain="com.microsoft", name="fused"),
        helper.make_node("Relu", ["c"], ["y"]),
    ]
    source = model(nodes, [tensor(WEIGHTS, "w")], domains=["com.microsoft"], out=[1, 4, None, None])
    with pytest.raises(UnsupportedOpError, match=r"node 'fused': com\.microsoft::FusedConv"):
        graph_from_model(source)


def test_an_unnamed_node_is_called_by_its_output():
    nodes = [helper.make_node("Gelu", ["x"], ["y"], domain="somewhere")]
    with pytest.raises(UnsupportedOpError, match="node 'y': somewhere::Gelu"):
        graph_from_model(model(nodes, domains=["somewhere"], out=[1, 3, None, None]))


def test_operators_that_opset_18_lacks():
    with pytest.raises(GraphError, match="not a valid ONNX model"):
        graph_from_model(model([helper.make_node("Gelu", ["x"], ["y"])], opset=20, out=[1, 3, None, None]))


def test_control_flow_is_refused():
    branches = {}
    for name in ("then_branch", "else_branch"):
        out = helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 3, None, None])
        branches[name] = helper.make_graph([helper.make_node("Relu", ["x"], [name])], name, [], [out])
    nodes = [helper.make_node("If", ["flag"], ["y"], name="choice", **branches)]
    with pytest.raises(GraphError, match=r"node 'choice' \(If\) holds subgraphs"):
        graph_from_model(model(nodes, [tensor(np.array(True), "flag")], out=[1, 3, None, None]))


def test_sparse_weights_are_refused():
    source = model([helper.make_node("Relu", ["x"], ["y"])], out=[1, 3, None, None])
    source.graph.sparse_initializer.append(
        helper.make_sparse_tensor(tensor(np.ones(1, np.float32), "s"), tensor(np.zeros(1, np.int64), "i"), [4])
    )
    with pytest.raises(GraphError, match="sparse weights are not read"):
        graph_from_model(source)


def test_inputs_that_are_no_tensors():
    value = helper.make_tensor_sequence_value_info("list", TensorProto.FLOAT, [None])
    nodes = [helper.make_node("SequenceAt", ["list", "first"], ["t"]), helper.make_node("Add", ["x", "t"], ["y"])]
    with pytest.raises(GraphError, match="'list' is not a tensor of numbers"):
        graph_from_model(model(nodes, [tensor(np.array(0), "first")], inputs=[value], out=[1, 3, None, None]))


def test_models_that_are_nothing():
    with pytest.raises(GraphError, match="not a valid ONNX model"):
        graph_from_model(onnx.ModelProto())
    without_opset = model([helper.make_node("Relu", ["x"], ["y"])], out=[1, 3, None, None])
    del without_opset.opset_import[:]
    with pytest.raises(GraphError, match="not a valid ONNX model"):
        graph_from_model(without_opset)


DAMAGES = {
    "an input that nothing makes": lambda m: m.graph.node[1].input.__setitem__(0, "nowhere"),
    "a tensor made twice": lambda m: m.graph.node[2].output.__setitem__(0, "c"),
    "an unknown operator": lambda m: setattr(m.graph.node[2], "op_type", "Rectify"),
    "an unknown attribute": lambda m: m.graph.node[2].attribute.append(helper.make_attribute("slope", 2.0)),
    "an unknown element type": lambda m: setattr(m.graph.input[0].type.tensor_type, "elem_type", 99),
    "weights cut short": lambda m: setattr(m.graph.initializer[0], "raw_data", b"123"),
    "weights of another shape": lambda m: m.graph.initializer[0].dims.__setitem__(0, 5),
    "an opset of the future": lambda m: setattr(m.opset_import[0], "version", 10_000),
    "an IR of the future": lambda m: setattr(m, "ir_version", 10_000),
    "an opset of no number": lambda m: setattr(m.opset_import[0], "version", -1),
    "no nodes": lambda m: m.graph.ClearField("node"),
    "no graph": lambda m: m.ClearField("graph"),
    "a node without outputs": lambda m: m.graph.node[2].ClearField("output"),
    "bytes for a word": lambda m: setattr(m.graph.node[0].attribute[0], "s", b"\xff\xfe"),
}


@pytest.mark.parametrize("opset", [13, 18, 21])
@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_models(damage, opset):
    broken = classifier(opset)
    DAMAGES[damage](broken)
    with pytest.raises(GraphError) as caught:
        gradient_of(graph_from_model(broken)).model()
    assert "\n" not in str(caught.value)


def test_a_size_whose_name_is_no_text():
    source = model([helper.make_node("Relu", ["x"], ["y"])], out=[1, 3, "sideways", None])
    data = source.SerializeToString()
    source.ParseFromString(data.replace(b"\x01h", b"\x01\xff"))
    with pytest.raises(GraphError, match="'x' has a dimension whose name is not UTF-8"):
        graph_from_model(source)


@pytest.mark.parametrize("seed", range(60))
def test_garbage_ends_in_a_graph_or_a_typed_error(seed):
    rng = np.random.default_rng(seed)
    data = bytearray(classifier(18 if seed % 2 else 13).SerializeToString())
    # The names, types and numbers around the weights, not the weights themselves.
    if seed % 3:
        for position in rng.integers(0, len(data), 12):
            data[position] = rng.integers(0, 256)
    else:
        del data[rng.integers(1, len(data)) :]
    broken = onnx.ModelProto()
    try:
        broken.ParseFromString(bytes(data))
    except DecodeError:
        return  # such bytes never become a model
    try:
        graph = gradient_of(graph_from_model(broken))
    except GraphError:
        return
    graph.model()
