from dataclasses import replace

import numpy as np
import pytest
import torch

from impasto.export.objective import Objective
from impasto.runtime.backends.torch import TorchBackend
from impasto.runtime.problem import Losses, Problem
from impasto.runtime.recipes import PRESETS
from impasto.runtime.targets import encoded, measure_targets


@pytest.mark.parametrize("size", [(16, 16), (17, 31), (203, 151), (33, 18)])
def test_positions_are_those_that_the_network_has(vgg19, size):
    """Halving five times, rounding down each time, is dividing once and rounding down."""
    problem = Problem(PRESETS["johnson"].objective, vgg19, None, size)
    height, width = size
    for block in range(1, 6):
        assert problem.positions(f"relu{block}_1") == height * width
        height, width = height // 2, width // 2


def test_the_total_is_the_sum_of_the_terms():
    losses = Losses({"content.a": 1e16, "style.b": 1.5, "tv": 2.25}, np.zeros((1, 3, 1, 1), np.float32))
    assert losses.total == 1e16 + 1.5 + 2.25
    assert Losses({"tv": float("nan"), "content.a": 1.0}, losses.gradient).total != losses.total


@pytest.mark.parametrize("size", [(17, 17), (33, 18), (203, 151)])
def test_positions_of_a_level_are_halved_and_rounded_up(bank, size):
    problem = Problem(PRESETS["filterbank"].objective, bank, None, size)
    height, width = size
    for level in range(6):
        assert problem.positions(f"bank{level}") == problem.positions(f"response{level}") == height * width
        height, width = (height + 1) // 2, (width + 1) // 2


@pytest.mark.parametrize("name", [name for name, preset in PRESETS.items() if preset.weights == "vgg19"])
def test_the_scale_is_the_loss_of_a_network_that_sees_nothing(shallow, picture, name):
    """By the torch backend in float64: weights of zeros make every feature zero, targets are those of real weights."""
    objective = PRESETS[name].objective
    style = {tap: weight for tap, weight in objective.style.items() if tap in shallow.taps}
    objective = replace(objective, content={"relu2_2": 0.5}, style=style, tv=0.0)
    backend = TorchBackend(torch.float64)
    targets = measure_targets(backend, shallow, objective, picture(1, 17, 22), picture(2, 13, 12))
    problem = Problem(objective, shallow, targets, (17, 22))
    zeros = {key: np.zeros_like(value) for key, value in shallow.tensors.items()}
    blind = replace(problem, weights=replace(shallow, tensors=zeros))
    image = encoded(objective, picture(3, 17, 22))
    assert problem.scale() == pytest.approx(backend.prepare(blind, "fused").evaluate(image).total, rel=1e-6)


def test_the_scale_of_the_filter_bank_is_the_loss_where_no_filter_responds(bank, picture):
    """Filters whose thresholds nothing reaches make every feature zero; targets are those of real thresholds."""
    size = 34, 41
    preset = PRESETS["filterbank"]
    objective = replace(preset, smallest_grid=5).objective_at(bank, size, (37, 40))
    assert set(objective.statistics.values()) == {"covariance"}
    backend = TorchBackend(torch.float64)
    targets = measure_targets(backend, bank, objective, picture(1, *size), picture(2, 37, 40))
    problem = Problem(objective, bank, targets, size)
    calibration = {
        name: np.full_like(value, 1e6) if name.endswith("threshold") else value
        for name, value in targets.calibration.items()
    }
    deaf = replace(problem, targets=replace(targets, calibration=calibration))
    image = encoded(objective, picture(3, *size))
    assert problem.scale() == pytest.approx(backend.prepare(deaf, "fused").evaluate(image).total, rel=1e-6)
    # Of the style, whose errors are relative, each term is its weight.
    style = replace(problem, objective=replace(objective, content={}))
    assert style.scale() == pytest.approx(sum(objective.style.values()), rel=1e-6)


def test_the_scale_leaves_the_total_variation_out(shallow, picture):
    objective = Objective(content={"relu1_1": 1.0}, style={})
    targets = measure_targets(TorchBackend(), shallow, objective, picture(1, 5, 5), picture(2, 5, 5))
    without = Problem(objective, shallow, targets, (5, 5))
    assert replace(without, objective=replace(objective, tv=1e9)).scale() == without.scale() > 0
