"""The tiled plan against the fused one, of which it promises the same numbers.

Both compute in float32, by convolutions of other sizes, so each activation differs by rounding, and a ReLU or a max
pooling that it can decide may be decided differently (test_parity.py). Where `Activations` finds nothing near a flip,
the gradients agree to 1e-5; elsewhere, as everywhere, losses agree to 1e-5 and the gradient's direction to a cosine of
0.99999.
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from impasto.export.objective import TV_FORMS, Objective, Targets
from impasto.export.windows import layout, pieces
from impasto.models.backbones import Backbone, backbone
from impasto.models.conventions import CAFFE
from impasto.models.layers import Conv
from impasto.models.weights import Weights
from impasto.runtime.activations import Activations
from impasto.runtime.backends.onnxruntime import OnnxRuntimeBackend
from impasto.runtime.plans.tiled import TiledPlan
from impasto.runtime.plans.tiling import Tiling
from impasto.runtime.problem import Problem
from impasto.runtime.recipes import FILTERBANK, PRESETS
from impasto.runtime.scratch import in_memory, mapped
from impasto.runtime.targets import encoded, measure_targets

VGG = {name: preset for name, preset in PRESETS.items() if preset.weights == "vgg19"}
STYLE = ("relu1_1", "relu2_1", "relu3_1", "relu4_1", "relu5_1")


@pytest.fixture(scope="module")
def backend():
    opened = OnnxRuntimeBackend()
    yield opened
    opened.close()


@pytest.fixture(scope="module")
def thin():
    """VGG-19 at full depth with a 32nd of its channels."""
    layers = []
    for layer in backbone("vgg19").layers:
        if isinstance(layer, Conv):
            narrow = 3 if layer.in_channels == 3 else layer.in_channels // 32
            layer = replace(layer, in_channels=narrow, out_channels=layer.out_channels // 32)
        layers.append(layer)
    stream = np.random.RandomState(21)
    tensors = {}
    for layer in layers:
        for name, shape in layer.tensors().items():
            deviation = np.sqrt(2 / math.prod(shape[1:])) if len(shape) > 1 else 0.1
            tensors[name] = (stream.standard_normal(shape) * deviation).astype(np.float32)
    return Weights("thin", Backbone("vgg19", tuple(layers)), CAFFE, tensors)


def problem_of(backend, weights, objective, content, style):
    targets = measure_targets(backend, weights, objective, content, style)
    return Problem(objective, weights, targets, content.shape[:2])


def tiling_of(problem, most):
    net = problem.weights.backbone
    return Tiling(tuple(layout(net, piece, problem.shape, most) for piece in pieces(net, problem.objective.taps)), 0)


def is_clear(problem, image):
    activations = Activations(problem.weights, problem.objective, problem.targets.calibration)
    activations.compute(image)
    return activations.clear


def clear_image(problem, images):
    """Return the first image at which nothing is near a flip."""
    return next(image for image in images if is_clear(problem, image))


def compare(backend, problem, image, most, tiled_problem=None, allocate=in_memory):
    """Compare the plans at an image; return the number of windows of the first piece.

    The tiled plan evaluates twice: what an evaluation leaves behind must not show in the next.
    """
    fused = backend.prepare(problem, "fused").evaluate(image)
    expected = fused.gradient.copy()
    tiled_problem = tiled_problem or problem
    tiling = tiling_of(tiled_problem, most)
    sessions = TiledPlan.compile(tiled_problem, backend.compile, tiling)
    plan = TiledPlan(tiled_problem, sessions, allocate)
    plan.evaluate(image + 1)
    found = plan.evaluate(image)
    sessions.close()
    assert list(found.terms) == list(fused.terms)
    for term, value in fused.terms.items():
        assert found.terms[term] == pytest.approx(value, rel=1e-5, abs=0), term
    assert found.gradient.shape == image.shape
    assert found.gradient.dtype == np.float32
    ours, theirs = found.gradient.astype(np.float64), expected.astype(np.float64)
    assert np.vdot(ours, theirs) >= 0.99999 * np.linalg.norm(ours) * np.linalg.norm(theirs)
    if is_clear(problem, image):
        assert np.linalg.norm(ours - theirs) <= 1e-5 * np.linalg.norm(theirs)
    return tiling.layouts[0].count


@pytest.mark.parametrize("name", VGG)
def test_every_preset_has_the_gradient_of_the_untiled_plan(backend, thin, picture, name):
    """At an odd size, of which poolings leave a rest, by windows that are hardly larger than their halo."""
    preset = VGG[name].for_weights(thin)
    problem = problem_of(backend, thin, preset.objective, picture(1, 217, 203), picture(2, 180, 190))
    image = clear_image(problem, (encoded(preset.objective, picture(seed, 217, 203)) for seed in range(3, 15)))
    # As small as the halo of relu5_1 and relu5_2 allows, which is larger than this.
    assert compare(backend, problem, image, 95 * 95) > 1


@pytest.mark.parametrize("pooling", ["max", "average"])
@pytest.mark.parametrize("most", [1500, 2500, 3600])
@pytest.mark.parametrize("shape", [(61, 83), (64, 64), (75, 20), (96, 50)])
def test_windows_of_any_size_and_alignment_add_up(backend, thin, picture, shape, most, pooling):
    objective = Objective(
        content={"relu2_2": 1.0, "conv3_1": 0.5},
        style={"relu1_1": 1e3, "pool1": 1e2, "relu2_1": 1e3, "conv3_1": 1e3},
        pooling=pooling,
    )
    problem = problem_of(backend, thin, objective, picture(1, *shape), picture(2, 40, 44))
    compare(backend, problem, encoded(objective, picture(most, *shape)), most)


@pytest.mark.parametrize("shape", [(16, 16), (17, 31), (16, 200)])
def test_a_tiny_picture_is_one_window_or_a_row_of_them(backend, thin, picture, shape):
    objective = Objective(content={"relu4_2": 1.0}, style=dict.fromkeys(STYLE, 1.0), tv=1e-3)
    problem = problem_of(backend, thin, objective, picture(1, *shape), picture(2, 33, 40))
    count = compare(backend, problem, encoded(objective, picture(3, *shape)), 1)
    assert (count > 1) == (shape[1] == 200)


@pytest.mark.parametrize("form", TV_FORMS)
def test_total_variation_is_that_of_the_whole_picture(backend, thin, picture, form, monkeypatch):
    """In stripes of a few rows, of one, and in a single one."""
    objective = Objective(content={"relu1_1": 1e-3}, style={}, tv=1.0, tv_form=form)
    problem = problem_of(backend, thin, objective, picture(1, 23, 19), picture(2, 20, 20))
    for rows in (1, 4, 22, 23, 100):
        monkeypatch.setattr("impasto.runtime.plans.tiled._STRIPE", 19 * rows)
        compare(backend, problem, encoded(objective, picture(3, 23, 19)), 200)


def test_an_objective_of_content_alone_needs_no_first_pass(backend, thin, picture):
    objective = Objective(content={"relu1_2": 1.0, "relu2_2": 3.0}, style={}, content_norm="sum")
    problem = problem_of(backend, thin, objective, picture(1, 50, 61), picture(2, 40, 40))
    sessions = TiledPlan.compile(problem, backend.compile, tiling_of(problem, 900))
    assert not sessions.statistics
    compare(backend, problem, encoded(objective, picture(3, 50, 61)), 900)


def test_covariances_stand_beside_gram_matrices(backend, thin, picture):
    objective = replace(
        PRESETS["johnson"].objective, statistics=dict.fromkeys(("relu1_1", "relu3_1", "relu5_1"), "covariance")
    )
    problem = problem_of(backend, thin, objective, picture(1, 197, 203), picture(2, 100, 80))
    count = compare(backend, problem, encoded(objective, picture(3, 197, 203)), 180 * 180)
    assert count > 1


@pytest.mark.parametrize("most", [100, 300, 900, 2000])
@pytest.mark.parametrize("shape", [(61, 83), (64, 48)])
def test_the_filter_bank_is_tiled_level_by_level(backend, bank, picture, shape, most):
    objective = FILTERBANK.objective_at(bank, shape)
    assert len(objective.style) > 2
    problem = problem_of(backend, bank, objective, picture(1, *shape), picture(2, 70, 66))
    count = compare(backend, problem, encoded(objective, picture(3, *shape)), most)
    assert count > 1


def test_levels_may_be_taps_and_pictures_of_another_space(backend, bank, picture):
    objective = Objective(
        content={"level1": 2.0, "bank1": 1.0},
        style={"response0": 1.0, "level2": 0.5, "bank3": 1.0},
        statistics={"bank3": "covariance"},
        tv=1e-6,
        content_norm="relative",
        gram_norm="positions",
        style_norm="relative",
        pixels="caffe",
        convention="caffe",
    )
    problem = problem_of(backend, bank, objective, picture(1, 71, 58), picture(2, 60, 66))
    compare(backend, problem, encoded(objective, picture(3, 71, 58)), 700)


@pytest.mark.parametrize("network", ["thin", "bank"])
def test_content_targets_that_are_not_kept_are_computed_again(request, backend, picture, network):
    weights = request.getfixturevalue(network)
    preset = (FILTERBANK if network == "bank" else PRESETS["pytorch"]).for_weights(weights)
    objective = preset.objective_at(weights, (61, 83))
    content = picture(1, 61, 83)
    problem = problem_of(backend, weights, objective, content, picture(2, 60, 66))
    kept = problem.targets
    totals = {tap: (kept.content_size(tap), kept.content_energy(tap)) for tap in objective.content}
    again = replace(kept, content={}, content_image=encoded(objective, content), content_totals=totals)
    image = encoded(objective, picture(3, 61, 83))
    compare(backend, problem, image, 1000, replace(problem, targets=again))


def test_pictures_and_their_gradient_may_lie_in_files(backend, bank, picture):
    """Between bands of windows their pages are released, which must lose nothing."""
    objective = FILTERBANK.objective_at(bank, (61, 83))
    problem = problem_of(backend, bank, objective, picture(1, 61, 83), picture(2, 60, 66))
    image = mapped((1, 3, 61, 83))
    image[:] = encoded(objective, picture(3, 61, 83))
    kept = {}
    for tap, value in problem.targets.content.items():
        kept[tap] = mapped(value.shape)
        kept[tap][:] = value
    in_files = replace(problem, targets=replace(problem.targets, content=kept))
    before = image.copy()
    compare(backend, problem, image, 700, in_files, allocate=mapped)
    np.testing.assert_array_equal(image, before)


def test_a_loss_that_overflows_is_not_finite_and_no_warning(backend, thin, picture):
    objective = Objective(content={"relu1_1": 1.0}, style={"relu3_1": 1.0}, style_norm="sum", gram_norm="positions")
    problem = problem_of(backend, thin, objective, picture(1, 40, 40), picture(2, 40, 40))
    sessions = TiledPlan.compile(problem, backend.compile, tiling_of(problem, 900))
    losses = TiledPlan(problem, sessions).evaluate(np.full((1, 3, 40, 40), 1e30, np.float32))
    sessions.close()
    assert not math.isfinite(losses.total)


def test_targets_that_are_kept_count_themselves():
    content = {"relu1_1": np.arange(6, dtype=np.float32).reshape(1, 1, 2, 3)}
    targets = Targets(content, {}, {}, content_totals={"relu2_1": (12, 34.5)})
    assert (targets.content_size("relu1_1"), targets.content_energy("relu1_1")) == (6, 55.0)
    assert (targets.content_size("relu2_1"), targets.content_energy("relu2_1")) == (12, 34.5)
