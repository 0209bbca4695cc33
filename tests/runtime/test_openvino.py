"""OpenVINO as a backend: precisions, targets, sessions; the contract and parity in float32 are in test_backends.py."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from impasto.errors import GraphError, LimitError, UnavailableError, UnknownNameError, UsageError
from impasto.export.graph import Graph
from impasto.export.objective import Objective, Targets
from impasto.models.weights import Weights
from impasto.optimize.cache import EngineCache
from impasto.optimize.openvino import Engine
from impasto.runtime.backends import openvino as module
from impasto.runtime.backends.openvino import OpenVinoBackend
from impasto.runtime.backends.select import open_automatic, open_backend
from impasto.runtime.backends.torch import TorchBackend
from impasto.runtime.problem import Problem
from impasto.runtime.recipes import find_preset
from impasto.runtime.stylizer import Stylizer
from impasto.runtime.targets import encoded, measure_targets

ov = pytest.importorskip("openvino", reason="openvino is not installed")

OBJECTIVE = Objective(
    content={"conv2_2": 2.0, "relu2_1": 0.5},
    style={"relu1_1": 1.0, "pool1": 3.0, "relu2_1": 10.0, "relu3_1": 7.0},
    tv=1e-4,
)

# Largest relative error of a loss and of the gradient, by precision. One rounding is 2⁻⁹ of bf16's and 2⁻¹² of fp16's
# numbers; a dozen layers forward and back make it tens of that in the gradient of this random network, for each ReLU
# and pooling whose inputs are closer than the rounding lets another branch pass.
ERRORS = {"bf16": (0.03, 0.25), "fp16": (0.004, 0.05)}


@pytest.fixture
def every_precision(monkeypatch):
    """Every precision is taken for native: where it is not, OpenVINO emulates it, slowly."""
    monkeypatch.setattr(module, "native_precisions", lambda: ("fp32", "bf16", "fp16"))


def evaluate(backend, weights, objective, image, content, style):
    targets = measure_targets(backend, weights, objective, content, style)
    problem = Problem(objective.canonical(weights), weights, targets, content.shape[:2])
    losses = backend.prepare(problem, "fused").evaluate(image)
    return dict(losses.terms), losses.gradient.astype(np.float64)


@pytest.mark.parametrize("scale", [1.0, 1e-12])
@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_is_near_float64(every_precision, shallow, picture, precision, scale):
    """The smaller objective's gradient would be zero in fp16, if it were not scaled on its way."""
    objective = OBJECTIVE.scaled(scale)
    case = encoded(objective, picture(3, 22, 31)), picture(1, 22, 31), picture(2, 27, 18)
    terms, gradient = evaluate(OpenVinoBackend(precision=precision), shallow, objective, *case)
    wanted_terms, wanted = evaluate(TorchBackend(torch.float64), shallow, objective, *case)
    loss_error, gradient_error = ERRORS[precision]
    assert terms == pytest.approx(wanted_terms, rel=loss_error)
    error = np.linalg.norm(gradient - wanted)
    assert error <= gradient_error * np.linalg.norm(wanted)
    # And it is of that precision: float32's error is a thousandth of this.
    assert error >= 1e-3 * np.linalg.norm(wanted)


def test_gram_matrices_are_float32_in_a_bf16_network(every_precision, shallow):
    """Features that bf16 holds exactly, and a target 2⁻¹² away: in bf16 the Gram matrix would be rounded by 2⁻⁹."""
    tensors = {name: np.zeros_like(value) for name, value in shallow.tensors.items()}
    for channel in range(64):
        tensors["conv1_1.weight"][channel, channel % 3, 1, 1] = 1.0
    weights = Weights("copies", shallow.backbone, shallow.convention, tensors)
    image = np.random.default_rng(1).integers(0, 256, (1, 3, 21, 30)).astype(np.float32)
    features = image[0].reshape(3, -1)[np.arange(64) % 3].astype(np.float64)
    gram = features @ features.T / features.shape[1]
    objective = Objective(content={}, style={"relu1_1": 1.0}, gram_norm="positions", style_norm="sum")
    targets = Targets({}, {"relu1_1": (gram * (1 + 2.0**-12)).astype(np.float32)}, {"relu1_1": features.shape[1]})
    backend = OpenVinoBackend(precision="bf16")
    losses = backend.prepare(Problem(objective, weights, targets, image.shape[2:]), "fused").evaluate(image)
    # Float32 rounds both sides of a difference of 2⁻¹² by 2⁻²⁴, and sums a little more: 2⁻¹⁰ of the loss.
    assert losses.total == pytest.approx(float(np.sum((gram * 2.0**-12) ** 2)), rel=1e-2)


def test_targets_are_measured_in_float32(every_precision, shallow, picture):
    image = encoded(OBJECTIVE, picture(4, 22, 31))
    asked = shallow, OBJECTIVE, image, ("relu2_1",), ("pool1",), {}
    found, wanted = (OpenVinoBackend(precision=precision).measure(*asked) for precision in ("bf16", "fp32"))
    np.testing.assert_array_equal(found.activations["relu2_1"], wanted.activations["relu2_1"])
    np.testing.assert_array_equal(found.style["pool1"], wanted.style["pool1"])


def test_what_was_measured_stays_when_another_picture_is(shallow, picture):
    backend = OpenVinoBackend(precision="fp32")
    asked = ("relu2_1",), ("pool1",), {}
    first = backend.measure(shallow, OBJECTIVE, encoded(OBJECTIVE, picture(4, 22, 31)), *asked)
    kept = first.activations["relu2_1"].copy(), first.style["pool1"].copy()
    backend.measure(shallow, OBJECTIVE, encoded(OBJECTIVE, picture(5, 22, 31)), *asked)
    np.testing.assert_array_equal(first.activations["relu2_1"], kept[0])
    np.testing.assert_array_equal(first.style["pool1"], kept[1])


def test_an_engine_from_the_cache_gives_the_same_picture(every_precision, shallow, picture, tmp_path):
    case = encoded(OBJECTIVE, picture(3, 22, 31)), picture(1, 22, 31), picture(2, 27, 18)
    plain = evaluate(OpenVinoBackend(precision="bf16"), shallow, OBJECTIVE, *case)
    with EngineCache(tmp_path / "engines") as cache:
        for _ in range(2):
            found = evaluate(OpenVinoBackend(cache, precision="bf16"), shallow, OBJECTIVE, *case)
            assert found[0] == plain[0]
            np.testing.assert_array_equal(found[1], plain[1])
        # What measures targets, and the objective's.
        assert sorted(entry.key.precision for entry in cache.entries()) == ["bf16", "fp32"]


@pytest.mark.parametrize(
    ("native", "default"),
    [(("fp32",), "fp32"), (("fp32", "bf16"), "bf16"), (("fp32", "fp16"), "fp32"), (("fp32", "bf16", "fp16"), "bf16")],
)
def test_bf16_is_the_default_where_it_is_native(native, default, monkeypatch):
    monkeypatch.setattr(module, "native_precisions", lambda: native)
    assert OpenVinoBackend().precision == default
    for precision in native:
        assert OpenVinoBackend(precision=precision).precision == precision


def test_networks_with_filters_are_in_float32_unless_bf16_is_asked_for(every_precision, shallow, bank, picture):
    objective = Objective(content={"bank1": 1.0}, style={}, pixels="unit", convention="unit")
    of_bank = bank, objective, encoded(objective, picture(3, 22, 31)), picture(1, 22, 31), picture(2, 27, 18)
    of_vgg = shallow, OBJECTIVE, encoded(OBJECTIVE, picture(3, 22, 31)), picture(1, 22, 31), picture(2, 27, 18)
    found = OpenVinoBackend()
    expected = evaluate(OpenVinoBackend(precision="fp32"), *of_bank)
    for case, precision in ((of_vgg, "bf16"), (of_bank, "fp32"), (of_vgg, "bf16")):
        terms, _ = evaluate(found, *case)
        assert found.precision == precision
        assert (terms == expected[0]) is (case is of_bank)
    asked = OpenVinoBackend(precision="bf16")
    assert evaluate(asked, *of_bank)[0] != expected[0]
    assert asked.precision == "bf16"


@pytest.mark.parametrize(
    ("preset", "plan", "precision"),
    [("filterbank", None, "fp32"), ("pytorch", None, "bf16"), ("pytorch", "sliced", "fp32")],
)
def test_a_stylizer_knows_its_precision_before_it_paints(every_precision, shallow, bank, preset, plan, precision):
    """By it memory is foretold, and a checkpoint tells whether it may go on."""
    weights = bank if preset == "filterbank" else shallow
    with Stylizer(find_preset(preset), weights=weights, backend="openvino", plan=plan, cache=False) as stylizer:
        assert stylizer.backend.precision == precision


def test_a_precision_that_the_cpu_would_emulate_is_refused_with_the_reason(monkeypatch):
    monkeypatch.setattr(module, "native_precisions", lambda: ("fp32",))
    with pytest.raises(UsageError, match=r"no instructions that multiply bf16.*--precision fp32"):
        open_backend("openvino", precision="bf16")
    with pytest.raises(UsageError, match=r"no precision 'tf32': choose among fp32"):
        open_backend("openvino", precision="tf32")


def test_the_sliced_plan_is_there_in_float32_alone(every_precision, shallow, picture):
    backend = OpenVinoBackend(precision="bf16")
    targets = measure_targets(backend, shallow, OBJECTIVE, picture(1, 22, 31), picture(2, 22, 31))
    with pytest.raises(UsageError, match="no plan 'sliced' in bf16: take fused"):
        backend.prepare(Problem(OBJECTIVE, shallow, targets, (22, 31)), "sliced")


def test_other_devices_are_named_after_a_colon(monkeypatch):
    monkeypatch.setattr(ov.Core, "available_devices", property(lambda _: ["CPU", "GPU"]))
    assert open_backend("openvino:CPU").name == "openvino"
    found = open_backend("openvino:GPU")
    assert (found.name, found.precision) == ("openvino:GPU", "fp32")
    with pytest.raises(UsageError, match="on GPU has no precision 'bf16'"):
        open_backend("openvino:GPU", precision="bf16")
    with pytest.raises(UnavailableError, match="finds no NPU here"):
        open_backend("openvino:NPU")
    with pytest.raises(UnknownNameError, match="XPU"):
        open_backend("openvino:XPU")


@pytest.fixture
def exact_by_default():
    """What ``auto`` stands for is looked at here."""


def test_auto_takes_it_before_onnxruntime(monkeypatch):
    monkeypatch.setattr("impasto.runtime.backends.select.find_spec", lambda name: name == "openvino" or None)
    backend, passed = open_automatic()
    assert backend.name == "openvino"
    assert set(passed) == {"tensorrt", "cuda"}
    # Where it cannot do what was asked for, the next one's reason is told too.
    with pytest.raises(UnavailableError, match=r"openvino: .*'tf32'.*; onnxruntime: .*'tf32'"):
        open_automatic(precision="tf32")


@pytest.mark.parametrize(
    ("cause", "kind", "message"),
    [
        (MemoryError(), LimitError, "lower --size"),
        (RuntimeError("Exception from a:\nstd::bad_alloc\n"), LimitError, "lower --size"),
        (RuntimeError("Exception from a:\nshapes differ\n"), GraphError, "cannot run 'g': shapes differ"),
    ],
)
def test_a_run_that_fails_is_one_of_our_errors(cause, kind, message):
    class Failing:
        def create_infer_request(self):
            return self

        def set_tensor(self, name, tensor):
            pass

        def infer(self):
            raise cause

    graph = Graph("g")
    graph.outputs = [graph.add("Relu", graph.input("image", (1, 3, 2, 2)), name="result")]
    session = module._Session(graph, Engine(Failing()))
    with pytest.raises(kind, match=message):
        session.run({"image": np.zeros((1, 3, 2, 2), np.float32)})
