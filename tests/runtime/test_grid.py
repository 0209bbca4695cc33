"""Contact sheets: what each cell is asked to be, and where it is shown."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from impasto.errors import UnknownNameError, UsageError
from impasto.runtime.grid import SETTINGS, Axis, cells, sheet
from impasto.runtime.job_spec import JobSpec

SPEC = JobSpec(content="a.png", style="b.png", preset="gatys")


def result(value, size=(40, 30)):
    return SimpleNamespace(size=size, image=np.full((size[1], size[0], 3), value, np.float32))


def test_an_axis_is_a_setting_and_its_values():
    assert Axis.parse("ratio=1e-5, 1e-4") == Axis("ratio", ("1e-5", "1e-4"))
    assert Axis.parse("style=art/a.jpg,b.png").labels() == ["style a.jpg", "style b.png"]


@pytest.mark.parametrize(
    ("text", "words"),
    [("ratio", "give a setting"), ("ratio=", "give a setting"), ("ratio=1,,2", "give a setting"), ("=3", "unknown")],
)
def test_what_is_no_axis_is_refused(text, words):
    with pytest.raises(UsageError, match=words):
        Axis.parse(text)


def test_a_near_setting_is_offered():
    with pytest.raises(UnknownNameError, match="style-weight"):
        Axis.parse("style_weight=3")


def test_ratios_and_layers_are_those_of_the_paper_s_figure():
    grid = cells(SPEC, Axis("layers", ("1", "3")), Axis("ratio", ("1e-5", "1e-3")))
    assert [len(row) for row in grid] == [2, 2]
    for row, count in zip(grid, (1, 3), strict=True):
        for job, ratio in zip(row, (1e-5, 1e-3), strict=True):
            objective = job.recipe()[0].objective
            assert list(objective.style) == ["relu1_1", "relu2_1", "relu3_1"][:count]
            assert max(objective.content.values()) / max(objective.style.values()) == pytest.approx(ratio, rel=1e-12)


def test_layers_by_name_have_their_weights_or_the_largest():
    ((one, two),) = cells(JobSpec(preset="filterbank"), None, Axis("layers", ("bank1+bank9", "bank0")))
    assert one.recipe()[0].objective.style == {"bank1": 2.0, "bank9": 0.5}
    assert one.recipe()[0].objective.statistics == {"bank1": "covariance", "bank9": "covariance"}
    assert two.recipe()[0].objective.style == {"bank0": 4.0}
    ((other,),) = cells(SPEC, None, Axis("layers", ("relu1_2",)))
    assert other.recipe()[0].objective.style == {"relu1_2": 200.0}


@pytest.mark.parametrize("rows_first", [False, True])
def test_changes_of_the_job_come_before_those_of_its_recipe(rows_first):
    axes = Axis("preset", ("gatys", "johnson")), Axis("layers", ("2",))
    rows, columns = axes if rows_first else axes[::-1]
    grid = cells(SPEC, rows, columns)
    jobs = [row[0] for row in grid] if rows_first else grid[0]
    assert [job.recipe()[0].name for job in jobs] == ["gatys", "johnson"]
    assert all(len(job.recipe()[0].objective.style) == 2 for job in jobs)


@pytest.mark.parametrize("name", SETTINGS)
def test_every_setting_changes_the_job_and_keeps_the_others(name):
    value = {"layers": "2", "style": "c.png", "init": "style", "preset": "keras", "solver": "adam", "pooling": "max"}
    changes = {"seed": 3, "content_weight": 7.0, "iterations": 9}
    changed = SETTINGS[name](SPEC.changed(changes), value.get(name, "5"))
    assert changed != SPEC.changed(changes)
    preset = changed.recipe()[0]
    if name not in ("seed", "content-weight", "iterations", "ratio"):
        assert changed.seed == 3
        assert max(preset.objective.content.values()) == 7.0
        assert preset.total_iterations() == 9


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("ratio", "much"),
        ("layers", "0"),
        ("layers", "6"),
        ("seed", "1.5"),
        ("seed", "-1"),
        ("iterations", "0"),
        ("pooling", "min"),
        ("solver", "none"),
        ("preset", "none"),
        ("ratio", "-1"),
        ("tv-weight", "nan"),
    ],
)
def test_values_that_cannot_be_are_refused_before_painting(name, value):
    with pytest.raises(UsageError):
        cells(SPEC, Axis(name, (value,)), None)[0][0].recipe()


def test_one_setting_on_both_axes_is_refused():
    with pytest.raises(UsageError, match="both go over seed"):
        cells(SPEC, Axis("seed", ("1",)), Axis("seed", ("2",)))


def test_paintings_lie_in_their_row_and_column_and_labels_beside_them():
    rows, columns = Axis("seed", ("1", "2")), Axis("layers", ("1", "relu1_1+relu2_1+relu3_1", "3"))
    values = [[0.1, 0.2, 0.3], [0.4, 0.5, 0.6]]
    picture = sheet([[result(value) for value in row] for row in values], rows, columns)
    assert picture.dtype == np.uint8
    found = []
    for row in values:
        for value in row:
            level = np.uint8(np.rint(255 * np.float32(value)))
            ys, xs = np.nonzero((picture == level).all(axis=2))
            # Letters have all kinds of grey, but not as many pixels as a painting.
            assert len(ys) >= 40 * 30
            found.append((np.median(ys), np.median(xs)))
    assert found[0][0] == found[1][0] < found[3][0] == found[5][0]
    assert found[0][1] == found[3][1] < found[1][1] < found[2][1]
    left, top = int(found[0][1]) - 25, int(found[0][0]) - 20
    assert (picture[:top] < 128).any()
    assert (picture[top:, :left] < 128).any()
    assert (picture[-1] == 255).all()


def test_a_sheet_over_one_setting_has_no_room_for_labels_of_another():
    alone = sheet([[result(0.1)], [result(0.2)]], Axis("seed", ("1", "2")), None)
    assert (alone[:8] == 255).all()
    assert alone.shape[0] == 2 * 30 + 3 * 8
    both = sheet([[result(0.1), result(0.2, (20, 60))]], None, Axis("seed", ("1", "2")))
    assert both.shape[1] == 2 * 40 + 3 * 8
