"""Coarse to fine: which stages a size gets, and that a painting goes through them."""

from __future__ import annotations

from dataclasses import replace

import pytest

from impasto.errors import UsageError
from impasto.runtime.presets import Preset, Stage
from impasto.runtime.recipes import PRESETS, find_preset
from impasto.runtime.scales import COARSEST, parse_scales, with_scales
from impasto.runtime.stylizer import Stylizer

ONE_SIZE = find_preset("pytorch").with_solver("lbfgs").with_iterations(700)


def stages(preset: Preset) -> list[tuple[float, int]]:
    return [(stage.scale, stage.iterations) for stage in preset.stages]


@pytest.mark.parametrize("name", PRESETS)
def test_up_to_the_coarsest_size_every_recipe_is_as_published(name: str) -> None:
    preset = find_preset(name)
    assert with_scales(preset, "auto", COARSEST) is preset


@pytest.mark.parametrize(
    ("long_side", "expected"),
    [
        (769, [(1 / 2, 467), (1, 233)]),
        (1536, [(1 / 2, 467), (1, 233)]),
        (1537, [(1 / 4, 400), (1 / 2, 200), (1, 100)]),
        (8192, [(1 / 16, 361), (1 / 8, 181), (1 / 4, 90), (1 / 2, 45), (1, 23)]),
    ],
)
def test_above_it_sizes_are_halved_until_they_are_small_and_iterations_with_them(
    long_side: int, expected: list[tuple[float, int]]
) -> None:
    found = with_scales(ONE_SIZE, "auto", long_side)
    assert stages(found) == expected
    assert found.total_iterations() == 700
    assert found.objective == ONE_SIZE.objective
    assert long_side * found.stages[0].scale <= COARSEST < 2 * long_side * found.stages[0].scale


def test_stages_of_the_recipe_stay_and_others_come_before_them() -> None:
    preset = replace(ONE_SIZE, stages=(Stage(0.25, 100), Stage(0.5, 100), Stage(1.0, 100)))
    assert with_scales(preset, "auto", 4 * COARSEST) is preset
    found = with_scales(preset, "auto", 4 * COARSEST + 1)
    assert stages(found) == [(0.125, 75), (0.25, 75), (0.5, 75), (1, 75)]


@pytest.mark.parametrize("name", ["pytorch", "keras"])
def test_a_solver_without_iterations_has_one_size(name: str) -> None:
    preset = find_preset(name).with_solver("torch-lbfgs") if name == "pytorch" else find_preset(name)
    if preset.counts_iterations:
        preset = preset.with_solver("lbfgs-b")
    assert with_scales(preset, "auto", 8192) is preset
    assert with_scales(preset, 1, 8192).stages == ()
    with pytest.raises(UsageError, match="no number of iterations, which several scales need"):
        with_scales(preset, 2, 512)


def test_a_number_and_shares_say_which_sizes() -> None:
    assert stages(with_scales(ONE_SIZE, 3, 100)) == [(0.25, 400), (0.5, 200), (1, 100)]
    assert with_scales(ONE_SIZE, (0.3, 1), 100) == with_scales(ONE_SIZE, [0.3, 1.0], 5000)
    assert stages(with_scales(ONE_SIZE, (0.3, 1), 100)) == [(0.3, 467), (1, 233)]


def test_one_scale_is_as_many_iterations_at_the_result_s_size() -> None:
    for preset in (find_preset("impasto"), ONE_SIZE):
        found = with_scales(preset, 1, 8192)
        assert found.stages == ()
        assert found.total_iterations() == preset.total_iterations()


@pytest.mark.parametrize("bad", [(), (1, 1), (0.5, 0.25, 1), (0.5,), (0, 1), (-1, 1), (float("nan"), 1), (0.5, 2), 17])
def test_shares_that_do_not_ascend_to_one_are_refused(bad: int | tuple[float, ...]) -> None:
    with pytest.raises(UsageError, match=r"^scales are .*: give at most 16 that ascend to 1$"):
        with_scales(ONE_SIZE, bad, 512)


@pytest.mark.parametrize("bad", ["none", 0, -3])
def test_what_is_no_scale_is_refused(bad: int | str) -> None:
    with pytest.raises(UsageError, match=r"^scales "):
        with_scales(ONE_SIZE, bad, 512)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("text", "expected"),
    [("auto", "auto"), ("3", 3), ("0.25,0.5,1", (0.25, 0.5, 1)), ("1.0", (1,)), ("0.5, 1", (0.5, 1))],
)
def test_text_is_read(text: str, expected: object) -> None:
    assert parse_scales(text) == expected


@pytest.mark.parametrize("text", ["", "all", "1,,2", "0.5;1", "3x"])
def test_other_text_is_refused_by_name(text: str) -> None:
    with pytest.raises(UsageError, match=f"^scales is {text!r}: give auto, a number of sizes"):
        parse_scales(text)


def test_a_painting_goes_from_coarse_to_fine(shallow, picture) -> None:
    preset = find_preset("impasto").with_iterations(6)
    with Stylizer(preset, weights=shallow, backend="onnxruntime") as stylizer:
        steps = list(stylizer.steps(picture(1, 40, 56), picture(2, 30, 30), size=56, scales=(0.5, 1)))
        one = list(stylizer.steps(picture(1, 40, 56), picture(2, 30, 30), size=56, scales=1))
    assert list(dict.fromkeys(step.size for step in steps)) == [(28, 20), (56, 40)]
    assert max(step.iteration for step in steps) == 6
    assert {step.size for step in one} == {(56, 40)}
