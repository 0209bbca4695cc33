"""Paintings by the filter bank: levels by size, tiny and flat pictures, plans and seeds.

Nothing here depends on the preset's numbers, which are tuned elsewhere.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from impasto.errors import ImageError
from impasto.models.random_weights import filterbank_weights
from impasto.runtime.backends.onnxruntime import OnnxRuntimeBackend
from impasto.runtime.images import Picture, Sizing
from impasto.runtime.painting import Job, Painting
from impasto.runtime.presets import Stage
from impasto.runtime.recipes import FILTERBANK
from impasto.runtime.solvers import LBFGS
from impasto.runtime.stylizer import Stylizer

# The preset in one go, for a few iterations, and without a margin, so that a loss is that of the picture.
PLAIN = replace(
    FILTERBANK,
    objective=replace(FILTERBANK.objective, content=dict.fromkeys(("bank0", "bank1", "bank2"), 0.05)),
    stages=(),
    solver=LBFGS(iterations=5, history=20, first_step=1 / 255),
    smallest_grid=8,
    margin=0,
)
STAGED = replace(PLAIN, stages=(Stage(1 / 4, 2), Stage(1 / 2, 2), Stage(1.0, 3)))

RUNS = [("onnxruntime", "fused"), ("onnxruntime", "sliced"), ("torch", "fused")]


@pytest.fixture
def painted(bank):
    def paint(content, style, preset=PLAIN, *, weights=bank, backend="onnxruntime", plan="fused", **settings):
        with Stylizer(preset, weights=weights, backend=backend, plan=plan, cache=False) as stylizer:
            return stylizer.stylize(content, style, size=max(content.shape[:2]), **settings)

    return paint


@pytest.fixture(scope="module", params=RUNS, ids="-".join)
def stylizer(request, bank):
    """What paints `PLAIN`, kept warm."""
    backend, plan = request.param
    with Stylizer(PLAIN, weights=bank, backend=backend, plan=plan, cache=False) as stylizer:
        yield stylizer


def taps_of(levels):
    banks = [f"bank{level}" for level in range(levels)]
    return {"content": banks[:3], "style": banks}


# --- Levels ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("plan", ["fused", "sliced"])
def test_it_paints(painted, picture, plan):
    result = painted(picture(1, 37, 52), picture(2, 45, 41), plan=plan)
    assert (result.stop, result.size, result.plan) == ("done", (52, 37), plan)
    assert (result.preset, result.weights["name"]) == ("filterbank", "filterbank")
    # 41·52/45 = 47 wide, 37 high: three levels with sides of 8 and more.
    assert result.taps == taps_of(3)
    assert set(result.terms) == {f"{kind}.{tap}" for kind, taps in result.taps.items() for tap in taps}
    assert result.loss["total"] < 0.7 * result.trace[0].loss
    assert 0 <= result.image.min() < result.image.max() <= 1


class Noting(OnnxRuntimeBackend):
    """Notes the size and the taps of every objective that it prepares."""

    def __init__(self):
        super().__init__()
        self.prepared = []

    def prepare(self, problem, plan, memory=None):
        self.prepared.append((problem.shape, list(problem.objective.style)))
        return super().prepare(problem, plan, memory)


def test_each_stage_has_the_levels_of_its_size_and_the_result_those_of_the_last(bank, picture):
    backend = Noting()
    content, style = (Picture(picture(seed, 58, 64), None, "a picture") for seed in (1, 2))
    job = Job(content, style, STAGED.for_weights(bank), bank, "fused", Sizing("long", 64))
    painting = Painting(job, backend)
    steps = list(painting)
    sizes = [(15, 16), (29, 32), (58, 64)]
    assert backend.prepared == [(size, taps_of(levels)["style"]) for size, levels in zip(sizes, (2, 3, 4), strict=True)]
    for size, levels in zip(sizes, (2, 3, 4), strict=True):
        for step in (step for step in steps if step.size == size[::-1]):
            assert {term.split(".")[1] for term in step.terms} == set(taps_of(levels)["style"])
    result = painting.result()
    assert result.taps == taps_of(4)
    assert result.loss["total"] == pytest.approx(min(s.loss for s in steps if s.size == (64, 58)), rel=1e-14)


def test_stages_too_small_for_the_finest_level_are_left_out(painted, bank, picture):
    side = bank.backbone.smallest("bank0")
    result = painted(picture(1, 2 * side, 2 * side), picture(2, 2 * side, 2 * side), STAGED)
    # A quarter is too small, half just large enough.
    assert result.trace[-1].iteration == 2 + 3


@pytest.mark.parametrize(
    ("style", "levels"), [((60, 16), 2), ((16, 60), 2), ((15, 60), 2), ((60, 14), 1), ((60, 60), 3), ((8, 8), 3)]
)
def test_a_narrow_style_picture_has_fewer_levels_and_so_has_the_painting(painted, picture, style, levels):
    """A small one is enlarged to the result's long side, so that only its shape counts."""
    result = painted(picture(1, 54, 60), picture(2, *style), iterations=1)
    assert result.taps == taps_of(levels)
    assert result.size == (60, 54)


# --- Pictures of a few pixels, and of one colour ---------------------------------------------------------------------


@pytest.mark.parametrize("more", [(0, 0), (0, 1), (1, 0), (0, 40)])
@pytest.mark.parametrize("plan", ["fused", "sliced"])
def test_the_smallest_pictures_that_filters_can_reflect_are_painted(painted, bank, picture, more, plan):
    side = bank.backbone.smallest("bank0")
    content, style = (picture(seed, side + more[0], side + more[1]) for seed in (1, 2))
    for preset in (PLAIN, FILTERBANK):
        result = painted(content, style, preset, plan=plan, iterations=4)
        assert result.image.shape == content.shape
        assert result.taps["style"] == ["bank0"]
        assert result.loss["total"] < result.trace[0].loss


@pytest.mark.parametrize("plan", ["fused", "sliced"])
def test_smaller_ones_are_refused_with_their_size(painted, bank, picture, plan):
    side, large = bank.backbone.smallest("bank0"), picture(1, 20, 20)
    for height, width in ((side - 1, side - 1), (side - 1, 20), (20, side - 1), (2, 2), (1, 1)):
        words = f"{width}x{height} pixels is too small for tap bank0, which needs at least {side}x{side}"
        small = picture(2, height, width)
        with pytest.raises(ImageError, match=words):
            painted(small, small, plan=plan)
        with pytest.raises(ImageError, match=words):
            painted(small, small, FILTERBANK, plan=plan)
        if 20 in (height, width):
            with pytest.raises(ImageError, match=words):
                painted(large, small, FILTERBANK, plan=plan)


FLAT = {
    "black": np.zeros((20, 26, 3), np.float32),
    "white": np.ones((20, 26, 3), np.float32),
    "grey": np.full((20, 26, 3), 0.4, np.float32),
    "blue": np.broadcast_to(np.float32([0.1, 0.3, 0.9]), (20, 26, 3)),
}


COLOURED = [("blue", "picture"), ("black", "picture"), ("picture", "blue"), ("picture", "white"), ("black", "white")]


@pytest.mark.parametrize(("content", "style"), [*COLOURED, ("grey", "blue")])
def test_pictures_of_one_colour_have_finite_losses_and_pictures(stylizer, picture, content, style):
    pictures = (FLAT.get(name, picture(seed, 20, 26)) for seed, name in enumerate((content, style)))
    result = stylizer.stylize(*pictures, size=26)
    assert result.stop == "done"
    assert np.isfinite(result.image).all()
    assert np.isfinite(list(result.terms.values())).all()
    assert np.isfinite(result.trace[0].loss)
    assert result.loss["total"] < result.trace[0].loss


@pytest.mark.parametrize("name", ["noise", "grey"])
def test_a_picture_in_its_own_style_comes_back_as_it_is(stylizer, picture, name):
    """The start is the optimum but for rounding, and by no more than that may the painting move."""
    content = FLAT.get(name, picture(3, 20, 26))
    result = stylizer.stylize(content, content, size=26, iterations=2)
    np.testing.assert_allclose(result.image, content, rtol=0, atol=1e-5)


# --- Plans and seeds -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("backend", "plan"), RUNS[1:])
def test_every_backend_and_plan_paints_nearly_the_same(painted, picture, backend, plan):
    pictures = picture(1, 33, 46), picture(2, 38, 31)
    for preset in (PLAIN, STAGED):
        expected = painted(*pictures, preset)
        result = painted(*pictures, preset, backend=backend, plan=plan)
        assert result.trace[0].loss == pytest.approx(expected.trace[0].loss, rel=1e-5)
        assert result.taps == expected.taps
        # A handful of iterations let rounding grow, but not to a grey level.
        assert np.abs(result.image - expected.image).max() < 1 / 255


@pytest.mark.parametrize("plan", ["fused", "sliced"])
def test_the_same_seed_paints_the_same_picture(painted, picture, plan):
    pictures = picture(1, 20, 27), picture(2, 27, 25)
    noisy = replace(PLAIN, init="noise", noise=0.2)
    results = [painted(*pictures, noisy, plan=plan, seed=seed) for seed in (5, 5, 6)]
    np.testing.assert_array_equal(results[0].image, results[1].image)
    assert [point.loss for point in results[0].trace] == [point.loss for point in results[1].trace]
    assert np.abs(results[0].image - results[2].image).max() > 0.01


def test_the_same_name_draws_the_same_bank_and_another_seed_another(painted, picture):
    pictures = picture(1, 33, 46), picture(2, 38, 31)
    first, again, other = (
        painted(*pictures, weights=weights) for weights in ("filterbank", "filterbank", "filterbank-1")
    )
    np.testing.assert_array_equal(first.image, again.image)
    assert first.weights == again.weights
    assert first.weights["sha256"] != other.weights["sha256"] == filterbank_weights(1).sha256
    assert np.abs(first.image - other.image).max() > 1 / 255


def test_warming_up_leaves_the_first_job_nothing_to_compile(bank, picture, monkeypatch):
    """Although the grey pictures that warm it up calibrate as no picture does."""
    content, style = picture(1, 30, 34), picture(2, 31, 34)
    with Stylizer(PLAIN, weights=bank, cache=False) as stylizer:
        cold = stylizer.stylize(content, style, size=34)
        stylizer.close()
        stylizer.warm_up(34, 30)
        compiled, compile = [], stylizer.backend.compile
        monkeypatch.setattr(
            stylizer.backend, "compile", lambda graph, **kw: compiled.append(graph.name) or compile(graph, **kw)
        )
        warm = stylizer.stylize(content, style, size=34)
    assert compiled == []
    np.testing.assert_array_equal(warm.image, cold.image)


def test_a_warm_stylizer_paints_what_a_cold_one_paints(bank, picture):
    """The second job's style picture calibrates the filters anew, in sessions that the first job's compiled."""
    content, styles = picture(1, 30, 34), [picture(seed, 34, 28) for seed in (2, 3)]
    with Stylizer(STAGED, weights=bank, cache=False) as stylizer:
        warm = [stylizer.stylize(content, style, size=34).image for style in (*styles, styles[0])]
        stylizer.close()
        np.testing.assert_array_equal(stylizer.stylize(content, styles[1], size=34).image, warm[1])
    np.testing.assert_array_equal(warm[2], warm[0])
    assert np.abs(warm[1] - warm[0]).max() > 0.01
