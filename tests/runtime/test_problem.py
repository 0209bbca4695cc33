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


@pytest.mark.parametrize("name", PRESETS)
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


def test_the_scale_leaves_the_total_variation_out(shallow, picture):
    objective = Objective(content={"relu1_1": 1.0}, style={})
    targets = measure_targets(TorchBackend(), shallow, objective, picture(1, 5, 5), picture(2, 5, 5))
    without = Problem(objective, shallow, targets, (5, 5))
    assert replace(without, objective=replace(objective, tv=1e9)).scale() == without.scale() > 0
