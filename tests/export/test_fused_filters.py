"""The fused graph of a filter bank's objective: its inputs, and its numbers against the formulas in torch."""

import re
from dataclasses import replace

import numpy as np
import pytest
import torch

from impasto.errors import ImageError
from impasto.export import fused
from impasto.export.fused import fused_graph
from impasto.export.objective import MEAN_SHARE, Objective, Targets, coefficients
from impasto.models.conventions import PIXEL_SPACES, pixel_space
from impasto.models.layers import Filters
from impasto.models.reference import Reference

OBJECTIVE = Objective(
    content={"bank0": 0.5, "level1": 0.1},
    style={"bank0": 1.0, "level1": 0.3, "bank1": 2.0},
    tv=1e-3,
    content_norm="relative",
    style_norm="relative",
    pixels="unit",
    convention="unit",
    statistics={"bank0": "covariance", "bank1": "covariance"},
)


def documented(objective, weights):
    """Names and dimensions of the inputs, read from the table in the module's docstring."""
    rows = re.findall(r"^``([^`]+)`` +(\([^)]*\))", fused.__doc__, re.MULTILINE)
    layers = [layer for layer in weights.backbone.needed(objective.taps) if isinstance(layer, Filters)]
    every = {
        "content.": list(objective.content),
        "style.": list(objective.style),
        "mean": [tap for tap in objective.style if objective.statistic(tap) == "covariance"],
    }
    found = {}
    for name, shape in rows:
        if "<layer>" in name:
            for layer in layers:
                found[name.replace("<layer>", layer.name)] = (shape, layer.out_channels)
        elif "<tap>" in name:
            for tap in every["mean" if ".mean" in name else name[: name.index("<")]]:
                found[name.replace("<tap>", tap)] = (shape, weights.backbone.channels(tap))
        elif name != "tv.weight" or objective.tv:
            found[name] = (shape, 3)
    assert len(rows) >= 11
    return {
        name: tuple(channels if d == "C" else int(d) if d.isdigit() else d for d in re.findall(r"\w+", shape))
        for name, (shape, channels) in found.items()
    }


@pytest.mark.parametrize("tv", [0.0, 1.0])
@pytest.mark.parametrize("statistics", [{}, OBJECTIVE.statistics], ids=["gram", "covariance"])
def test_inputs_are_those_of_the_table(bank, tv, statistics):
    objective = replace(OBJECTIVE, tv=tv, statistics=statistics)
    graph = fused_graph(objective, bank)
    table = documented(objective, bank)
    assert set(graph.inputs) == set(table)
    for name, dims in table.items():
        dtype, shape = graph.inputs[name]
        assert dtype == np.float32
        assert len(shape) == len(dims)
        assert all(s == d for s, d in zip(shape, dims, strict=True) if isinstance(d, int)), name
    assert graph.outputs == [*(f"loss.{term}" for term in objective.terms), "gradient"]


def taps_of(weights, objective, taps, image, calibration):
    """The taps of an image in float64."""
    network = Reference(weights, taps, "max", pixel_space(objective.convention), torch.float64)
    return network(image, {name: torch.from_numpy(value).double() for name, value in calibration.items()})


def mean_and_covariance(features):
    flat = features[0].flatten(1)
    mean = flat.mean(1, keepdim=True)
    return mean, (flat - mean) @ (flat - mean).T / flat.shape[1]


def measured(objective, content, style):
    """Targets, as `Targets` describes them, of the taps of two pictures."""
    products, means = {}, {}
    for tap in objective.style:
        flat = style[tap][0].flatten(1)
        products[tap] = (flat @ flat.T / flat.shape[1]).float().numpy()
        if objective.statistic(tap) == "covariance":
            means[tap], products[tap] = (value.float().numpy() for value in mean_and_covariance(style[tap]))
    counts = {tap: style[tap][0, 0].numel() for tap in objective.style}
    return Targets({tap: content[tap].float().numpy() for tap in objective.content}, products, counts, means)


def by_formula(objective, taps, image, targets):
    """Every term of the objective, as `Objective` describes it."""

    def relative(value, target):
        target = torch.from_numpy(target).double()
        return (value - target).square().sum() / target.square().sum()

    terms = {f"content.{tap}": w * relative(taps[tap], targets.content[tap]) for tap, w in objective.content.items()}
    for tap, weight in objective.style.items():
        if objective.statistic(tap) == "covariance":
            mean, covariance = mean_and_covariance(taps[tap])
            term = (1 - MEAN_SHARE) * relative(covariance, targets.style[tap])
            terms[f"style.{tap}"] = weight * (term + MEAN_SHARE * relative(mean, targets.means[tap]))
        else:
            flat = taps[tap][0].flatten(1)
            terms[f"style.{tap}"] = weight * relative(flat @ flat.T / flat.shape[1], targets.style[tap])
    variation = image.diff(dim=2).square().sum() + image.diff(dim=3).square().sum()
    return terms | {"tv": objective.tv * variation / 2}


def inputs(objective, targets, image, calibration):
    """What the table in the module's docstring says, from the objective's own functions."""
    grids = {
        tap: tuple(-(-side // (2 if tap.endswith("1") else 1)) for side in image.shape[2:]) for tap in objective.style
    }
    positions = {tap: height * width for tap, (height, width) in grids.items()}
    values = {"image": image, **calibration}
    for name, value in coefficients(objective, targets, positions, image.shape[2:]).items():
        values[name] = np.asarray(value, np.float32)
    values |= {f"style.{tap}.scale": np.asarray(1 / count, np.float32) for tap, count in positions.items()}
    values |= {f"content.{tap}": value for tap, value in targets.content.items()}
    values |= {f"style.{tap}": value for tap, value in targets.style.items()}
    return values | {f"style.{tap}.mean": value for tap, value in targets.means.items()}


def away_from_flips(weights, objective, image, calibration, rounding):
    """Move every filter's threshold to the middle of the widest gap between its responses to the image.

    The gradient is another where a filter responds instead of not, so rounding must not decide that.
    """
    moved = dict(calibration)
    responses = [tap.replace("bank", "response") for tap in objective.taps if tap.startswith("bank")]
    for tap, value in taps_of(weights, objective, responses, torch.from_numpy(image).double(), calibration).items():
        ordered = value[0].flatten(1).sort().values
        # Of the middle half, so that every filter responds somewhere and not everywhere.
        quarter = ordered.shape[1] // 4
        ordered = ordered[:, quarter:-quarter]
        gap, place = ordered.diff().max(dim=1)
        middle = ordered.gather(1, place[:, None])[:, 0] + gap / 2
        moved[f"{tap}.threshold"] = (calibration[f"{tap}.threshold"] + middle.numpy()).astype(np.float32)
        assert (gap.numpy() / 2 > rounding(tap, moved).ravel()).all()
    return moved


@pytest.fixture(scope="module", params=["unit", "caffe"])
def problem(request, bank, picture, calibration, bank_rounding):
    """An objective in a pixel space, its targets, an image, and a calibration by which rounding decides nothing."""
    objective = replace(OBJECTIVE, pixels=request.param, convention=request.param)
    if request.param == "caffe":
        # The numbers are 255 times as large.
        objective = replace(objective, tv=objective.tv / 255**2)
    least = bank.backbone.smallest("bank1")

    def encoded(seed, *more):
        return pixel_space(objective.convention).encode(picture(seed, least + more[0], least + more[1]))[None]

    image = encoded(1, 4, 1)
    # The other space's pixels, and the means that are added to them, are below twice those of the bank's own.
    calibration = away_from_flips(bank, objective, image, calibration, lambda *args: bank_rounding(*args, 2.0))
    content, style = (
        taps_of(bank, objective, objective.taps, torch.from_numpy(x).double(), calibration)
        for x in (encoded(2, 4, 1), encoded(3, 9, 14))
    )
    return objective, measured(objective, content, style), image, calibration


@pytest.mark.parametrize("dynamic", [False, True], ids=["fixed", "dynamic"])
def test_terms_and_gradient_are_those_of_the_formulas(bank, run, problem, dynamic):
    objective, targets, image, calibration = problem
    graph = fused_graph(objective, bank, None if dynamic else image.shape[2:])
    found = run(graph, inputs(objective, targets, image, calibration))
    x = torch.from_numpy(image).double().requires_grad_()
    terms = by_formula(objective, taps_of(bank, objective, objective.taps, x, calibration), x, targets)
    sum(terms.values()).backward()
    assert list(found) == [*(f"loss.{term}" for term in terms), "gradient"]
    # Features of a size of 1 are off by 1e-6 or so, and nothing cancels more than some tenfold; a flip would cost 1e-3.
    for term, value in terms.items():
        assert float(found[f"loss.{term}"]) == pytest.approx(value.item(), rel=1e-5)
    expected = x.grad.numpy()
    assert found["gradient"].shape == expected.shape
    assert np.linalg.norm(found["gradient"] - expected) <= 1e-5 * np.linalg.norm(expected)
    # No term is lost among the others.
    for value in by_formula(objective, taps_of(bank, objective, objective.taps, x, calibration), x, targets).values():
        (part,) = torch.autograd.grad(value, x, retain_graph=True)
        assert part.norm() > 1e-3 * np.linalg.norm(expected)


@pytest.mark.parametrize("shape", [None, (40, 33)], ids=["dynamic", "fixed"])
def test_nothing_is_expanded_to_the_size_of_a_tap(bank, shape):
    """The slope of a mean is the same at every position, and taps are the largest tensors of all."""
    graph = fused_graph(replace(OBJECTIVE, tv=0.0), bank, shape)
    types = graph.infer_shapes()
    assert all(len(types[node.output[0]][1]) < 4 for node in graph.nodes if node.op_type == "Expand")


@pytest.mark.parametrize("space", PIXEL_SPACES)
def test_what_is_too_small_is_refused_in_every_space(bank, space):
    objective = replace(OBJECTIVE, pixels=space, convention=space)
    least = bank.backbone.smallest("bank1")
    fused_graph(objective, bank, (least, least))
    with pytest.raises(ImageError, match="tap bank1"):
        fused_graph(objective, bank, (least, least - 1))
