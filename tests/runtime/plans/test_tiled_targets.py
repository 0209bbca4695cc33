"""Targets that are measured window by window, and the plan by its name: what backends make of both."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from impasto.errors import LimitError, UsageError
from impasto.export.objective import Objective
from impasto.runtime.backends.onnxruntime import OnnxRuntimeBackend
from impasto.runtime.plans.tiled_targets import TiledTargets
from impasto.runtime.plans.tiling import tile
from impasto.runtime.problem import Problem
from impasto.runtime.recipes import FILTERBANK
from impasto.runtime.scratch import in_memory
from impasto.runtime.targets import encoded, measure_targets

COVARIANT = Objective(
    content={"relu2_1": 1.0},
    style={"relu1_1": 1.0, "pool1": 1.0, "relu3_1": 1.0},
    statistics={"relu1_1": "covariance", "relu3_1": "covariance"},
    content_norm="relative",
)


@pytest.fixture
def backend():
    opened = OnnxRuntimeBackend()
    yield opened
    opened.close()


def close(found, expected, tolerance):
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name].dtype == np.float32
        assert found[name].shape == value.shape
        # Relative to the largest element: of a covariance, small ones are differences of large numbers.
        assert np.abs(found[name] - value).max() <= tolerance * np.abs(value).max(), name


@pytest.mark.parametrize("network", ["shallow", "bank"])
@pytest.mark.parametrize("memory", [None, 2 << 20, 6 << 20])
def test_windows_measure_what_the_whole_picture_does(request, backend, picture, network, memory):
    """The pictures have other sizes, so their windows differ, too."""
    weights = request.getfixturevalue(network)
    objective = COVARIANT if network == "shallow" else FILTERBANK.objective_at(weights, (75, 66))
    content, style = picture(1, 90, 81), picture(2, 75, 66)
    whole = measure_targets(backend, weights, objective, content, style)
    tiled = TiledTargets(weights, objective, backend.compile, memory, in_memory)
    found = tiled.measure(encoded(objective, content), encoded(objective, style))
    # A few thousand products are added up in another order, and the whole picture's in float32.
    close(found.calibration, whole.calibration, 2e-6)
    close(found.style, whole.style, 1e-5)
    close(found.means, whole.means, 1e-5)
    assert found.style_positions == whole.style_positions
    for tap in objective.content:
        assert found.content_size(tap) == whole.content_size(tap)
        assert found.content_energy(tap) == pytest.approx(whole.content_energy(tap), rel=1e-5)


@pytest.mark.parametrize(("taps", "kept"), [(("relu3_1",), False), (("relu2_1", "conv1_1"), False), (("pool2",), True)])
def test_content_targets_are_kept_up_to_48_bytes_a_pixel(backend, shallow, picture, taps, kept):
    """relu3_1 has 256 channels on a sixteenth of the pixels, 64 bytes; pool2 has 128, 32 bytes."""
    objective = Objective(content=dict.fromkeys(taps, 1.0), style={})
    content = picture(1, 64, 96)
    whole = measure_targets(backend, shallow, objective, content, content)
    found = measure_targets(backend, shallow, objective, content, content, "tiled")
    if kept:
        close(found.content, whole.content, 1e-5)
        assert found.content_image is None
    else:
        assert not found.content
        np.testing.assert_array_equal(found.content_image, encoded(objective, content))


def test_content_of_a_coarse_level_is_kept_and_computed_through_the_levels_before(backend, bank, picture):
    objective = Objective(content={"bank3": 1.0}, style={}, pixels="unit", convention="unit")
    content = picture(1, 90, 81)
    whole = measure_targets(backend, bank, objective, content, content)
    tiled = TiledTargets(bank, objective, backend.compile, 1 << 20, in_memory)
    image = encoded(objective, content)
    close(tiled.measure(image, image).content, whole.content, 1e-5)


@pytest.mark.parametrize("network", ["shallow", "bank"])
def test_the_plan_is_there_by_its_name_within_a_limit(request, backend, picture, network):
    """From the targets on: the calibration, too, is by windows."""
    weights = request.getfixturevalue(network)
    objective = COVARIANT if network == "shallow" else FILTERBANK.objective_at(weights, (90, 81))
    memory = (50 if network == "shallow" else 12) << 20
    content, style, image = picture(1, 90, 81), picture(2, 75, 66), encoded(objective, picture(3, 90, 81))
    losses = {}
    for plan in ("fused", "tiled"):
        targets = measure_targets(backend, weights, objective, content, style, plan, memory)
        found = backend.prepare(Problem(objective, weights, targets, (90, 81)), plan, memory).evaluate(image)
        losses[plan] = dict(found.terms), found.gradient.astype(np.float64)
    assert tile(weights, objective, (90, 81), memory).layouts[0].count > 1
    (terms, gradient), (expected, whole) = losses["tiled"], losses["fused"]
    assert terms == pytest.approx(expected, rel=2e-5, abs=0)
    assert np.vdot(gradient, whole) >= 0.99999 * np.linalg.norm(gradient) * np.linalg.norm(whole)


def test_sessions_are_kept_for_the_next_job_of_the_same_shape(backend, shallow, picture, monkeypatch):
    objective = replace(COVARIANT, content={"pool2": 1.0})
    targets = measure_targets(backend, shallow, objective, picture(1, 40, 40), picture(2, 40, 40), "tiled")
    backend.prepare(Problem(objective, shallow, targets, (40, 40)), "tiled")
    monkeypatch.setattr(backend, "compile", None)
    scaled = Problem(objective.scaled(3.0), shallow, targets, (40, 40))
    assert backend.prepare(scaled, "tiled").evaluate(np.zeros((1, 3, 40, 40), np.float32)).total > 0


def test_a_limit_below_the_smallest_tiles_is_an_error(backend, vgg19, picture):
    objective = Objective(content={}, style={"relu1_1": 1.0})
    targets = measure_targets(backend, vgg19, objective, picture(1, 40, 40), picture(2, 40, 40))
    with pytest.raises(LimitError, match=r"smallest tiles of 40x40 px need \d+ bytes .* raise --memory-limit"):
        backend.prepare(Problem(objective, vgg19, targets, (40, 40)), "tiled", 1000)


def test_fp16_is_refused(backend, shallow, picture):
    backend.precision = "fp16"
    with pytest.raises(UsageError, match="no plan 'tiled' in fp16"):
        measure_targets(backend, shallow, COVARIANT, picture(1, 40, 40), picture(2, 40, 40), "tiled")


def test_torch_has_no_such_plan(shallow, picture):
    from impasto.runtime.backends.torch import TorchBackend

    with pytest.raises(UsageError, match="backend torch has no plan 'tiled'"):
        measure_targets(TorchBackend(), shallow, COVARIANT, picture(1, 40, 40), picture(2, 40, 40), "tiled")


def test_backends_that_stay_on_a_gpu_have_no_such_plan(shallow, picture, backend):
    from impasto.runtime.backends.gpu import GpuBackend

    class Gpu(GpuBackend):
        name = "gpu"
        compile_for_device = versions = None

    targets = measure_targets(backend, shallow, COVARIANT, picture(1, 40, 40), picture(2, 40, 40))
    with pytest.raises(UsageError, match="backend gpu has no plan 'tiled'"):
        Gpu(None, "fp32").prepare(Problem(COVARIANT, shallow, targets, (40, 40)), "tiled")
