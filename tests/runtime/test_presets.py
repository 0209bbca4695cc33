from __future__ import annotations

import json
from dataclasses import FrozenInstanceError, replace

import pytest

from impasto.errors import MissingTapError, UnknownNameError, UsageError
from impasto.export.objective import Objective
from impasto.models.random_weights import random_weights
from impasto.runtime.images import Sizing
from impasto.runtime.presets import Preset, Stage
from impasto.runtime.recipes import PRESETS, find_preset
from impasto.runtime.solvers import LBFGS, LBFGSB, SGD, SOLVERS, Adam, Bounds, TorchLBFGS

PUBLISHED = ("gatys", "keras", "pytorch", "johnson", "gordic", "keras-io", "gatys-notebook")
STYLE_TAPS = ("relu1_1", "relu2_1", "relu3_1", "relu4_1", "relu5_1")

LEVELS = Preset(
    name="levels",
    source="these tests",
    objective=Objective(
        content={"bank0": 1.0, "bank1": 2.0},
        style={"bank0": 3.0, "bank1": 4.0, "bank2": 5.0, "bank3": 6.0},
        statistics={"bank0": "covariance", "bank2": "covariance", "bank3": "covariance"},
        tv=0.25,
        pixels="unit",
        convention="unit",
    ),
    solver=LBFGS(iterations=10),
    weights="filterbank",
    smallest_grid=8,
)

PLAIN = Preset(
    name="plain",
    source="these tests",
    objective=Objective(content={"relu2_1": 4.0}, style={"relu1_1": 1.0, "relu2_1": 3.0}, tv=0.5),
    solver=LBFGS(iterations=10),
)


# --- The recipes that come along -------------------------------------------------------------------------------------


def test_every_published_recipe_is_there_and_cited():
    assert set(PRESETS) == {"impasto", "filterbank", *PUBLISHED}
    for name, preset in PRESETS.items():
        assert preset.name == name
        assert len(preset.source) > 20
        assert find_preset(name) is preset


@pytest.mark.parametrize("wrong", ["jonson", "JOHNSON", ""])
def test_an_unknown_preset_lists_those_that_there_are(wrong):
    with pytest.raises(UnknownNameError, match=r"johnson"):
        find_preset(wrong)


def test_solvers_are_as_published():
    solvers = {name: PRESETS[name].solver for name in PUBLISHED}
    assert isinstance(solvers["gatys"], LBFGS)
    assert solvers["keras"] == LBFGSB(rounds=20, maxfun=20)
    assert solvers["pytorch"] == TorchLBFGS(learning_rate=1.0, max_iter=20, history=100, bounds=Bounds((0.0,), (1.0,)))
    assert 200 <= PRESETS["pytorch"].evaluations <= 300
    assert (solvers["johnson"].iterations, solvers["johnson"].history) == (1000, 100)
    assert solvers["gordic"].iterations == 1000
    assert solvers["keras-io"] == SGD(iterations=4000, learning_rate=100.0, decay_rate=0.96, decay_steps=100)
    assert [stage.iterations for stage in PRESETS["gatys-notebook"].stages] == [500, 200]


def test_sizes_are_as_published():
    photo = (1200, 900)
    assert PRESETS["keras"].sizing.apply(904, 508) == (904, 508)
    assert PRESETS["pytorch"].sizing.apply(*photo) == (512, 512)
    assert PRESETS["johnson"].sizing.apply(*photo) == (512, 384)
    assert PRESETS["gordic"].sizing.apply(*photo)[1] == 400
    assert PRESETS["keras-io"].sizing.apply(*photo)[1] == 400
    notebook = PRESETS["gatys-notebook"]
    assert [round(stage.scale * notebook.sizing.pixels) for stage in notebook.stages] == [512, 800]


def test_starts_and_pixels_are_as_published():
    assert PRESETS["gatys"].init == "noise"
    for name in ("keras", "pytorch", "gordic"):
        assert PRESETS[name].init == "content"
    assert PRESETS["gatys"].objective.pooling == PRESETS["gatys-notebook"].objective.pooling == "average"
    assert PRESETS["pytorch"].objective.pixels == "unit"
    assert PRESETS["gordic"].objective.pixels == "rgb255"
    assert {PRESETS[name].objective.pixels for name in PUBLISHED} == {"caffe", "unit", "rgb255"}


def test_every_preset_works_on_full_weights(vgg19, bank):
    for preset in PRESETS.values():
        fitted = preset.for_weights({"vgg19": vgg19, "filterbank": bank}[preset.weights])
        assert fitted.objective.terms == preset.objective.terms


# --- JSON ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PRESETS)
def test_presets_go_to_json_and_back(name):
    preset = PRESETS[name]
    assert Preset.from_json(json.loads(json.dumps(preset.to_json(), allow_nan=False))) == preset


@pytest.mark.parametrize(
    "changes", [{}, {"weights": "filterbank-7"}, {"smallest_grid": 0}, {"smallest_grid": 31}, {"margin": 7}]
)
def test_statistics_weights_levels_and_margin_go_to_json_and_back(changes):
    preset = replace(LEVELS, **changes)
    value = json.loads(json.dumps(preset.to_json()))
    for name in ("weights", "smallest_grid", "margin"):
        assert value[name] == getattr(preset, name)
    assert value["objective"]["statistics"] == dict(LEVELS.objective.statistics)
    assert Preset.from_json(value) == preset


def test_json_of_before_there_were_filter_banks_is_a_preset_of_vggs():
    value = PLAIN.to_json()
    del value["objective"]["statistics"], value["weights"], value["smallest_grid"], value["margin"]
    assert Preset.from_json(value) == PLAIN


@pytest.mark.parametrize(
    "solver",
    [
        LBFGS(iterations=3, history=7, first_step=0.25),
        TorchLBFGS(bounds=Bounds((0.0, 1.0, 2.0), None)),
        LBFGSB(rounds=2, maxfun=3, bounds=Bounds((-1.5,), (1.5,))),
        Adam(9, 3.0, decay=((4, 0.1),), bounds=Bounds(None, (1.0,)), bounds_until=5),
        SGD(iterations=2, learning_rate=0.5),
    ],
    ids=lambda solver: type(solver).__name__,
)
def test_every_solver_goes_to_json_and_back(solver):
    preset = replace(PLAIN, solver=solver, evaluations=50)
    back = Preset.from_json(json.loads(json.dumps(preset.to_json())))
    assert back == preset
    assert back.solver.bounds == solver.bounds if hasattr(solver, "bounds") else True


@pytest.mark.parametrize("field", ["name", "source", "objective", "solver", "sizing"])
def test_json_without_a_field_is_refused(field):
    value = PLAIN.to_json()
    del value[field]
    with pytest.raises(UsageError, match="not a preset"):
        Preset.from_json(value)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("solver", "lbfgs"),
        ("solver", {}),
        ("solver", {"name": "lbgfs"}),
        ("solver", {"name": ["lbfgs"]}),
        ("solver", {"name": "lbfgs"}),
        ("solver", {"name": "lbfgs", "iterations": 5, "colour": "red"}),
        ("solver", {"name": "lbfgs", "iterations": 0}),
        ("objective", []),
        ("objective", {"content": {}}),
        ("objective", {"content": {"relu1_1": "much"}, "style": {}}),
        ("objective", {"content": {"relu1_1": -1.0}, "style": {}}),
        ("objective", {"content": {"relu1_1": 1.0}, "style": {}, "pooling": "median"}),
        ("sizing", {"edge": "long"}),
        ("sizing", {"edge": "far", "pixels": 5}),
        ("sizing", 512),
        ("stages", [{"scale": 1.0}]),
        ("stages", [[1.0, 2]]),
        ("stages", 5),
        ("init", "nothing"),
        ("noise", "loud"),
        ("noise", -1.0),
        ("evaluations", 0),
        ("smallest_grid", -1),
        ("smallest_grid", "eight"),
        ("margin", -1),
        ("margin", None),
        ("objective", {"content": {}, "style": {"bank0": 1.0}, "statistics": {"bank0": "variance"}}),
        ("objective", {"content": {}, "style": {"bank0": 1.0}, "statistics": {"bank1": "covariance"}}),
        ("objective", {"content": {}, "style": {"bank0": 1.0}, "statistics": ["bank0"]}),
        ("surprise", 1),
    ],
)
def test_json_that_is_no_preset_is_refused(field, value):
    with pytest.raises(UsageError) as caught:
        Preset.from_json(PLAIN.to_json() | {field: value})
    assert "\n" not in str(caught.value)


# --- Checks when made ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"style_fit": "crop"}, "style_fit"),
        ({"init": "zeros"}, "init"),
        ({"solver": TorchLBFGS()}, "torch-lbfgs has no end"),
        ({"stages": (Stage(1.0, 5), Stage(0.5, 5))}, "last stage has scale 0.5"),
        ({"evaluations": 0}, "evaluations is 0"),
        ({"noise": float("nan")}, "noise is nan"),
        ({"noise": -0.1}, "noise is -0.1"),
        ({"smallest_grid": -1}, "smallest_grid is -1"),
        ({"margin": -1}, "margin is -1"),
    ],
)
def test_settings_that_cannot_work_are_refused(changes, complaint):
    with pytest.raises(UsageError, match=complaint):
        replace(PLAIN, **changes)


@pytest.mark.parametrize(("scale", "iterations"), [(0.0, 5), (1.1, 5), (-1.0, 5), (0.5, 0), (float("nan"), 5)])
def test_stages_that_cannot_work_are_refused(scale, iterations):
    with pytest.raises(UsageError, match="stage"):
        Stage(scale, iterations)


def test_presets_do_not_change():
    with pytest.raises(FrozenInstanceError):
        PLAIN.noise = 3.0


# --- Weights ---------------------------------------------------------------------------------------------------------


def test_the_default_adapts_to_weights_that_end_at_conv3_4():
    weights = random_weights("vgg19", 5, last_conv="conv3_4")
    objective = PRESETS["impasto"].for_weights(weights).objective
    assert tuple(objective.style) == ("relu1_1", "relu2_1", "relu3_1")
    assert tuple(objective.content) == ("relu3_4",)
    original = PRESETS["impasto"].objective
    assert objective.content["relu3_4"] == original.content["relu4_2"]
    assert objective.style == {tap: original.style[tap] for tap in objective.style}


@pytest.mark.parametrize("name", [name for name in PUBLISHED if name != "pytorch"])
def test_published_recipes_do_not_adapt(shallow, name):
    with pytest.raises(MissingTapError, match="relu"):
        PRESETS[name].for_weights(shallow)


def test_pytorch_needs_no_more_than_conv3_1(shallow):
    assert PRESETS["pytorch"].for_weights(shallow) == PRESETS["pytorch"]


def test_weights_before_every_style_tap_are_refused():
    weights = random_weights("vgg19", 5, last_conv="conv1_2")
    preset = replace(PLAIN, adapt=True, objective=Objective(content={"relu1_1": 1.0}, style={"relu2_1": 1.0}))
    with pytest.raises(MissingTapError, match="end at conv1_2"):
        preset.for_weights(weights)


def test_content_that_moves_onto_one_tap_adds_up(shallow):
    objective = Objective(content={"relu3_1": 1.0, "relu4_2": 2.0, "relu5_2": 4.0}, style={"relu1_1": 1.0})
    fitted = replace(PLAIN, adapt=True, objective=objective).for_weights(shallow)
    assert fitted.objective.content == {"relu3_1": 7.0}


@pytest.mark.parametrize("adapt", [False, True])
def test_aliases_become_canonical_names(shallow, adapt):
    objective = Objective(content={"block2_conv1": 4.0}, style={"features.0": 1.0, "conv_5": 3.0})
    fitted = replace(PLAIN, adapt=adapt, objective=objective).for_weights(shallow)
    assert fitted.objective.content == {"relu2_1": 4.0}
    assert fitted.objective.style == {"conv1_1": 1.0, "conv3_1": 3.0}


# --- Levels by size --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shapes", "levels"),
    [
        # The coarsest level whose grid, halved and rounded up, has sides of 8 or more.
        ([(57, 200)], 4),
        ([(56, 200)], 3),
        ([(200, 29)], 3),
        ([(28, 200)], 2),
        ([(15, 15)], 2),
        ([(14, 300)], 1),
        # The smaller picture decides, whichever it is.
        ([(300, 300), (57, 60)], 4),
        ([(57, 60), (300, 30)], 3),
        ([(300, 300), (20, 300)], 2),
        # The finest is never left out, not even where it is too small itself.
        ([(7, 300)], 1),
        ([(3, 3)], 1),
        ([(1, 1), (300, 300)], 1),
    ],
)
def test_levels_are_those_that_both_pictures_are_large_enough_for(bank, shapes, levels):
    found = LEVELS.objective_at(bank, *shapes)
    kept = [f"bank{level}" for level in range(levels)]
    assert list(found.style) == kept
    assert list(found.content) == kept[:2]
    assert list(found.statistics) == [tap for tap in kept if tap != "bank1"]
    # What is kept is as it was.
    assert all(found.style[tap] == LEVELS.objective.style[tap] for tap in found.style)
    assert all(found.content[tap] == LEVELS.objective.content[tap] for tap in found.content)
    assert replace(found, content={}, style={"bank0": 1.0}, statistics={}) == replace(
        LEVELS.objective, content={}, style={"bank0": 1.0}, statistics={}
    )


def test_a_level_that_only_the_content_has_is_left_out_by_size_too(bank):
    objective = replace(LEVELS.objective, content={"bank3": 1.0, "bank1": 1.0}, style={"bank1": 1.0}, statistics={})
    preset = replace(LEVELS, objective=objective)
    assert preset.objective_at(bank, (40, 40)).taps == ("bank1",)
    assert preset.objective_at(bank, (57, 57)).taps == ("bank3", "bank1")
    # The finest that it has, be it not the finest that there is.
    assert preset.objective_at(bank, (5, 5)).taps == ("bank1",)


@pytest.mark.parametrize("shape", [(1, 1), (5, 40), (300, 300)])
def test_without_a_smallest_grid_nothing_is_left_out(bank, shallow, shape):
    assert replace(LEVELS, smallest_grid=0).objective_at(bank, shape) is LEVELS.objective
    assert PLAIN.objective_at(shallow, shape) is PLAIN.objective


def test_a_smallest_grid_leaves_out_taps_of_vgg_as_well(shallow):
    """Its poolings round down. Taps of the finest grid stay together."""
    style = {"relu1_1": 1.0, "conv1_2": 1.0, "relu2_1": 3.0, "relu3_1": 1.0}
    preset = replace(PLAIN, smallest_grid=4, objective=replace(PLAIN.objective, content={"relu2_1": 4.0}, style=style))
    for side, kept in ((16, 4), (15, 3), (8, 3), (7, 2), (3, 2)):
        objective = preset.objective_at(shallow, (side, 90), (90, 90))
        assert list(objective.style) == list(style)[:kept]
        assert list(objective.content) == (["relu2_1"] if kept > 2 else [])


def test_every_size_leaves_the_filter_banks_own_preset_something_to_paint(bank):
    """From the smallest picture to the largest that the limits let through, levels grow with it, and never more."""
    preset, before = PRESETS["filterbank"], 0
    for side in (1, 5, 16, 64, 256, 1024, 8192):
        objective = preset.objective_at(bank, (side, side))
        assert set(objective.content) <= set(objective.style) == set(objective.statistics)
        assert "bank0" in objective.content
        assert len(objective.style) >= before
        before = len(objective.style)
    assert before > 1


# --- Overrides -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize("iterations", [1, 2, 3, 7, 21, 1000])
def test_any_preset_takes_any_number_of_iterations(name, iterations):
    changed = PRESETS[name].with_iterations(iterations)
    assert changed.total_iterations() == iterations
    assert not changed.stages or changed.stages[-1].scale == 1
    assert changed.objective == PRESETS[name].objective


@pytest.mark.parametrize("name", PRESETS)
def test_no_preset_takes_no_iterations(name):
    with pytest.raises(UsageError, match="iterations is 0"):
        PRESETS[name].with_iterations(0)


def test_loss_weights_are_replaced_and_keep_their_ratios():
    objective = PLAIN.with_weights(content=8.0, style=30.0, tv=0.0).objective
    assert objective.content == {"relu2_1": 8.0}
    assert objective.style == {"relu1_1": 10.0, "relu2_1": 30.0}
    assert objective.tv == 0
    assert PLAIN.with_weights() == PLAIN
    assert PLAIN.with_weights(style=0.0).objective.style == {"relu1_1": 0.0, "relu2_1": 0.0}
    # From zero there is no ratio to keep.
    assert PLAIN.with_weights(style=0.0).with_weights(style=2.0).objective.style == {"relu1_1": 2.0, "relu2_1": 2.0}


@pytest.mark.parametrize("weight", [-1.0, float("nan"), float("inf")])
@pytest.mark.parametrize("kind", ["content", "style", "tv"])
def test_loss_weights_that_cannot_be_are_refused(kind, weight):
    with pytest.raises(UsageError, match="finite number, zero or more"):
        PLAIN.with_weights(**{kind: weight})


def test_a_term_that_the_preset_does_not_have_cannot_be_weighted():
    preset = replace(PLAIN, objective=Objective(content={"relu1_1": 1.0}, style={}))
    with pytest.raises(UsageError, match="no style term"):
        preset.with_weights(style=1.0)


@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize("solver", SOLVERS)
def test_other_solvers_suit_or_are_refused(name, solver):
    preset = PRESETS[name]
    try:
        changed = preset.with_solver(solver)
    except UsageError as error:
        assert solver in str(error)  # noqa: PT017
        # Only for a reason: a learning rate of another loss's scale, relative losses, or stages without iterations.
        assert solver == "sgd" or preset.stages or preset.objective.style_norm == "relative"
        return
    assert type(changed.solver) is SOLVERS[solver]
    assert changed.objective == preset.objective
    assert changed.total_iterations() == preset.total_iterations()


def test_an_unknown_solver_is_refused():
    with pytest.raises(UnknownNameError, match="lbfgs"):
        PLAIN.with_solver("lbfsg")


def test_first_steps_are_grey_levels_of_the_pixel_space():
    assert PRESETS["keras"].with_solver("lbfgs").solver.first_step == pytest.approx(1.0)
    assert PRESETS["pytorch"].with_solver("lbfgs").solver.first_step == pytest.approx(1 / 255)
    assert PRESETS["pytorch"].with_solver("adam").solver.learning_rate == pytest.approx(10 / 255)


def test_sizing_has_a_default():
    assert PLAIN.sizing == Sizing("long", 512)
