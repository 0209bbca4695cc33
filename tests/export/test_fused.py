"""The fused graph as an artifact; its numbers are held to float64 in tests/runtime/test_parity.py."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

import impasto
from impasto.errors import ImageError, MissingTapError
from impasto.export.forward import forward_graph
from impasto.export.fused import fused_graph
from impasto.export.graph import IR_VERSION, OPSET
from impasto.export.objective import Objective, coefficients, style_target
from impasto.models.conventions import TORCHVISION
from impasto.models.random_weights import random_weights
from impasto.runtime.backends.torch import TorchBackend
from impasto.runtime.problem import Problem
from impasto.runtime.targets import encoded, measure_targets

OBJECTIVE = Objective(
    content={"conv2_2": 2.0, "relu2_1": 0.5},
    style={"relu1_1": 1.0, "pool1": 3.0, "relu2_1": 10.0, "relu3_1": 7.0},
    tv=1e-4,
)


def session(graph):
    return onnxruntime.InferenceSession(graph.model().SerializeToString(), providers=["CPUExecutionProvider"])


def inputs(problem, image):
    """What the table in the module's docstring says, from the objective's own functions."""
    objective, targets = problem.objective, problem.targets
    positions = {tap: problem.positions(tap) for tap in objective.style}
    values = {"image": image}
    for name, value in coefficients(objective, targets, positions, problem.shape).items():
        values[name] = np.asarray(value, np.float32)
    for tap, count in positions.items():
        values[f"style.{tap}"] = style_target(objective, targets, tap, count)
        values[f"style.{tap}.scale"] = np.asarray(1 / count, np.float32)
    return values | {f"content.{tap}": value for tap, value in targets.content.items()}


def problem_of(weights, picture, objective, size):
    targets = measure_targets(TorchBackend(), weights, objective, picture(1, *size), picture(2, 19, 12))
    return Problem(objective, weights, targets, size)


def test_inputs_and_outputs_are_as_documented(shallow):
    model = fused_graph(OBJECTIVE, shallow, (9, 14)).model()
    found = {i.name: [d.dim_value for d in i.type.tensor_type.shape.dim] for i in model.graph.input}
    assert found == {
        "image": [1, 3, 9, 14],
        "content.conv2_2": [1, 128, 4, 7],
        "content.relu2_1": [1, 128, 4, 7],
        **{f"style.{tap}": [c, c] for tap, c in {"relu1_1": 64, "pool1": 64, "relu2_1": 128, "relu3_1": 256}.items()},
        **{f"style.{tap}.scale": [] for tap in OBJECTIVE.style},
        **{f"{kind}.{tap}.weight": [] for kind in ("content", "style") for tap in getattr(OBJECTIVE, kind)},
        "tv.weight": [],
    }
    assert [o.name for o in model.graph.output] == [*(f"loss.{term}" for term in OBJECTIVE.terms), "gradient"]
    types = {value.type.tensor_type.elem_type for value in [*model.graph.input, *model.graph.output]}
    assert types == {onnx.TensorProto.FLOAT}
    assert [d.dim_value for d in model.graph.output[-1].type.tensor_type.shape.dim] == [1, 3, 9, 14]


def test_the_artifact_is_standard_onnx(shallow):
    model = fused_graph(OBJECTIVE, shallow).model()
    onnx.checker.check_model(model, full_check=True)
    assert (model.ir_version, [(o.domain, o.version) for o in model.opset_import]) == (IR_VERSION, [("", OPSET)])
    assert not {"MaxUnpool", "If", "Loop", "Scan"} & {node.op_type for node in model.graph.node}


def test_each_weight_is_stored_once(shallow):
    model = fused_graph(OBJECTIVE, shallow, (8, 8)).model()
    size = sum(value.nbytes for value in shallow.tensors.values())
    assert size < model.ByteSize() < size + 100_000


def test_one_dynamic_artifact_is_every_fixed_one(shallow, picture):
    for pooling in ("max", "average"):
        objective = replace(OBJECTIVE, pooling=pooling)
        dynamic = session(fused_graph(objective, shallow))
        for size in ((4, 4), (5, 7), (16, 8), (31, 22), (40, 64)):
            problem = problem_of(shallow, picture, objective, size)
            values = inputs(problem, encoded(objective, picture(3, *size)))
            found = dynamic.run(None, values)
            fixed = session(fused_graph(objective, shallow, size)).run(None, values)
            for one, other in zip(found[:-1], fixed[:-1], strict=True):
                assert float(one) == pytest.approx(float(other), rel=2e-6)
            # The two may order sums differently; flips are unlikely at these sizes, and fixed by the seed.
            assert np.linalg.norm(found[-1] - fixed[-1]) <= 2e-6 * np.linalg.norm(fixed[-1])
            assert found[-1].shape == (1, 3, *size)


def test_a_dynamic_artifact_agrees_with_torch(shallow, picture):
    dynamic = session(fused_graph(OBJECTIVE, shallow))
    problem = problem_of(shallow, picture, OBJECTIVE, (23, 30))
    image = encoded(OBJECTIVE, picture(3, 23, 30))
    *losses, gradient = dynamic.run(None, inputs(problem, image))
    exact = TorchBackend(torch.float64).prepare(problem, "fused").evaluate(image)
    assert [float(value) for value in losses] == pytest.approx(list(exact.terms.values()), rel=1e-5)
    assert np.linalg.norm(gradient - exact.gradient) <= 1e-5 * np.linalg.norm(exact.gradient)


def test_a_total_variation_of_weight_zero_is_left_out(shallow):
    graph = fused_graph(replace(OBJECTIVE, tv=0.0), shallow, (8, 8))
    assert "tv.weight" not in graph.inputs
    assert "loss.tv" not in graph.outputs
    # Other terms stay, so that their weights can change without a new export.
    zero = replace(OBJECTIVE, content=dict.fromkeys(OBJECTIVE.content, 0.0))
    assert fused_graph(zero, shallow, (8, 8)).digest() == fused_graph(OBJECTIVE, shallow, (8, 8)).digest()


def test_what_cannot_be_built_is_refused(shallow):
    with pytest.raises(ImageError, match="too small"):
        fused_graph(OBJECTIVE, shallow, (3, 20))
    with pytest.raises(MissingTapError):
        fused_graph(replace(OBJECTIVE, content={"relu4_2": 1.0}), shallow)


# --- Determinism -----------------------------------------------------------------------------------------------------

DIGESTS = """
import hashlib
from impasto.export.calibration import calibration_graph
from impasto.export.forward import forward_graph
from impasto.export.fused import fused_graph
from impasto.export.objective import Objective
from impasto.export.slices import slice_graph
from impasto.export.statistics import statistics_graph
from impasto.models.conventions import UNIT
from impasto.models.random_weights import filterbank_weights, random_weights

spaces = {"pixels": "unit", "convention": "unit"}
cases = [
    (
        random_weights("vgg19", 1, last_conv="conv2_2"),
        Objective({"relu2_2": 1.0}, {"relu1_1": 1.0, "relu2_1": 2.0}, tv=1.0, **spaces),
        ["relu1_1", "conv2_1", "relu2_2"],
    ),
    (
        filterbank_weights(1),
        Objective({"bank0": 1.0}, {"bank1": 1.0, "level1": 1.0}, statistics={"bank1": "covariance"}, **spaces),
        ["bank0", "level1", "bank1"],
    ),
]
graphs = []
for weights, objective, taps in cases:
    graphs.append(calibration_graph(weights, taps, UNIT))
    for shape in (None, (20, 24)):
        graphs.append(fused_graph(objective, weights, shape))
        style = {tap: objective.statistic(tap) for tap in objective.style}
        graphs.append(statistics_graph(weights, list(objective.content), style, pooling="average", shape=shape))
        forward = forward_graph(weights, taps, space=UNIT, shape=shape)
        for piece in slice_graph(forward, forward.outputs):
            graphs += [piece.forward, piece.gradient]
for graph in graphs:
    print(graph.digest(), hashlib.sha256(graph.model({"b": "2", "a": "1"}).SerializeToString()).hexdigest())
"""


def digests(seed):
    path = [str(Path(impasto.__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
    environment = os.environ | {"PYTHONHASHSEED": seed, "PYTHONPATH": os.pathsep.join(filter(None, path))}
    done = subprocess.run([sys.executable, "-c", DIGESTS], env=environment, capture_output=True, text=True, check=True)
    return done.stdout.split()


def test_exports_are_the_same_bytes_in_every_process():
    first = digests("1")
    assert len(first) == 2 * 2 * (1 + 2 * (2 + 2 * 3))
    assert len(set(first)) == len(first)
    assert digests("2") == first


def test_whatever_changes_the_graph_changes_its_digest():
    weights = random_weights("vgg19", 1, last_conv="conv1_2")
    nudged = {name: value.copy() for name, value in weights.tensors.items()}
    kernel = nudged["conv1_2.weight"]
    kernel[5, 6, 1, 2] = np.nextafter(kernel[5, 6, 1, 2], np.float32(np.inf))

    def bias(value):
        changed = {name: tensor.copy() for name, tensor in weights.tensors.items()}
        changed["conv1_1.bias"][0] = value
        return forward_graph(replace(weights, tensors=changed), ["relu1_2"])

    def edited(edit):
        graph = forward_graph(weights, ["relu1_2"])
        edit(graph)
        return graph

    def other_pads(graph):
        (pads,) = [a for a in graph.nodes[0].attribute if a.name == "pads"]
        pads.ints[0] = 2

    graphs = {
        "as it is": forward_graph(weights, ["relu1_2"]),
        "one ulp of one weight": forward_graph(replace(weights, tensors=nudged), ["relu1_2"]),
        "zero": bias(np.float32(0.0)),
        "minus zero": bias(np.float32(-0.0)),
        "fixed shape": forward_graph(weights, ["relu1_2"], shape=(8, 8)),
        "another fixed shape": forward_graph(weights, ["relu1_2"], shape=(8, 9)),
        "another tap": forward_graph(weights, ["conv1_2"]),
        "another pixel space": forward_graph(weights, ["relu1_2"], space=TORCHVISION),
        "another attribute": edited(other_pads),
        "another type": forward_graph(weights, ["relu1_2"], dtype=np.float64),
        "one more output": edited(lambda graph: graph.outputs.append("relu1_1")),
        "… in another order": edited(lambda graph: graph.outputs.insert(0, "relu1_1")),
    }
    found = {name: graph.digest() for name, graph in graphs.items()}
    assert len(set(found.values())) == len(found)
    # What is not used does not count.
    extra = edited(lambda graph: graph.weight("unused", np.ones(3, np.float32)))
    assert extra.digest() == found["as it is"]
    assert extra.model().SerializeToString() == graphs["as it is"].model().SerializeToString()
