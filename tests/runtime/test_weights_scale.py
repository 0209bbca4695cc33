"""The scale of all loss weights together changes nothing that is painted."""

from dataclasses import replace

import numpy as np
import pytest

from impasto.runtime.recipes import PRESETS
from impasto.runtime.solvers import LBFGS, Adam
from impasto.runtime.stylizer import Stylizer


def reachable(preset, weights):
    """The preset on shallow weights, with content at relu2_2."""
    style = {tap: weight for tap, weight in preset.objective.style.items() if tap in weights.taps}
    content = {"relu2_2": max(preset.objective.content.values())}
    return replace(preset, objective=replace(preset.objective, content=content, style=style), stages=())


def painted(preset, weights, picture):
    with Stylizer(preset, weights=weights, cache=False) as stylizer:
        return stylizer.stylize(picture(1, 20, 26), picture(2, 25, 22), size=26, seed=5)


@pytest.mark.parametrize("name", ["impasto", "gatys", "johnson", "gordic", "gatys-notebook"])
@pytest.mark.parametrize(
    "solver", [LBFGS(iterations=20), Adam(iterations=20, learning_rate=10.0)], ids=["lbfgs", "adam"]
)
def test_the_picture_is_the_same(shallow, picture, name, solver):
    preset = replace(reachable(PRESETS[name], shallow), solver=solver)
    plain = painted(preset, shallow, picture)
    assert plain.loss["total"] < 0.7 * plain.trace[0].loss
    for factor in (1e-8, 1e8):
        scaled = painted(replace(preset, objective=preset.objective.scaled(factor)), shallow, picture)
        # Weights relative to the largest agree to 1e-16 before they are rounded to float32: the same bits.
        np.testing.assert_array_equal(scaled.image, plain.image)
        assert len(scaled.trace) == len(plain.trace)
        assert scaled.loss["total"] == pytest.approx(factor * plain.loss["total"], rel=1e-6)


@pytest.mark.parametrize("factor", [1e-8, 1e8])
def test_one_weight_alone_does_change_it(shallow, picture, factor):
    """So that the test above cannot pass because weights are not used at all."""
    preset = replace(reachable(PRESETS["johnson"], shallow), solver=LBFGS(iterations=5))
    largest = max(preset.objective.style.values())
    other = preset.with_weights(style=factor * largest)
    assert np.abs(painted(other, shallow, picture).image - painted(preset, shallow, picture).image).max() > 0.01
