from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from impasto.errors import ImageError, LimitError, UsageError
from impasto.export.objective import Objective
from impasto.models.conventions import pixel_space
from impasto.models.weights import Weights
from impasto.runtime.evaluate import evaluate
from impasto.runtime.images import Sizing
from impasto.runtime.limits import Limits
from impasto.runtime.presets import Preset
from impasto.runtime.recipes import FILTERBANK
from impasto.runtime.solvers import LBFGS
from impasto.runtime.stylizer import Stylizer

Pictures = Callable[..., NDArray[np.float32]]

# Terms of like size, each in a norm that the picture's own size enters.
PRESET = Preset(
    name="mine",
    source="this test",
    objective=Objective(
        content={"relu2_2": 1.0},
        style={"relu1_1": 1.0, "relu2_1": 1.0},
        tv=1e-6,
        content_norm="relative",
        gram_norm="none",
        style_norm="relative",
    ),
    solver=LBFGS(iterations=2),
    sizing=Sizing("height", 40),
)


@pytest.fixture(scope="module")
def stylizer(shallow: Weights) -> Iterator[Stylizer]:
    with Stylizer(PRESET, weights=shallow, backend="onnxruntime", cache=False) as stylizer:
        yield stylizer


def test_evaluating_the_start_gives_the_first_step(stylizer: Stylizer, picture: Pictures) -> None:
    """A painting that starts from the content picture sees there what an evaluation of that picture does."""
    content, style = picture(1, 40, 31), picture(2, 57, 64)
    first = next(iter(stylizer.steps(content, style)))
    found = evaluate(stylizer, content, content, style, sizing=PRESET.sizing)
    assert list(found.terms) == ["content.relu2_2", "style.relu1_1", "style.relu2_1", "tv"]
    # The painting scales the objective and its terms back, which rounds: a few units of the last place.
    assert found.terms == pytest.approx(first.terms, rel=1e-6, abs=1e-12)
    assert found.terms["content.relu2_2"] == 0


def test_the_gradient_is_that_of_the_loss(stylizer: Stylizer, picture: Pictures) -> None:
    """Along a random direction, against a central difference of the losses.

    The loss has kinks and float32 rounding: a step of 1e-3 of 255 in each pixel changes the loss by some 1e-3 of
    itself, which rounding of 1e-7 leaves exact to 1e-4; curvature and kinks add a few 1e-3.
    """
    image, content, style = picture(3, 21, 34), picture(4, 50, 40), picture(5, 30, 30)
    image = 0.1 + 0.8 * image
    space = pixel_space(PRESET.objective.pixels)
    found = evaluate(stylizer, image, content, style)
    direction = np.sign(found.gradient).astype(np.float32)
    losses = []
    for sign in (1, -1):
        moved = space.decode(space.encode(image) + np.float32(sign * 0.25) * direction)
        losses.append(evaluate(stylizer, moved, content, style).loss["total"])
    slope = float(np.sum(found.gradient.astype(np.float64) * direction))
    assert (losses[0] - losses[1]) / 0.5 == pytest.approx(slope, rel=0.02)


def test_what_is_told(stylizer: Stylizer, picture: Pictures, shallow: Weights) -> None:
    found = evaluate(stylizer, picture(6, 17, 33), picture(7, 20, 20), picture(8, 9, 50))
    assert found.size == (33, 17)
    assert (found.gradient.shape, found.gradient.dtype) == ((3, 17, 33), np.float32)
    assert found.loss["total"] == pytest.approx(sum(found.terms.values()), rel=1e-12)
    assert found.loss["style"] == found.terms["style.relu1_1"] + found.terms["style.relu2_1"]
    value = json.loads(json.dumps(found.to_json(), allow_nan=False))
    assert value == {
        "size": [33, 17],
        "preset": "mine",
        "backend": "onnxruntime",
        "precision": "fp32",
        "plan": "fused",
        "weights": {"name": shallow.name, "sha256": shallow.sha256},
        "taps": {"content": ["relu2_2"], "style": ["relu1_1", "relu2_1"]},
        "pixels": "caffe",
        "loss": dict(found.loss),
        "terms": dict(found.terms),
        "notes": [],
    }


def test_the_style_picture_is_sized_as_the_preset_says(shallow: Weights, picture: Pictures) -> None:
    """A constant objective of sums of the Gram matrix tells at which size it was measured."""
    image, content, style = picture(9, 20, 30), picture(10, 20, 30), picture(11, 44, 60)
    losses = {}
    for fit in ("result", "rule"):
        with Stylizer(replace(PRESET, style_fit=fit), weights=shallow, backend="onnxruntime", cache=False) as stylizer:  # type: ignore[arg-type]
            for name, sizing in (("long", None), ("height", Sizing("height", 20)), ("short", Sizing("short", 40))):
                losses[fit, name] = evaluate(stylizer, image, content, style, sizing=sizing).loss["style"]
    assert losses["result", "long"] == losses["result", "height"] == losses["result", "short"]
    # 44x60 by a long side of 30 is 30x22, by a height of 20 it is 27x20, and with a short side of 40, 55x40.
    assert len({losses["rule", name] for name in ("long", "height", "short")} | {losses["result", "long"]}) == 4


def test_plans_agree(shallow: Weights, picture: Pictures, stylizer: Stylizer) -> None:
    pictures = picture(12, 33, 18), picture(13, 20, 20), picture(14, 30, 21)
    fused = evaluate(stylizer, *pictures)
    with Stylizer(PRESET, weights=shallow, backend="onnxruntime", cache=False, plan="sliced") as sliced:
        found = evaluate(sliced, *pictures)
    assert found.plan == "sliced"
    assert found.terms == pytest.approx(fused.terms, rel=1e-5)
    # No bound of 1e-5: an activation may flip between the two.
    assert np.linalg.norm(found.gradient - fused.gradient) < 1e-3 * np.linalg.norm(fused.gradient)


# --- The filter bank: its levels are those of the picture's size -----------------------------------------------------


@pytest.mark.parametrize("plan", ["fused", "sliced"])
def test_the_filter_banks_total_is_that_of_a_painting_at_that_picture(
    bank: Weights, picture: Pictures, plan: str
) -> None:
    """At the start of a painting, and at its end, where the picture is again what was evaluated last of all."""
    preset = replace(FILTERBANK, stages=(), margin=0, solver=LBFGS(iterations=4, first_step=1 / 255))
    # Far from black and white, so that the painting, which is not clipped on the way, is not clipped at its end.
    content, style = (0.3 + 0.4 * picture(seed, *size) for seed, size in ((1, (40, 33)), (2, (44, 40))))
    with Stylizer(preset, weights=bank, backend="onnxruntime", cache=False, plan=plan) as stylizer:  # type: ignore[arg-type]
        result = stylizer.stylize(content, style, size=40)
        assert 0 < result.image.min() < result.image.max() < 1
        start, end = (evaluate(stylizer, image, content, style) for image in (content, result.image))
    assert start.loss["total"] == pytest.approx(result.trace[0].loss, rel=1e-6)
    assert end.terms == pytest.approx(result.terms, rel=1e-6)
    assert (end.preset, end.taps, end.pixels) == ("filterbank", result.taps, "unit")
    assert end.loss["total"] < start.loss["total"]


def test_a_presets_margin_is_no_part_of_the_picture(stylizer: Stylizer, shallow: Weights, picture: Pictures) -> None:
    pictures = picture(3, 21, 34), picture(4, 50, 40), picture(5, 30, 30)
    plain = evaluate(stylizer, *pictures)
    with Stylizer(replace(PRESET, margin=5), weights=shallow, backend="onnxruntime", cache=False) as wide:
        found = evaluate(wide, *pictures)
    assert (found.size, found.terms) == (plain.size, plain.terms)
    np.testing.assert_array_equal(found.gradient, plain.gradient)


def test_levels_are_those_of_both_pictures_at_the_evaluations_size(bank: Weights, picture: Pictures) -> None:
    preset = replace(FILTERBANK, smallest_grid=8)
    image, content = picture(3, 28, 60), picture(4, 20, 20)
    taps = {}
    with Stylizer(preset, weights=bank, backend="onnxruntime", cache=False) as stylizer:
        for name, style in (
            ("wide", picture(5, 29, 58)),
            ("narrow", picture(5, 70, 17)),
            ("none", picture(5, 100, 23)),
        ):
            taps[name] = evaluate(stylizer, image, content, style).taps["style"]
        tiny = evaluate(stylizer, picture(6, 7, 60), content, picture(5, 29, 58))
    # 28, 14 and 7 high: level 2 is too small. Style pictures of 60 by 15 and by 14 have 8 and 7 positions at level 1.
    assert taps == {"wide": ["bank0", "bank1"], "narrow": ["bank0", "bank1"], "none": ["bank0"]}
    assert tiny.taps["style"] == ["bank0"]
    assert set(tiny.terms) == {f"{kind}.bank0" for kind, taps in tiny.taps.items() if taps}


def test_a_later_evaluation_leaves_an_earlier_gradient_alone(stylizer: Stylizer, picture: Pictures) -> None:
    content, style = picture(15, 20, 20), picture(16, 20, 20)
    first = evaluate(stylizer, picture(17, 20, 20), content, style)
    kept = first.gradient.copy()
    evaluate(stylizer, picture(18, 20, 20), content, style)
    np.testing.assert_array_equal(first.gradient, kept)


def test_refusals(shallow: Weights, stylizer: Stylizer, picture: Pictures) -> None:
    small, large = picture(19, 1, 9), picture(20, 24, 24)
    with pytest.raises(ImageError, match=r"9x1 pixels is too small for tap relu2"):
        evaluate(stylizer, small, large, large)
    with pytest.raises(ImageError):
        evaluate(stylizer, b"no picture", large, large)
    with (
        Stylizer(
            PRESET, weights=shallow, backend="onnxruntime", cache=False, limits=Limits(max_long_side=23)
        ) as limited,
        pytest.raises(LimitError, match="max_long_side"),
    ):
        evaluate(limited, large, small, small)
    steps = iter(stylizer.steps(large, large))
    next(steps)
    with pytest.raises(UsageError, match="painting already"):
        evaluate(stylizer, large, large, large)
    steps.close()  # type: ignore[attr-defined]
    evaluate(stylizer, large, large, large)
