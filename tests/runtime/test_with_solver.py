"""A preset with another solver: the settings that come with it, and that it paints."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from impasto.errors import UnknownNameError, UsageError
from impasto.models.random_weights import random_weights
from impasto.runtime.images import Sizing
from impasto.runtime.presets import Preset, solver_name
from impasto.runtime.recipes import PRESETS, find_preset
from impasto.runtime.solvers import LBFGS, LBFGSB, SOLVERS, Adam
from impasto.runtime.stylizer import Stylizer


@pytest.mark.parametrize("preset", PRESETS.values(), ids=lambda preset: preset.name)
def test_its_own_solver_is_kept_as_it_is(preset: Preset) -> None:
    assert preset.with_solver(solver_name(preset.solver)) == preset


@pytest.mark.parametrize("name", ["lbfgs", "adam"])
@pytest.mark.parametrize("preset", PRESETS.values(), ids=lambda preset: preset.name)
def test_iterations_are_kept_and_the_result_goes_through_json(preset: Preset, name: str) -> None:
    changed = preset.with_solver(name)
    assert solver_name(changed.solver) == name
    assert changed.total_iterations() == preset.total_iterations()
    assert Preset.from_json(changed.to_json()) == changed


@pytest.mark.parametrize("name", ["torch-lbfgs", "lbfgs-b"])
def test_solvers_without_iterations_get_as_many_evaluations(name: str) -> None:
    changed = find_preset("johnson").with_solver(name)
    assert (solver_name(changed.solver), changed.evaluations) == (name, 1000)
    assert changed.with_iterations(7).total_iterations() == 7


def test_the_number_of_evaluations_goes_when_the_solver_has_its_own_end() -> None:
    changed = find_preset("pytorch").with_solver("lbfgs")
    assert isinstance(changed.solver, LBFGS)
    assert (changed.solver.iterations, changed.evaluations) == (300, None)


@pytest.mark.parametrize(
    ("pixels", "extent"), [("caffe", 255), ("rgb255", 255), ("unit", 1), ("torchvision", 1 / 0.224)]
)
def test_steps_are_proportional_to_the_range_of_the_pixel_space(pixels: str, extent: float) -> None:
    preset = find_preset("johnson")
    preset = replace(preset, objective=replace(preset.objective, pixels=pixels))
    adam, lbfgs = preset.with_solver("adam").solver, replace(preset, solver=Adam(3, 1.0)).with_solver("lbfgs").solver
    assert isinstance(adam, Adam)
    assert isinstance(lbfgs, LBFGS)
    assert adam.learning_rate == pytest.approx(10 * extent / 255)
    assert lbfgs.first_step == pytest.approx(extent / 255)


def test_lbfgsb_has_rounds_enough_for_the_iterations_that_are_asked_for() -> None:
    changed = find_preset("keras").with_iterations(1001)
    assert isinstance(changed.solver, LBFGSB)
    assert changed.solver.rounds * changed.solver.maxfun >= 1001
    assert changed.total_iterations() == 1001


@pytest.mark.parametrize(
    ("preset", "solver", "reason"),
    [
        ("johnson", "sgd", "learning rate"),
        ("impasto", "torch-lbfgs", "relative"),
        ("gatys-notebook", "torch-lbfgs", "stages"),
        ("gatys-notebook", "lbfgs-b", "stages"),
    ],
)
def test_what_cannot_work_is_refused(preset: str, solver: str, reason: str) -> None:
    with pytest.raises(UsageError, match=reason):
        find_preset(preset).with_solver(solver)


def test_an_unknown_solver_is_told_the_near_ones() -> None:
    with pytest.raises(UnknownNameError, match="did you mean lbfgs"):
        find_preset("johnson").with_solver("lbfg")


@pytest.mark.parametrize("solver", [name for name in SOLVERS if name != "sgd"])
@pytest.mark.parametrize("pixels", ["unit", "caffe"])
def test_every_one_of_them_paints(solver: str, pixels: str) -> None:
    # The mean squared errors of random pictures are far from the minimum: any solver that works more than halves them.
    if solver == "lbfgs-b":
        pytest.importorskip("scipy")
    preset = find_preset("johnson")
    objective = replace(preset.objective, content={"relu2_1": 1.0}, style={"relu1_1": 1e4, "relu2_1": 1e4}, tv=0.0)
    preset = replace(preset, objective=replace(objective, pixels=pixels), sizing=Sizing("long", 24), init="content")
    preset = preset.with_solver(solver).with_iterations(25)
    generator = np.random.default_rng(5)
    content, style = generator.random((18, 24, 3)), generator.random((20, 20, 3)) ** 3
    weights = random_weights("vgg19", 3, last_conv="conv2_1")
    with Stylizer(preset, weights=weights, cache=False) as stylizer:
        result = stylizer.stylize(content, style)
    assert result.loss["total"] < 0.5 * result.trace[0].loss
