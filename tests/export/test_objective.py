from dataclasses import replace

import numpy as np
import pytest

from impasto.errors import MissingTapError, UnknownNameError, UsageError
from impasto.export.objective import (
    CONTENT_NORMS,
    GRAM_NORMS,
    MEAN_SHARE,
    STATISTICS,
    STYLE_NORMS,
    Objective,
    Targets,
    coefficients,
    style_target,
)

OBJECTIVE = Objective(content={"relu2_1": 2.0}, style={"relu1_1": 3.0, "relu2_1": 5.0}, tv=0.5)
MIXED = replace(OBJECTIVE, statistics={"relu2_1": "covariance"})


# --- Values ----------------------------------------------------------------------------------------------------------


def test_terms_and_taps_come_in_order_and_once():
    objective = Objective(content={"b": 1.0, "a": 1.0}, style={"c": 1.0, "b": 1.0}, tv=1.0)
    assert objective.taps == ("b", "a", "c")
    assert objective.terms == ("content.b", "content.a", "style.c", "style.b", "tv")
    assert replace(objective, tv=0.0).terms[-1] == "style.b"


def test_scaling_multiplies_every_weight():
    scaled = MIXED.scaled(4.0)
    assert (scaled.content, scaled.style, scaled.tv) == ({"relu2_1": 8.0}, {"relu1_1": 12.0, "relu2_1": 20.0}, 2.0)
    assert scaled.statistics == MIXED.statistics
    assert MIXED.content == {"relu2_1": 2.0}


def test_taps_without_a_statistic_of_their_own_have_the_gram_matrix():
    assert [MIXED.statistic(tap) for tap in ("relu1_1", "relu2_1")] == ["gram", "covariance"]
    assert OBJECTIVE.statistic("relu2_1") == "gram"


def test_taps_are_left_out_with_all_of_their_terms():
    objective = replace(MIXED, content={"relu2_1": 2.0, "relu1_2": 1.0})
    assert objective.without({"relu2_1"}) == Objective(content={"relu1_2": 1.0}, style={"relu1_1": 3.0}, tv=0.5)
    # What is left keeps its statistic, and taps that have no term change nothing.
    assert objective.without(["relu1_1", "relu3_1"]) == replace(objective, style={"relu2_1": 5.0})
    assert objective.without([]) == objective
    assert objective.taps == ("relu2_1", "relu1_2", "relu1_1")
    with pytest.raises(UsageError, match="no content and no style term"):
        objective.without(objective.taps)


@pytest.mark.parametrize(
    "field", ["content_norm", "gram_norm", "style_norm", "tv_form", "pooling", "pixels", "convention"]
)
def test_unknown_forms_are_refused(field):
    with pytest.raises(UsageError, match=f"{field} 'twisted' is unknown: choose among "):
        replace(OBJECTIVE, **{field: "twisted"})


@pytest.mark.parametrize("statistic", ["variance", "", None, 1])
def test_unknown_statistics_are_refused(statistic):
    with pytest.raises(
        UsageError, match=f"statistic {statistic!r} of relu2_1 is unknown: choose among gram, covariance"
    ):
        replace(OBJECTIVE, statistics={"relu1_1": "covariance", "relu2_1": statistic})


@pytest.mark.parametrize("statistic", STATISTICS)
def test_statistics_of_taps_without_a_style_term_are_refused(statistic):
    """A misspelt tap would have the Gram matrix without a word."""
    for tap in ("relu2_2", "content"):
        with pytest.raises(UsageError, match=f"statistics name '{tap}', which has no style term"):
            replace(OBJECTIVE, content={tap: 1.0}, statistics={tap: statistic})


@pytest.mark.parametrize("weight", [-1e-9, float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("kind", ["content", "style", "tv"])
def test_weights_that_cannot_be_are_refused(kind, weight):
    value = weight if kind == "tv" else {"relu1_1": weight}
    with pytest.raises(UsageError, match="must be a finite number, zero or more"):
        replace(OBJECTIVE, **{kind: value})


@pytest.mark.parametrize("tv", [0.0, 1.0])
def test_an_objective_without_taps_is_refused(tv):
    with pytest.raises(UsageError, match="no content and no style term"):
        Objective(content={}, style={}, tv=tv)


def test_canonical_names(shallow):
    objective = Objective(content={"block2_conv1": 2.0}, style={"features.0": 3.0, "conv_5": 5.0}, tv=0.5)
    canonical = objective.canonical(shallow)
    assert canonical == replace(objective, content={"relu2_1": 2.0}, style={"conv1_1": 3.0, "conv3_1": 5.0})
    assert canonical.canonical(shallow) == canonical


def test_canonical_names_of_statistics(shallow):
    objective = Objective(
        content={"block2_conv1": 2.0},
        style={"features.0": 3.0, "relu2_1": 5.0, "conv_5": 1.0},
        statistics={"features.0": "covariance", "relu2_1": "gram"},
    )
    canonical = objective.canonical(shallow)
    assert canonical.statistics == {"conv1_1": "covariance", "relu2_1": "gram"}
    assert [canonical.statistic(tap) for tap in canonical.style] == ["covariance", "gram", "gram"]
    assert canonical.canonical(shallow) == canonical


def test_one_tap_under_two_names_is_refused(shallow):
    """One of the two weights would be lost without a word."""
    with pytest.raises(UsageError, match=r"'relu2_1' and 'block2_conv1' are one tap, relu2_1"):
        Objective(content={"relu2_1": 1.0, "block2_conv1": 2.0}, style={}).canonical(shallow)
    # A content and a style term on one tap are two terms.
    Objective(content={"relu2_1": 1.0}, style={"block2_conv1": 2.0}).canonical(shallow)


def test_taps_that_are_not_there_are_refused(shallow):
    with pytest.raises(MissingTapError, match="conv3_1"):
        replace(OBJECTIVE, content={"relu4_2": 1.0}).canonical(shallow)
    with pytest.raises(UnknownNameError, match="relu2_1"):
        replace(OBJECTIVE, content={"relu2_l": 1.0}).canonical(shallow)


# --- Coefficients ----------------------------------------------------------------------------------------------------
# The graphs compute c·Σ(F - P)² and c·Σ(F·Fᵀ/N - A)². Every normalisation is checked on random features against its
# formula, with the style picture's N' unlike the result's N.

SHAPE, CHANNELS, POSITIONS, STYLE_POSITIONS = (18, 10), 6, 45, 77


def features(seed, positions, channels=CHANNELS):
    return np.random.RandomState(seed).standard_normal((channels, positions)) * 3


@pytest.mark.parametrize("norm", CONTENT_NORMS)
def test_content_coefficients(norm):
    f, p = features(1, POSITIONS), features(2, POSITIONS).astype(np.float32)
    objective = Objective(content={"t": 0.7}, style={}, content_norm=norm)
    targets = Targets({"t": p.reshape(1, CHANNELS, 9, 5)}, {}, {})
    c = coefficients(objective, targets, {}, SHAPE)
    squares = (f - p) ** 2
    expected = {
        "mean": squares.mean(),
        "sum": squares.sum(),
        "half-sum": squares.sum() / 2,
        "relative": squares.sum() / np.sum(p.astype(np.float64) ** 2),
    }[norm]
    assert list(c) == ["content.t.weight"]
    assert c["content.t.weight"] * squares.sum() == pytest.approx(0.7 * expected, rel=1e-12)


@pytest.mark.parametrize("gram_norm", GRAM_NORMS)
@pytest.mark.parametrize("style_norm", STYLE_NORMS)
def test_style_coefficients(gram_norm, style_norm):
    f, s = features(3, POSITIONS), features(4, STYLE_POSITIONS)
    objective = Objective(content={}, style={"t": 0.7}, gram_norm=gram_norm, style_norm=style_norm)
    measured = (s @ s.T / STYLE_POSITIONS).astype(np.float32)
    targets = Targets({}, {"t": measured}, {"t": STYLE_POSITIONS})
    c = coefficients(objective, targets, {"t": POSITIONS}, SHAPE)["style.t.weight"]
    target = style_target(objective, targets, "t", POSITIONS)
    found = c * np.sum((f @ f.T / POSITIONS - target) ** 2)

    divisor = {"positions": lambda n: n, "elements": lambda n: CHANNELS * n, "none": lambda _: 1}[gram_norm]
    g, a = f @ f.T / divisor(POSITIONS), s @ s.T / divisor(STYLE_POSITIONS)
    squares = np.sum((g - a) ** 2)
    expected = {
        "sum": squares,
        "mean": squares / CHANNELS**2,
        "gatys": squares / (4 * CHANNELS**2 * POSITIONS**2),
        "image": squares / (4 * 3**2 * (SHAPE[0] * SHAPE[1]) ** 2),
        "relative": squares / np.sum(a**2),
    }[style_norm]
    # The target was rounded to float32 once or twice.
    assert found == pytest.approx(0.7 * expected, rel=1e-6)


@pytest.mark.parametrize("gram_norm", GRAM_NORMS)
@pytest.mark.parametrize("style_norm", STYLE_NORMS)
def test_covariance_coefficients(gram_norm, style_norm):
    """A weighted mean of two relative errors, whatever the Gram matrices of other taps are normalised by."""
    f, s = features(6, POSITIONS) + 1, features(7, STYLE_POSITIONS) - 2
    style = {"t": 0.7, "other": 0.3}
    objective = Objective({}, style, gram_norm=gram_norm, style_norm=style_norm, statistics={"t": "covariance"})
    covariance, mean = np.cov(s, bias=True).astype(np.float32), s.mean(axis=1, keepdims=True).astype(np.float32)
    gram = (s @ s.T / STYLE_POSITIONS).astype(np.float32)
    counts = dict.fromkeys(style, STYLE_POSITIONS)
    targets = Targets({}, {"t": covariance, "other": gram}, counts, means={"t": mean})
    positions = dict.fromkeys(style, POSITIONS)
    c = coefficients(objective, targets, positions, SHAPE)
    assert set(c) == {"style.t.weight", "style.t.mean.weight", "style.other.weight"}
    assert style_target(objective, targets, "t", POSITIONS) is covariance

    spread = np.sum((np.cov(f, bias=True) - covariance) ** 2)
    level = np.sum((f.mean(axis=1, keepdims=True) - mean) ** 2)
    found = c["style.t.weight"] * spread + c["style.t.mean.weight"] * level
    of_spread, of_mean = (np.sum(target.astype(np.float64) ** 2) for target in (covariance, mean))
    expected = (1 - MEAN_SHARE) * spread / of_spread + MEAN_SHARE * level / of_mean
    assert found == pytest.approx(0.7 * expected, rel=1e-12)
    # The other tap's is what it would be without.
    plain = Objective({}, {"other": 0.3}, gram_norm=gram_norm, style_norm=style_norm)
    assert c["style.other.weight"] == coefficients(plain, targets, positions, SHAPE)["style.other.weight"]


def test_targets_of_zeros_count_as_one():
    """Nothing can be relative to them."""
    objective = Objective(content={"t": 2.0}, style={"t": 3.0}, content_norm="relative", style_norm="relative")
    targets = Targets({"t": np.zeros((1, 2, 1, 1), np.float32)}, {"t": np.zeros((2, 2), np.float32)}, {"t": 1})
    c = coefficients(objective, targets, {"t": 1}, (1, 1))
    assert c == {"content.t.weight": 2.0, "style.t.weight": 3.0}
    # A style picture of one colour has a mean, and no covariance; one that no filter responds to has neither.
    objective = Objective(content={}, style={"t": 3.0}, statistics={"t": "covariance"})
    for mean, energy in (([[2.0], [-1.0]], 5), ([[0.0], [0.0]], 1)):
        targets = Targets({}, {"t": np.zeros((2, 2), np.float32)}, {"t": 1}, {"t": np.asarray(mean, np.float32)})
        c = coefficients(objective, targets, {"t": 1}, (1, 1))
        expected = {"style.t.weight": 3 * (1 - MEAN_SHARE), "style.t.mean.weight": 3 * MEAN_SHARE / energy}
        assert c == pytest.approx(expected, rel=1e-15)


def test_the_total_variation_keeps_its_weight():
    targets = Targets({"t": np.ones((1, 2, 1, 1), np.float32)}, {}, {})
    objective = Objective(content={"t": 1.0}, style={}, tv=0.25)
    assert coefficients(objective, targets, {}, (1, 1))["tv.weight"] == 0.25
    assert "tv.weight" not in coefficients(replace(objective, tv=0.0), targets, {}, (1, 1))


def test_style_targets_are_the_measured_ones_unless_the_gram_is_a_sum():
    measured = features(5, 4, 4).astype(np.float32)
    targets = Targets({}, {"t": measured}, {"t": 30})
    for norm in ("positions", "elements"):
        objective = Objective(content={}, style={"t": 1.0}, gram_norm=norm)
        assert style_target(objective, targets, "t", 10) is measured
    summed = style_target(Objective(content={}, style={"t": 1.0}, gram_norm="none"), targets, "t", 10)
    np.testing.assert_array_equal(summed, measured * np.float32(3))
    assert summed.dtype == np.float32
