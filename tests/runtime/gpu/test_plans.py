"""The device's two plans against the host's, on the emulation: kernels are ours, graphs run by ONNX Runtime's CPU.

Both compute the same slices with the same runtime, so no mask flips between them: what differs is how Gram matrices,
their gradient and the total variation are summed. That is float32 rounding, 1e-5 of a loss and of the gradient's norm
by the rule of parity where nothing flips.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from impasto.errors import DeviceError, LimitError
from impasto.export.objective import Objective
from impasto.models.random_weights import filterbank_weights, random_weights
from impasto.optimize.onnxruntime_gpu import Provider
from impasto.runtime.backends.cuda import CudaBackend
from impasto.runtime.backends.onnxruntime import OnnxRuntimeBackend
from impasto.runtime.gpu.onnxruntime import OnnxRuntimeGraph
from impasto.runtime.problem import Problem
from impasto.runtime.recipes import PRESETS
from impasto.runtime.targets import encoded, measure_targets
from tests.emulation.host import HostDevice, compiler

pytestmark = pytest.mark.skipif(compiler() is None, reason="no g++ to compile the kernels for the host")

CPU = Provider("CPUExecutionProvider", {}, memory="cpu")
SMALL = Objective(
    content={"relu2_2": 1.0},
    style={"relu1_1": 100.0, "relu2_1": 50.0, "relu2_2": 10.0},
    tv=0.1,
)
OBJECTIVES = {
    "content and style on one tap, and a total variation": SMALL,
    "covariances beside Gram matrices": replace(
        SMALL, statistics={"relu1_1": "covariance", "relu2_2": "covariance"}, tv_form="power"
    ),
    "average pooling, absolute differences": replace(SMALL, pooling="average", tv_form="absolute"),
    "content before a ReLU, no total variation": replace(SMALL, content={"conv2_2": 2.0}, tv=0.0),
    "a plain sum, whose target depends on the sizes": replace(SMALL, gram_norm="none", style_norm="gatys"),
    "content only": replace(SMALL, style={}, tv=0.0),
}


@pytest.fixture(scope="module")
def vgg():
    return random_weights("vgg19", 5, last_conv="conv2_2")


def problem(backend, weights, objective, shape, seed=0):
    """A problem with targets of two random pictures, and an image to evaluate."""
    random = np.random.default_rng(seed)
    objective = objective.canonical(weights)
    content = random.random((*shape, 3), np.float32)
    style = random.random((shape[0] + 3, shape[1] + 8, 3), np.float32)
    targets = measure_targets(backend, weights, objective, content, style)
    image = encoded(objective, random.random((*shape, 3), np.float32))
    return Problem(objective, weights, targets, shape), image


def on_device(precision="fp32"):
    return CudaBackend(precision=precision, device=HostDevice(), provider=CPU)


def assert_same(device, host, terms_to=1e-5, gradient_to=1e-5):
    assert list(device.terms) == list(host.terms)
    for term, loss in host.terms.items():
        assert device.terms[term] == pytest.approx(loss, rel=terms_to), term
    error = np.linalg.norm((device.gradient - host.gradient).astype(np.float64))
    assert error <= gradient_to * np.linalg.norm(host.gradient.astype(np.float64))


@pytest.mark.parametrize("objective", OBJECTIVES.values(), ids=OBJECTIVES)
@pytest.mark.parametrize("plan", ["sliced", "fused"])
def test_losses_and_gradient_are_those_of_the_hosts_plan(vgg, objective, plan):
    reference = OnnxRuntimeBackend()
    task, image = problem(reference, vgg, objective, (37, 26))
    backend = on_device()
    assert_same(backend.prepare(task, plan).evaluate(image), reference.prepare(task, plan).evaluate(image))
    backend.close()


@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (5, 2), (3, 3)])
def test_tiny_pictures(vgg, shape):
    objective = Objective(content={"relu1_2": 1.0}, style={"relu1_1": 1.0, "relu1_2": 1.0})
    reference = OnnxRuntimeBackend()
    task, image = problem(reference, vgg, objective, shape)
    backend = on_device()
    assert_same(backend.prepare(task, "sliced").evaluate(image), reference.prepare(task, "sliced").evaluate(image))
    backend.close()


def test_a_backbone_whose_image_and_levels_are_read_several_times():
    weights = filterbank_weights()
    objective = PRESETS["filterbank"].for_weights(weights).objective_at(weights, (40, 56))
    reference = OnnxRuntimeBackend()
    task, image = problem(reference, weights, objective, (40, 56))
    backend = on_device()
    host = reference.prepare(task, "sliced").evaluate(image)
    assert_same(backend.prepare(task, "sliced").evaluate(image), host)
    backend.close()


def test_the_next_job_of_the_same_shape_uses_the_same_memory_and_gets_its_own_targets(vgg):
    reference = OnnxRuntimeBackend()
    backend = on_device()
    found = []
    for seed in (0, 1):
        task, image = problem(reference, vgg, SMALL, (20, 24), seed)
        evaluator = backend.prepare(task, "sliced")
        assert_same(evaluator.evaluate(image), reference.prepare(task, "sliced").evaluate(image))
        found.append(evaluator.on_device)
    assert found[0] is found[1]
    backend.close()


def test_evaluating_again_gives_the_same_bits(vgg):
    backend = on_device()
    task, image = problem(backend, vgg, SMALL, (33, 18))
    evaluator = backend.prepare(task, "sliced")
    first = evaluator.evaluate(image)
    evaluator.evaluate(image[::, ::, ::-1])
    again = evaluator.evaluate(image)
    assert first.terms == again.terms
    assert np.array_equal(first.gradient, again.gradient)
    backend.close()


def test_targets_measured_by_the_device_are_the_hosts(vgg):
    reference, backend = OnnxRuntimeBackend(), on_device()
    ours, _ = problem(backend, vgg, OBJECTIVES["covariances beside Gram matrices"], (21, 30))
    theirs, _ = problem(reference, vgg, OBJECTIVES["covariances beside Gram matrices"], (21, 30))
    for mine, other in ((ours.targets.content, theirs.targets.content), (ours.targets.style, theirs.targets.style)):
        for tap in other:
            np.testing.assert_allclose(mine[tap], other[tap], rtol=1e-5, atol=1e-5 * np.abs(other[tap]).max())
    backend.close()


@pytest.mark.parametrize("weight", [1e-8, 1.0, 1e8])
@pytest.mark.parametrize("plan", ["sliced", "fused"])
def test_in_half_precision_the_gradient_does_not_depend_on_the_scale_of_the_loss(vgg, plan, weight):
    """fp16 has 11 bits: sums of many rounded terms come within 2⁻⁸ of float32's direction and length.

    Of every cotangent, of the weights and of the activations each element is off by at most 2⁻¹¹; a chain of four
    convolutions and two statistics rounds about a dozen times, and errors that are independent add up by their root.
    """
    reference, backend = OnnxRuntimeBackend(), on_device("fp16")
    objective = SMALL.scaled(weight)
    task, image = problem(backend, vgg, objective, (32, 32))
    device = backend.prepare(task, plan).evaluate(image)
    exact, _ = problem(reference, vgg, objective, (32, 32))
    assert_same(device, reference.prepare(exact, "fused").evaluate(image), terms_to=2**-8, gradient_to=2**-5)
    backend.close()


@pytest.fixture
def events(monkeypatch):
    """What happens to graphs and to the device, in order."""
    found = []
    made, close = OnnxRuntimeGraph.__init__, OnnxRuntimeGraph.close

    def record_made(self, *arguments):
        made(self, *arguments)
        found.append(("made", id(self)))

    def record_close(self):
        found.append(("closed", id(self)))
        close(self)

    monkeypatch.setattr(OnnxRuntimeGraph, "__init__", record_made)
    monkeypatch.setattr(OnnxRuntimeGraph, "close", record_close)
    monkeypatch.setattr(HostDevice, "synchronize", lambda _: found.append(("waited", 0)))
    return found


def settled(events):
    """Tell whether every graph was closed, once, after a wait, and none was made after that."""
    attempts, made, waited = 0, set(), False
    for event, graph in events:
        match event:
            case "made":
                made.add(graph)
                waited = False
            case "waited":
                waited = True
            case "closed":
                assert waited
                made.remove(graph)
                attempts += not made
    assert not made
    return attempts


@pytest.mark.parametrize("plan", ["sliced", "fused"])
def test_a_plan_waits_before_it_closes_its_graphs(vgg, events, plan):
    task, image = problem(OnnxRuntimeBackend(), vgg, SMALL, (9, 8))
    backend = on_device()
    backend.prepare(task, plan).evaluate(image)
    assert events
    backend.close()
    assert settled(events) == 1


@pytest.mark.parametrize("share", [0.001, 0.5, 0.999])
@pytest.mark.parametrize("plan", ["sliced", "fused"])
def test_a_plan_without_room_closes_every_graph_before_the_next_attempt_makes_its_own(vgg, events, plan, share):
    task, _ = problem(OnnxRuntimeBackend(), vgg, SMALL, (9, 8))
    backend = on_device()
    whole = backend.prepare(task, plan).on_device.nbytes
    backend.close()
    events.clear()
    device = HostDevice()
    device.memory_limit = int(share * whole)
    backend = CudaBackend(precision="fp32", device=device, provider=CPU)
    with pytest.raises(LimitError):
        backend.prepare(task, plan)
    assert settled(events) == 2
    assert device.allocated_bytes == 0


def test_a_device_that_has_failed_does_not_keep_a_plan_from_closing(vgg, events, monkeypatch):
    def fail(_):
        events.append(("waited", 0))
        raise DeviceError("gone")

    task, _ = problem(OnnxRuntimeBackend(), vgg, SMALL, (9, 8))
    backend = on_device()
    backend.prepare(task, "sliced")
    monkeypatch.setattr(HostDevice, "synchronize", fail)
    backend.close()
    assert settled(events) == 1
    assert backend.device.allocated_bytes == 0
