"""Lowered graphs: which tensor has which type, and that the numbers hold.

ONNX Runtime's CPU has few kernels for fp16, computes runs of fp16 nodes in float32 without rounding between, and has
none for bf16. So the numbers here come from `emulated` graphs, in which every node computes in float32 and its result
is rounded by explicit casts, as on tensor cores, which multiply half types and add in float32.
"""

from __future__ import annotations

from dataclasses import replace

import ml_dtypes
import numpy as np
import onnx
import pytest
import torch

from impasto.errors import GraphError, UnsupportedOpError
from impasto.export.autodiff import differentiate
from impasto.export.forward import forward_graph
from impasto.export.fused import GRADIENT_SCALE, fused_graph
from impasto.export.graph import BFLOAT16_OPSET, IR_VERSION, OPSET, Graph
from impasto.export.objective import Objective
from impasto.export.precision import NETWORK_OPS, PRECISIONS, element_type, features, lower, network_graph
from impasto.export.rescale import rescaled
from impasto.export.slices import cotangent, sliced
from impasto.export.statistics import statistics_graph
from impasto.models.conventions import CAFFE, UNIT, pixel_space
from impasto.models.random_weights import random_weights
from impasto.models.reference import Reference

HALF = {"fp16": np.dtype(np.float16), "bf16": np.dtype(ml_dtypes.bfloat16)}
TORCH = {"fp16": torch.float16, "bf16": torch.bfloat16}
ROUNDOFF = {"fp16": 2.0**-11, "bf16": 2.0**-8}
TERMS = {"Gemm", "ReduceSum", "ReduceSumSquare", "Pow", "Abs", "Sign", "Reciprocal"}
"""Operators that only terms use."""

STYLE = ("relu1_1", "relu2_1", "relu3_1", "relu4_1", "relu5_1")
DEEP = Objective({"relu4_2": 1.0}, dict.fromkeys(STYLE, 1.0), tv=1e-3)
SHALLOW = Objective({"conv2_2": 2.0}, {"relu1_1": 1.0, "pool1": 3.0, "relu3_1": 7.0}, tv=1e-4)
REAL = Objective({"relu3_4": 1.0}, dict.fromkeys(STYLE[:3], 1.0), tv=1e-3)
BANK = Objective(
    {"bank0": 1.0},
    {"bank0": 1.0, "level1": 1.0, "bank1": 2.0},
    statistics={"bank0": "covariance", "bank1": "covariance"},
    pixels="unit",
    convention="unit",
)


def is_half(dtype):
    return dtype in HALF.values()


def emulated(graph):
    """A graph of the same numbers in float32 tensors; half inputs, constants and outputs are float32, too."""
    types = graph.infer_shapes()
    half = {name for name, (dtype, _) in types.items() if is_half(dtype)}
    result = Graph(graph.name)
    for name, (dtype, shape) in graph.inputs.items():
        result.input(name, shape, np.float32 if name in half else dtype)
    for name, value in graph.constants.items():
        result.weight(name, value.astype(np.float32) if name in half else value)
    for node in graph.nodes:
        copy = onnx.NodeProto()
        copy.CopyFrom(node)
        rounded = node.output[0] in half
        if rounded:
            copy.name = copy.output[0] = f"{node.output[0]}.exact"
            for attribute in copy.attribute:
                if copy.op_type == "Cast" and attribute.name == "to":
                    attribute.i = onnx.TensorProto.FLOAT
        result.append(copy)
        if rounded:
            kind = onnx.helper.np_dtype_to_tensor_dtype(types[node.output[0]][0])
            narrow = result.add("Cast", copy.output[0], name=f"{node.output[0]}.half", to=kind)
            result.add("Cast", narrow, name=node.output[0], to=onnx.TensorProto.FLOAT)
    result.outputs = list(graph.outputs)
    return result


def distance(found, expected):
    """Relative, in L2."""
    expected = np.asarray(expected, np.float64)
    return np.linalg.norm(np.asarray(found, np.float64) - expected) / np.linalg.norm(expected)


# --- Types ------------------------------------------------------------------------------------------------------------


def well_typed(graph):
    """The types that strict inference finds, having checked the model."""
    model = graph.model()
    onnx.checker.check_model(model, full_check=True)
    return {name: dtype for name, (dtype, _) in graph.infer_shapes().items()}


@pytest.mark.parametrize("precision", HALF)
@pytest.mark.parametrize("pooling", ["max", "average"])
@pytest.mark.parametrize("shape", [None, (17, 22)], ids=["dynamic", "fixed"])
@pytest.mark.parametrize("tv_form", ["power", "absolute"])
def test_the_network_is_half_and_the_terms_are_not(shallow, precision, pooling, shape, tv_form):
    objective = replace(SHALLOW, pooling=pooling, tv_form=tv_form, pixels="unit", convention="unit")
    graph = fused_graph(objective, shallow, shape, precision)
    types = well_typed(graph)
    kind = HALF[precision]
    assert {types[name] for name in (*graph.inputs, *graph.outputs)} == {np.dtype(np.float32)}
    seen = set()
    for node in graph.nodes:
        found = {types[name] for name in (*node.input, *node.output) if name}
        seen.add(node.op_type)
        if node.op_type in {"Conv", "ConvTranspose", "Relu", "MaxPool", "AveragePool", "DepthToSpace"}:
            assert found == {kind}, node.name
        if node.op_type in {"Resize", "Greater", "Equal"} and any(map(is_half, found)):
            assert types[node.input[0]] == kind, node.name
        if node.op_type in TERMS:
            assert kind not in found, node.name
    assert {"Conv", "ConvTranspose", "Gemm", "ReduceSumSquare"} <= seen
    # Every constant of the network is stored in its type: nothing is cast again at each run.
    assert {types[name] for name in graph.constants if name.startswith("conv")} == {kind}
    assert (graph.opset, graph.model().ir_version) == ((BFLOAT16_OPSET, 10) if precision == "bf16" else (18, 8))


@pytest.mark.parametrize("precision", HALF)
def test_a_picture_is_cast_once_when_it_has_its_offset(shallow, precision):
    graph, _ = network_graph(shallow, ["relu1_1"], precision, space=UNIT)
    types = well_typed(graph)
    assert [node.op_type for node in graph.nodes] == ["Add", "Cast", "Conv", "Relu"]
    assert types["shifted"] == np.float32
    assert types["relu1_1"] == HALF[precision]


@pytest.mark.parametrize("precision", HALF)
def test_filters_are_scaled_in_float32(bank, precision):
    graph, factors = network_graph(bank, ["bank0", "level1", "bank1"], precision)
    types = well_typed(graph)
    assert set(factors.values()) == {1.0}
    for node in graph.nodes:
        if node.op_type in {"Mul", "Neg"}:
            assert {types[name] for name in (*node.input, *node.output)} == {np.dtype(np.float32)}
        if node.op_type in {"Conv", "Pad"}:
            assert types[node.input[0]] == types[node.output[0]] == HALF[precision]
    # The picture is read by several layers and cast for all of them at once.
    assert sum(node.op_type == "Cast" and "image" in node.input for node in graph.nodes) == 1


@pytest.mark.parametrize("precision", PRECISIONS)
def test_slices_exchange_the_type_of_the_precision(shallow, precision):
    taps = ["relu1_1", "pool1", "relu3_1"]
    slices, factors = sliced(shallow, taps, precision, shape=(16, 20))
    kind = element_type(precision)
    assert [piece.tap for piece in slices] == list(factors) == taps
    assert (set(factors.values()) == {1.0}) == (precision != "fp16")
    for piece in slices:
        forward, gradient = well_typed(piece.forward), well_typed(piece.gradient)
        for names, types in (
            (piece.inputs, forward),
            (piece.outputs, forward),
            (piece.residuals, gradient),
            (map(cotangent, piece.outputs), gradient),
            (map(cotangent, piece.inputs), gradient),
        ):
            for name in names:
                assert types[name] == (np.float32 if "image" in name else kind), name


def test_float32_is_left_as_it_is(shallow):
    plain = forward_graph(shallow, ["relu1_1", "relu2_1"], space=UNIT)
    graph, factors = network_graph(shallow, ["relu1_1", "relu2_1"], "fp32", space=UNIT)
    assert graph.digest() == features(graph, factors).digest() == plain.digest()
    assert graph.opset == OPSET
    assert graph.model().ir_version == IR_VERSION
    # A lowered copy leaves the graph that it is made from alone.
    before = plain.digest()
    lower(plain, "bf16")
    features(plain, dict.fromkeys(plain.outputs, 0.5))
    assert plain.digest() == before


@pytest.mark.parametrize("op", sorted(NETWORK_OPS))
def test_network_operators_take_half_types_and_return_them(op):
    """By ONNX's own definitions, at the opset of each precision."""
    for opset, kind in ((OPSET, "tensor(float16)"), (BFLOAT16_OPSET, "tensor(bfloat16)")):
        schema = onnx.defs.get_schema(op, opset)
        allowed = {c.type_param_str: c.allowed_type_strs for c in schema.type_constraints}
        main = schema.inputs[0].type_str
        assert kind in allowed[main]
        assert schema.outputs[0].type_str == main
        for operand in schema.inputs[1:]:
            # Of the same type, or whole numbers: pads, shapes, axes.
            floats = {"tensor(float)", kind} & set(allowed.get(operand.type_str, [operand.type_str]))
            assert operand.type_str == main or not floats


def test_what_has_no_half_form_is_refused():
    graph = Graph("odd")
    graph.input("image", (1, 3, 4, 4))
    graph.add("Softmax", "image", name="soft")
    graph.outputs = ["soft"]
    with pytest.raises(UnsupportedOpError, match=r"'soft': Softmax has no form in bf16"):
        lower(graph, "bf16")


def test_a_tensor_of_unknown_type_is_refused():
    """A reshape to a computed rank: shape inference gives up, and a cast might be missing."""
    graph = Graph("odd")
    graph.input("image", (1, 3, 4, 4))
    graph.input("shape", ("rank",), np.int64)
    graph.add("Relu", "image", name="relu")
    graph.add("Reshape", "relu", "shape", name="reshaped")
    graph.add("Relu", "reshaped", name="tap")
    graph.outputs = ["tap"]
    with pytest.raises(GraphError, match=r"the type of 'reshaped' cannot be inferred"):
        lower(graph, "fp16")


def test_constants_that_fp16_cannot_hold_are_refused():
    weights = random_weights("vgg11", 1, last_conv="conv1_1")
    huge = {**weights.tensors, "conv1_1.bias": np.full(64, 7e4, np.float32)}
    graph = forward_graph(replace(weights, tensors=huge), ["relu1_1"])
    with pytest.raises(GraphError, match=r"'conv1_1\.bias' reaches 70000, which fp16 cannot hold"):
        lower(graph, "fp16")
    assert lower(graph, "bf16").constants["conv1_1.bias"].dtype == HALF["bf16"]


# --- Numbers ----------------------------------------------------------------------------------------------------------

CASES = {"random": ("vgg19", DEEP, (64, 64)), "real": ("real_blocks", REAL, (48, 64))}


class Case:
    """An objective on weights at a picture, with targets that two other pictures measure in float64."""

    def __init__(self, weights, objective, size, picture):
        self.weights, self.size = weights, size
        self.objective = replace(objective, convention=weights.convention.name, pixels=weights.convention.name)
        self.image, content, style = (self.encode(picture(seed, *size)) for seed in (1, 2, 3))
        self.values = {"image": self.image}
        targets = {name: self.taps(image) for name, image in (("content", content), ("style", style))}
        for tap in self.objective.content:
            target = targets["content"][tap]
            self.set(f"content.{tap}", target)
            self.set(f"content.{tap}.weight", 1 / np.square(target).sum())
        for tap in self.objective.style:
            target = self.gram(torch.from_numpy(targets["style"][tap])).numpy()
            self.set(f"style.{tap}", target)
            self.set(f"style.{tap}.weight", 1 / np.square(target).sum())
            self.set(f"style.{tap}.scale", 1 / np.prod(targets["style"][tap].shape[2:]))
        # Total variation that is neither nothing nor everything.
        self.set("tv.weight", 1e-8)

    def set(self, name, value):
        self.values[name] = np.asarray(value, np.float32)

    def encode(self, rgb):
        return pixel_space(self.objective.pixels).encode(rgb)[None]

    @staticmethod
    def gram(features):
        flat = features[0].flatten(1)
        return flat @ flat.T / flat.shape[1]

    def taps(self, image):
        found = Reference(self.weights, self.objective.taps, dtype=torch.float64)(torch.from_numpy(image).double())
        return {tap: value.numpy() for tap, value in found.items()}

    def in_torch(self, dtype, weights=None, factors=None, scale=1.0):
        """Losses, gradient and the largest cotangent of a tap, the network in a type and the terms as graphs' are."""
        wide = torch.float64 if dtype == torch.float64 else torch.float32
        values = {name: torch.from_numpy(value).to(wide) for name, value in self.values.items()}
        image = values["image"].requires_grad_()
        network = Reference(weights or self.weights, self.objective.taps, dtype=dtype)
        taps = network(image.to(dtype))
        for value in taps.values():
            value.retain_grad()
        f = {tap: value.to(wide) / (factors or {}).get(tap, 1.0) for tap, value in taps.items()}
        losses = [
            ((f[t] - values[f"content.{t}"]) ** 2).sum() * values[f"content.{t}.weight"] for t in self.objective.content
        ]
        for t in self.objective.style:
            losses.append(((self.gram(f[t]) - values[f"style.{t}"]) ** 2).sum() * values[f"style.{t}.weight"])
        squares = sum((d**2).sum() for d in (image.diff(dim=2), image.diff(dim=3)))
        losses.append(0.5 * squares * values["tv.weight"])
        (sum(losses) * scale).backward()
        largest = max(float(value.grad.abs().max()) for value in taps.values())
        return [float(loss.detach()) for loss in losses], (image.grad / scale).numpy(), largest


@pytest.fixture(params=CASES, scope="module")
def case(request, picture):
    name, objective, size = CASES[request.param]
    return Case(request.getfixturevalue(name), objective, size, picture)


@pytest.fixture(scope="module")
def exact(case):
    return case.in_torch(torch.float64)


@pytest.fixture(scope="module")
def scale(case, exact):
    """A power of two that brings the largest cotangent of a tap to some hundreds, as a gradient scaler would find."""
    largest = case.in_torch(torch.float32, *rescaled(case.weights))[2]
    return 2.0 ** np.floor(np.log2(512 / largest))


@pytest.mark.parametrize("precision", HALF)
def test_the_gradient_is_as_good_as_torch_in_half(case, exact, scale, run, precision):
    """At most twice torch's own error, both against float64; torch is given our rescaled weights and our scale."""
    graph = fused_graph(case.objective, case.weights, case.size, precision)
    values = dict(case.values)
    weights, factors = case.weights, {}
    if precision == "fp16":
        weights, factors = rescaled(case.weights)
        values[GRADIENT_SCALE] = np.asarray(scale, np.float32)
    found = run(emulated(graph), values)
    losses, gradient, _ = exact
    _, torch_gradient, _ = case.in_torch(TORCH[precision], weights, factors, scale if precision == "fp16" else 1.0)
    assert np.isfinite(found["gradient"]).all()
    assert np.isfinite(torch_gradient).all()
    assert distance(found["gradient"], gradient) <= 2 * distance(torch_gradient, gradient)
    # A loss averages many activations, each off by a few roundings that are independent of the others'.
    names = graph.outputs[:-1]
    assert [float(found[name]) for name in names] == pytest.approx(losses, rel=10 * ROUNDOFF[precision])
    # The variation is of the picture in float32, and no network touches it.
    assert float(found["loss.tv"]) == pytest.approx(losses[-1], rel=1e-6)


def test_losses_do_not_depend_on_the_gradients_scale(case, scale, run):
    graph = emulated(fused_graph(case.objective, case.weights, case.size, "fp16"))
    one, other, none = (
        run(graph, case.values | {GRADIENT_SCALE: np.asarray(s, np.float32)})
        for s in (scale, scale / 4, 2.0**-40 * scale)
    )
    for name in graph.outputs[:-1]:
        assert one[name] == other[name] == none[name]
    # Powers of two cancel, but for cotangents so small that they are multiples of 2^-24.
    assert distance(other["gradient"], one["gradient"]) < 1e-3
    # Without a scale the network's share of the gradient would vanish, and all that is left is the variation's.
    assert distance(none["gradient"], one["gradient"]) > 0.5


def test_a_scale_that_is_too_large_shows(case, scale, run):
    graph = emulated(fused_graph(case.objective, case.weights, case.size, "fp16"))
    found = run(graph, case.values | {GRADIENT_SCALE: np.asarray(scale * 2.0**20, np.float32)})
    assert not np.isfinite(found["gradient"]).all()
    assert all(np.isfinite(found[name]) for name in graph.outputs[:-1])


@pytest.mark.parametrize("rgb", ["noise", "black", "white", "stripes"])
def test_no_activation_overflows_fp16(case, run, picture, rgb):
    """All of 0–255 pictures' activations stay at an eighth of fp16's range, at every layer."""
    pixels = {
        "noise": picture(9, *case.size),
        "black": np.zeros((*case.size, 3), np.float32),
        "white": np.ones((*case.size, 3), np.float32),
        "stripes": np.broadcast_to(np.arange(case.size[1])[:, None] // 3 % 2, (*case.size, 3)).astype(np.float32),
    }[rgb]
    every = [tap for tap in case.weights.taps if tap.startswith("conv")]
    graph, _ = network_graph(case.weights, every, "fp16", shape=case.size)
    for tap, value in run(emulated(graph), {"image": case.encode(pixels)}).items():
        assert np.abs(value).max() < 65504 / 8, tap


def test_weights_that_overflow_fp16_as_they_are_do_not_when_rescaled(run, picture):
    weights = random_weights("vgg11", 5, last_conv="conv2_1")
    large = {k: v * np.float32(1e3 if k == "conv1_1.weight" else 1) for k, v in weights.tensors.items()}
    weights = replace(weights, tensors=large)
    image = {"image": CAFFE.encode(picture(3, 20, 24))[None]}
    plain = forward_graph(weights, ["relu2_1"], shape=(20, 24))
    assert not np.isfinite(run(emulated(lower(plain, "fp16")), image)["relu2_1"]).any()
    graph, factors = network_graph(weights, ["relu2_1"], "fp16", shape=(20, 24))
    found = run(emulated(graph), image)["relu2_1"] / factors["relu2_1"]
    # Roundings of picture, weights and two layers' results.
    assert distance(found, run(plain, image)["relu2_1"]) < 4 * 2.0**-11


@pytest.mark.parametrize("precision", HALF)
def test_statistics_are_those_of_float32_to_the_networks_rounding(shallow, run, picture, precision):
    arguments = (shallow, ["relu1_1", "conv2_1"], {"pool1": "gram", "relu3_1": "covariance"})
    expected_graph = statistics_graph(*arguments, space=UNIT, shape=(19, 24))
    graph = statistics_graph(*arguments, space=UNIT, shape=(19, 24), precision=precision)
    assert graph.outputs == expected_graph.outputs
    image = {"image": UNIT.encode(picture(8, 19, 24))[None]}
    found, expected = run(emulated(graph), image), run(expected_graph, image)
    for name in graph.outputs:
        # Two roundings a layer, of weights and result, over five convolutions; products double them.
        assert found[name].dtype == np.float32
        assert 0 < distance(found[name], expected[name]) < 20 * ROUNDOFF[precision], name


@pytest.mark.parametrize("precision", HALF)
def test_statistics_of_banks(bank, run, calibration, picture, precision):
    size = (66, 70)
    style = {tap: BANK.statistic(tap) for tap in BANK.style}
    expected_graph = statistics_graph(bank, list(BANK.content), style, shape=size)
    graph = statistics_graph(bank, list(BANK.content), style, shape=size, precision=precision)
    values = {"image": bank.convention.encode(picture(8, *size))[None], **calibration}
    found, expected = run(emulated(graph), values), run(expected_graph, values)
    for name in graph.outputs:
        # Filters respond to differences of pixels, which a picture's rounding enlarges.
        assert 0 < distance(found[name], expected[name]) < 20 * ROUNDOFF[precision], name


@pytest.mark.parametrize("precision", HALF)
def test_gradients_of_banks(bank, run, calibration, picture, precision):
    size = (66, 70)
    graph, expected_graph = fused_graph(BANK, bank, size, precision), fused_graph(BANK, bank, size)
    well_typed(graph)
    values = {"image": bank.convention.encode(picture(8, *size))[None], **calibration}
    stream = np.random.RandomState(3)
    for name, (_, shape) in expected_graph.inputs.items():
        if name.endswith(".weight"):
            values[name] = np.asarray(1 / np.prod(expected_graph.inputs[name.removesuffix(".weight")][1]), np.float32)
        elif name.endswith(".scale"):
            tap = name.removeprefix("style.").removesuffix(".scale")
            values.setdefault(name, np.asarray(1 / np.prod(bank.backbone.grid(tap, size)), np.float32))
        else:
            values.setdefault(name, np.asarray(stream.standard_normal(shape), np.float32))
    values[GRADIENT_SCALE] = np.asarray(2.0**22, np.float32)
    found, expected = run(emulated(graph), values), run(expected_graph, values)
    for name in graph.outputs:
        # The picture's rounding, the filters', the response's, and those of the cotangents; a response near zero may
        # be rectified otherwise, which few are.
        assert 0 < distance(found[name], expected[name]) < 20 * ROUNDOFF[precision], name


@pytest.mark.parametrize("precision", HALF)
@pytest.mark.parametrize("pooling", ["max", "average"])
def test_chained_slices_are_the_whole(shallow, run, picture, precision, pooling):
    """To the last bit: between slices tensors are of the type that they have within."""
    taps, size = ["relu1_1", "pool1", "conv2_2", "relu3_1"], (18, 25)
    slices, factors = sliced(shallow, taps, precision, pooling=pooling, space=UNIT, shape=size)
    whole, _ = network_graph(shallow, taps, precision, pooling=pooling, space=UNIT, shape=size)
    values = {"image": UNIT.encode(picture(4, *size))[None]}
    kind, stream = HALF[precision], np.random.RandomState(7)

    types = whole.infer_shapes()
    seeds = {}
    for tap in taps:
        values[cotangent(tap)] = stream.standard_normal(types[tap][1]).astype(kind).astype(np.float32)
        seeds[tap] = whole.input(cotangent(tap), types[tap][1], kind)
    whole.outputs = [*taps, differentiate(whole, seeds, ["image"])["image"]]
    expected = run(emulated(whole), values)

    for piece in slices:
        values |= run(emulated(piece.forward), values)
    pending = {tap: values[cotangent(tap)] for tap in taps}
    for piece in reversed(slices):
        given = values | {cotangent(name): pending.pop(name) for name in piece.outputs}
        for name, value in run(emulated(piece.gradient), given).items():
            name = name.removeprefix("cotangent.")
            pending[name] = (pending[name] + value).astype(kind).astype(np.float32) if name in pending else value
    for tap in taps:
        np.testing.assert_array_equal(values[tap], expected[tap])
    np.testing.assert_array_equal(pending["image"], expected[whole.outputs[-1]])
    assert list(factors) == taps


def test_onnxruntime_takes_fp16_graphs_as_they_are(shallow, run, picture):
    size = (18, 25)
    case = Case(shallow, SHALLOW, size, picture)
    graph = fused_graph(case.objective, shallow, size, "fp16")
    values = case.values | {GRADIENT_SCALE: np.asarray(2.0**10, np.float32)}
    native, rounded = run(graph, values), run(emulated(graph), values)
    assert {value.dtype for value in native.values()} == {np.dtype(np.float32)}
    for name in graph.outputs[:-1]:
        assert float(native[name]) == pytest.approx(float(rounded[name]), rel=10 * ROUNDOFF["fp16"])
