"""One contract for every backend and plan; parity of the numbers is in test_parity.py."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch

from impasto.errors import DeviceError, ImageError, LimitError, UsageError
from impasto.export.objective import Objective
from impasto.models.conventions import UNIT, smallest_deviation
from impasto.models.random_weights import filterbank_weights
from impasto.models.weights import Weights
from impasto.runtime.backends.onnxruntime import OnnxRuntimeBackend
from impasto.runtime.backends.protocol import Backend, Plan
from impasto.runtime.backends.select import BACKENDS, open_backend
from impasto.runtime.backends.torch import TorchBackend
from impasto.runtime.problem import Problem
from impasto.runtime.targets import encoded, measure_targets

COMBINATIONS = [
    ("onnxruntime", "fused"),
    ("onnxruntime", "sliced"),
    ("openvino", "fused"),
    ("openvino", "sliced"),
    ("torch", "fused"),
]

# A tap before its ReLU, one after a pool, one that has both a content and a style term, and several in one block.
OBJECTIVE = Objective(
    content={"conv2_2": 2.0, "relu2_1": 0.5},
    style={"relu1_1": 1.0, "pool1": 3.0, "relu2_1": 10.0, "relu3_1": 7.0},
    tv=1e-4,
)


@dataclass
class Executor:
    """A backend and the plan that it is to follow."""

    backend: Backend
    plan: Plan

    def problem(self, weights, objective, content, style):
        targets = measure_targets(self.backend, weights, objective, content, style)
        return Problem(objective.canonical(weights), weights, targets, content.shape[:2])

    def evaluate(self, problem, image):
        """Terms and a copy of the gradient."""
        losses = self.backend.prepare(problem, self.plan).evaluate(image)
        return dict(losses.terms), losses.gradient.copy()


@pytest.fixture(params=COMBINATIONS, ids="-".join)
def executor(request):
    name, plan = request.param
    if name == "openvino":
        pytest.importorskip("openvino", reason="openvino is not installed")
    backend = open_backend(name, precision="fp32")
    yield Executor(backend, plan)
    backend.close()


@pytest.fixture
def problem(executor, shallow, picture):
    return executor.problem(shallow, OBJECTIVE, picture(1, 22, 31), picture(2, 27, 18))


@pytest.fixture
def image(picture):
    return encoded(OBJECTIVE, picture(3, 22, 31))


def assert_equal(found, expected):
    """Bit for bit."""
    assert found[0] == expected[0]
    np.testing.assert_array_equal(found[1], expected[1])


def test_measures_float32_targets_of_the_taps_asked_for(executor, shallow, picture):
    objective = replace(OBJECTIVE, statistics={"relu1_1": "covariance", "relu2_1": "covariance"})
    image = encoded(objective, picture(4, 22, 31))
    asked = ("relu2_1", "conv2_2"), ("pool1", "relu1_1", "pool2"), {}
    found = executor.backend.measure(shallow, objective, image, *asked)
    assert {tap: value.shape for tap, value in found.activations.items()} == {
        "relu2_1": (1, 128, 11, 15),
        "conv2_2": (1, 128, 11, 15),
    }
    assert {tap: value.shape for tap, value in found.style.items()} == {
        "pool1": (64, 64),
        "relu1_1": (64, 64),
        "pool2": (128, 128),
    }
    # The mean goes with the covariance, of the taps asked for.
    assert {tap: value.shape for tap, value in found.means.items()} == {"relu1_1": (64, 1)}
    exact = TorchBackend(torch.float64).measure(shallow, objective, image, *asked)
    for kind in ("activations", "style", "means"):
        for tap, value in getattr(found, kind).items():
            assert value.dtype == np.float32
            # Sums of up to 682 products in float32: a few roundings of 6e-8. What the square of the mean takes away
            # from the covariance is no larger than what is left, so that it costs no digit.
            wanted = getattr(exact, kind)[tap]
            assert np.linalg.norm(value - wanted) <= 2e-6 * np.linalg.norm(wanted)


def test_measures_content_alone_and_style_alone(executor, shallow, picture):
    image = encoded(OBJECTIVE, picture(4, 6, 5))
    found = executor.backend.measure(shallow, OBJECTIVE, image, ("relu2_1",), (), {})
    assert list(found.activations) == ["relu2_1"]
    assert found.style == {}
    found = executor.backend.measure(shallow, OBJECTIVE, image, (), ("relu2_1",), {})
    assert found.activations == {}
    assert list(found.style) == ["relu2_1"]
    assert found.means == {}


def test_gives_every_term_and_the_gradient(executor, problem, image):
    losses = executor.backend.prepare(problem, executor.plan).evaluate(image)
    assert tuple(losses.terms) == OBJECTIVE.terms
    assert all(type(value) is float and value > 0 for value in losses.terms.values())
    assert losses.total == pytest.approx(sum(losses.terms.values()), rel=1e-15)
    assert losses.gradient.shape == image.shape
    assert losses.gradient.dtype == np.float32
    assert losses.gradient.flags.c_contiguous


def test_the_gradient_is_the_slope_of_the_loss(executor, shallow, picture):
    """Central differences along the gradient, in a smooth objective: before the first ReLU, and total variation."""
    objective = Objective(content={"conv1_1": 1.0}, style={"conv1_1": 1.0}, tv=1e-2, pixels="unit")
    problem = executor.problem(shallow, objective, picture(1, 6, 7), picture(2, 9, 5))
    image = encoded(objective, picture(3, 6, 7))
    evaluator = executor.backend.prepare(problem, executor.plan)
    gradient = evaluator.evaluate(image).gradient.copy()
    norm = float(np.linalg.norm(gradient))
    step = 0.05 * gradient / norm
    rise = evaluator.evaluate(image + step).total - evaluator.evaluate(image - step).total
    # The loss is a polynomial of degree 4; over a twentieth of a pixel's range its third order is below a hundredth.
    assert rise / (2 * 0.05) == pytest.approx(norm, rel=0.02)


def test_evaluates_the_same_bits_again(executor, problem, image):
    evaluator = executor.backend.prepare(problem, executor.plan)
    first = evaluator.evaluate(image)
    terms, gradient = dict(first.terms), first.gradient.copy()
    evaluator.evaluate(image[:, :, ::-1].copy())
    again = evaluator.evaluate(image)
    assert_equal((dict(again.terms), again.gradient), (terms, gradient))
    assert_equal(executor.evaluate(problem, image), (terms, gradient))


def test_gives_the_same_bits_after_close(executor, problem, image):
    before = executor.evaluate(problem, image)
    executor.backend.close()
    assert_equal(executor.evaluate(problem, image), before)


def test_leaves_the_image_as_it_is(executor, problem, image):
    kept = image.copy()
    executor.backend.prepare(problem, executor.plan).evaluate(image)
    np.testing.assert_array_equal(image, kept)


def test_takes_an_image_that_is_a_view(executor, problem, image):
    flipped = np.ascontiguousarray(image[:, :, :, ::-1])
    wide = np.zeros((1, 3, 22, 62), np.float32)
    wide[..., ::2] = flipped
    assert_equal(executor.evaluate(problem, wide[..., ::2]), executor.evaluate(problem, flipped))


def test_evaluates_several_problems_in_turn(executor, problem, image, shallow, picture):
    alone = executor.evaluate(problem, image)
    others = []
    # Nothing below 8 pixels, where relu3_1 has a single position: the threads of MKL's matrix-vector product, which
    # torch then uses, change the last bit from run to run.
    for size in ((9, 8), (22, 31), (31, 22), (12, 17)):
        other = executor.problem(shallow, OBJECTIVE, picture(5, *size), picture(6, 12, 12))
        others.append((other, encoded(OBJECTIVE, picture(7, *size))))
    first = [executor.evaluate(*other) for other in others]
    assert_equal(executor.evaluate(problem, image), alone)
    for other, expected in zip(others, first, strict=True):
        assert_equal(executor.evaluate(*other), expected)


def test_evaluators_of_one_structure_do_not_share_targets_or_weights(executor, problem, image, shallow, picture):
    expected = executor.evaluate(problem, image)
    evaluator = executor.backend.prepare(problem, executor.plan)
    doubled = replace(problem, objective=problem.objective.scaled(2.0))
    other = executor.problem(shallow, OBJECTIVE, picture(8, 22, 31), picture(9, 22, 31))
    twice = executor.evaluate(doubled, image)
    assert executor.evaluate(other, image)[0] != expected[0]
    # A factor of two rounds nothing.
    assert twice[0] == {term: 2 * value for term, value in expected[0].items()}
    losses = evaluator.evaluate(image)
    assert_equal((dict(losses.terms), losses.gradient), expected)


@pytest.mark.parametrize(
    "change",
    [
        {"pooling": "average"},
        {"convention": "torchvision"},
        {"tv_form": "absolute"},
        {"tv": 0.0},
        {"content": {"relu2_1": 0.5}},
        {"style": {"relu3_1": 7.0, "relu1_1": 1.0}},
        {"statistics": {"relu2_1": "covariance"}},
    ],
    ids=lambda change: "-".join(change),
)
def test_a_changed_objective_gives_what_a_fresh_backend_gives(executor, problem, image, shallow, picture, change):
    """Sessions are kept: what one was made for must not answer for another."""
    executor.evaluate(problem, image)
    changed = executor.problem(shallow, replace(OBJECTIVE, **change), picture(1, 22, 31), picture(2, 27, 18))
    found = executor.evaluate(changed, image)
    executor.backend.close()
    fresh = executor.problem(shallow, replace(OBJECTIVE, **change), picture(1, 22, 31), picture(2, 27, 18))
    assert_equal(found, executor.evaluate(fresh, image))
    assert tuple(found[0]) == changed.objective.terms


def test_other_weights_of_the_same_shape_are_other_weights(executor, problem, image, shallow, picture):
    before = executor.evaluate(problem, image)
    nudged = {name: value.copy() for name, value in shallow.tensors.items()}
    nudged["conv1_1.bias"][0] += 1.0
    weights = Weights(shallow.name, shallow.backbone, shallow.convention, nudged)
    other = executor.problem(weights, OBJECTIVE, picture(1, 22, 31), picture(2, 27, 18))
    assert executor.evaluate(other, image)[0] != before[0]


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("position", [(0, 0), (11, 17), (21, 30)])
def test_an_image_that_is_not_finite_gives_losses_that_are_not(executor, problem, image, value, position):
    image[0, 1][position] = value
    losses = executor.backend.prepare(problem, executor.plan).evaluate(image)
    assert not np.isfinite(losses.total)


def test_recovers_from_an_image_that_is_not_finite(executor, problem, image):
    evaluator = executor.backend.prepare(problem, executor.plan)
    before = evaluator.evaluate(image)
    expected = dict(before.terms), before.gradient.copy()
    evaluator.evaluate(np.full_like(image, np.nan))
    again = evaluator.evaluate(image)
    assert_equal((dict(again.terms), again.gradient), expected)


def test_a_weight_of_zero_leaves_a_term_of_zero(executor, shallow, picture):
    objective = replace(OBJECTIVE, content={"conv2_2": 0.0, "relu2_1": 0.5}, tv=0.0)
    problem = executor.problem(shallow, objective, picture(1, 22, 31), picture(2, 27, 18))
    terms, _ = executor.evaluate(problem, encoded(OBJECTIVE, picture(3, 22, 31)))
    assert terms["content.conv2_2"] == 0
    assert terms["content.relu2_1"] > 0
    assert "tv" not in terms


def test_targets_of_zeros_are_no_division_by_zero(executor, shallow, picture):
    """Relative losses of a network that sees nothing."""
    zeros = {name: np.zeros_like(value) for name, value in shallow.tensors.items()}
    blind = Weights("blind", shallow.backbone, shallow.convention, zeros)
    objective = replace(OBJECTIVE, content_norm="relative", gram_norm="positions", style_norm="relative", tv=0.0)
    problem = executor.problem(blind, objective, picture(1, 22, 31), picture(2, 27, 18))
    terms, gradient = executor.evaluate(problem, encoded(objective, picture(3, 22, 31)))
    assert set(terms.values()) == {0.0}
    assert not gradient.any()


@pytest.mark.parametrize("form", ["squared", "power", "absolute"])
@pytest.mark.parametrize("size", [(1, 1), (1, 5), (4, 1), (2, 2), (3, 2)])
def test_pictures_of_a_few_pixels(executor, shallow, picture, form, size):
    objective = Objective(content={"relu1_2": 1.0}, style={"conv1_1": 1.0}, tv=0.01, tv_form=form, pixels="rgb255")
    problem = executor.problem(shallow, objective, picture(1, *size), picture(2, 3, 3))
    image = encoded(objective, picture(3, *size))
    terms, gradient = executor.evaluate(problem, image)
    exact = TorchBackend(torch.float64).prepare(problem, "fused").evaluate(image)
    assert terms == pytest.approx(exact.terms, rel=1e-5)
    assert np.linalg.norm(gradient - exact.gradient) <= 1e-5 * np.linalg.norm(exact.gradient)
    if size == (1, 1) or (1 in size and form == "power"):
        assert terms["tv"] == 0


@pytest.mark.parametrize("size", [(3, 9), (9, 3), (1, 1)])
def test_a_picture_too_small_for_a_tap_is_an_error_that_says_so(executor, shallow, picture, size):
    with pytest.raises(ImageError, match=rf"{size[1]}x{size[0]} pixels is too small for tap relu3_1.* 4x4"):
        executor.problem(shallow, OBJECTIVE, picture(1, 9, 9), picture(2, *size))
    targets = measure_targets(executor.backend, shallow, OBJECTIVE, picture(1, 9, 9), picture(2, 9, 9))
    small = Problem(OBJECTIVE, shallow, targets, size)
    with pytest.raises(ImageError, match="too small for tap"):
        executor.evaluate(small, np.zeros((1, 3, *size), np.float32))


# --- Filters: calibrated by the style picture, whose numbers are inputs of the graphs --------------------------------

# Both statistics, a content term on a level of its own, and a tap before its ReLU.
BANK = Objective(
    content={"bank1": 0.5},
    style={"bank0": 1.0, "bank2": 2.0, "response0": 0.1},
    statistics={"bank0": "covariance", "bank2": "covariance"},
    content_norm="relative",
    gram_norm="positions",
    style_norm="relative",
    pixels="unit",
    convention="unit",
)


@pytest.mark.parametrize("size", [(17, 17), (22, 31), (40, 19)])
def test_calibrates_as_the_reference_does(executor, bank, picture, size):
    image = encoded(BANK, picture(4, *size))
    found = executor.backend.calibrate(bank, BANK, image)
    assert set(found) == {f"response{level}.{part}" for level in range(3) for part in ("scale", "threshold")}
    exact = TorchBackend(torch.float64).calibrate(bank, BANK, image)
    for level in (f"response{level}" for level in range(3)):
        scale, threshold = (exact[f"{level}.{part}"].astype(np.float64) for part in ("scale", "threshold"))
        # Pixels of 0 to 1 by filters of unit norm: a response is rounded by 6e-8 a few times over, and relative to
        # the deviation by which it is divided, that is as many times more as the scale is large.
        roundings = 6 * 6e-8 * (1 + scale)
        assert (np.abs(found[f"{level}.scale"] - scale) <= roundings * scale).all()
        assert (np.abs(found[f"{level}.threshold"] - threshold) <= roundings * (1 + np.abs(threshold))).all()
        for part in ("scale", "threshold"):
            value = found[f"{level}.{part}"]
            assert (value.dtype, value.shape) == (np.float32, (bank.backbone.channels(level),))


def test_calibrated_responses_have_the_deviation_and_the_level_that_filters_promise(executor, bank, picture):
    """Over the style picture itself: a deviation of 1 and a mean of minus the offset."""
    objective = Objective(content={"response1": 1.0}, style={}, pixels="unit", convention="unit")
    image = encoded(objective, picture(5, 23, 18))
    calibration = executor.backend.calibrate(bank, objective, image)
    response = executor.backend.measure(bank, objective, image, ("response1",), (), calibration)
    values = response.activations["response1"][0].astype(np.float64)
    # As above, for deviations of a hundredth: a scale of 100.
    np.testing.assert_allclose(values.std(axis=(1, 2)), 1, rtol=1e-4)
    np.testing.assert_allclose(values.mean(axis=(1, 2)), -bank.tensors["response1.offset"], atol=1e-4)


def test_a_picture_of_one_colour_calibrates_without_a_division_by_zero(executor, bank):
    """What deviates by less than a picture of 8 bits can say is taken to deviate by that."""
    image = encoded(BANK, np.full((22, 31, 3), 0.3, np.float32))
    for name, value in executor.backend.calibrate(bank, BANK, image).items():
        assert np.isfinite(value).all()
        if name.endswith("scale"):
            # The reciprocal of a number that is rounded to float32, rounded again.
            np.testing.assert_allclose(value, 1 / smallest_deviation(UNIT), rtol=2e-7)


def test_there_is_nothing_to_calibrate_without_filters(executor, shallow, picture):
    assert executor.backend.calibrate(shallow, OBJECTIVE, encoded(OBJECTIVE, picture(4, 8, 8))) == {}


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("position", [(0, 0), (11, 17), (21, 30)])
def test_filters_give_losses_that_are_not_finite_for_such_an_image(executor, bank, picture, value, position):
    problem = executor.problem(bank, BANK, picture(1, 22, 31), picture(2, 27, 18))
    image = encoded(BANK, picture(3, 22, 31))
    before = executor.evaluate(problem, image)
    spoiled = image.copy()
    spoiled[0, 1][position] = value
    losses = executor.backend.prepare(problem, executor.plan).evaluate(spoiled)
    assert not np.isfinite(losses.total)
    assert_equal(executor.evaluate(problem, image), before)


def test_the_gradient_through_filters_is_the_slope_of_the_loss(executor, bank, picture):
    """As above, before the ReLU: a polynomial of degree 4 again."""
    objective = Objective(
        content={"response1": 1.0},
        style={"response0": 1.0, "response1": 1.0},
        statistics={"response0": "covariance"},
        pixels="unit",
        convention="unit",
    )
    problem = executor.problem(bank, objective, picture(1, 13, 12), picture(2, 14, 11))
    image = encoded(objective, picture(3, 13, 12))
    evaluator = executor.backend.prepare(problem, executor.plan)
    gradient = evaluator.evaluate(image).gradient.copy()
    norm = float(np.linalg.norm(gradient))
    step = 0.01 * gradient / norm
    rise = evaluator.evaluate(image + step).total - evaluator.evaluate(image - step).total
    # A hundredth of a pixel's range, where the third order is small against the first; a loss in float32 is rounded
    # by 1e-7 of itself, which is less than 1e-4 of the rise.
    assert rise / (2 * 0.01) == pytest.approx(norm, rel=0.02)


def test_evaluators_of_one_bank_do_not_share_calibrations(executor, bank, picture):
    content, image = picture(1, 22, 31), encoded(BANK, picture(3, 22, 31))
    problem = executor.problem(bank, BANK, content, picture(2, 27, 18))
    evaluator = executor.backend.prepare(problem, executor.plan)
    expected = executor.evaluate(problem, image)
    other = executor.evaluate(executor.problem(bank, BANK, content, picture(9, 27, 18)), image)
    assert all(other[0][term] != value for term, value in expected[0].items())
    losses = evaluator.evaluate(image)
    assert_equal((dict(losses.terms), losses.gradient), expected)


def test_banks_of_two_seeds_are_two_banks(executor, bank, picture):
    image = encoded(BANK, picture(3, 22, 31))
    found = []
    for weights in (bank, filterbank_weights(1), bank):
        problem = executor.problem(weights, BANK, picture(1, 22, 31), picture(2, 27, 18))
        found.append(executor.evaluate(problem, image))
    assert found[1][0] != found[0][0]
    assert_equal(found[2], found[0])


def test_a_picture_too_small_for_a_level_is_an_error_that_says_so(executor, bank, picture):
    need = bank.backbone.smallest("bank2")
    large = picture(1, need, need)
    targets = measure_targets(executor.backend, bank, BANK, large, large)
    for height, width in ((need - 1, 40), (40, need - 1), (1, 1)):
        words = rf"{width}x{height} pixels is too small for tap bank2.* {need}x{need}"
        with pytest.raises(ImageError, match=words):
            executor.problem(bank, BANK, large, picture(2, height, width))
        with pytest.raises(ImageError, match=words):
            executor.problem(bank, BANK, picture(2, height, width), large)
        small = Problem(BANK, bank, targets, (height, width))
        with pytest.raises(ImageError, match="too small for tap"):
            executor.evaluate(small, np.zeros((1, 3, height, width), np.float32))


# --- Plans, names, sessions ------------------------------------------------------------------------------------------


def test_unknown_plans_are_refused(executor, problem):
    with pytest.raises(UsageError, match="woven"):
        executor.backend.prepare(problem, "woven")


def test_torch_has_no_sliced_plan(shallow, picture):
    torch_executor = Executor(open_backend("torch"), "fused")
    problem = torch_executor.problem(shallow, OBJECTIVE, picture(1, 22, 31), picture(2, 27, 18))
    with pytest.raises(UsageError, match="no plan 'sliced'"):
        torch_executor.backend.prepare(problem, "sliced")


def test_names_itself(executor):
    assert executor.backend.name in BACKENDS
    assert executor.backend.precision == "fp32"
    versions = executor.backend.versions()
    assert versions
    assert all(isinstance(value, str) and value[0].isdigit() for value in versions.values())


class Counting(OnnxRuntimeBackend):
    """Counts what it compiles."""

    def __init__(self):
        super().__init__()
        self.compiled = Counter()

    def compile(self, graph, **options):
        self.compiled[graph.name] += 1
        return super().compile(graph, **options)


@pytest.mark.parametrize("plan", ["fused", "sliced"])
def test_a_second_job_of_the_same_shape_compiles_nothing(shallow, picture, plan):
    backend = Counting()
    executor = Executor(backend, plan)

    def job(seed, height, width, objective=OBJECTIVE):
        problem = executor.problem(shallow, objective, picture(seed, height, width), picture(seed + 1, 15, 16))
        executor.evaluate(problem, encoded(objective, picture(seed + 2, height, width)))
        return backend.compiled.total()

    cold = job(1, 12, 13)
    assert job(4, 12, 13) == cold
    # Weights and normalisations are inputs.
    assert job(5, 12, 13, replace(OBJECTIVE.scaled(3.0), content_norm="sum", style_norm="gatys")) == cold
    other = job(6, 13, 12)
    assert other > cold
    backend.close()
    assert job(6, 13, 12) > other


@pytest.mark.parametrize("plan", ["fused", "sliced"])
def test_another_style_picture_of_the_bank_compiles_no_objective_again(bank, picture, plan):
    """Scales and thresholds are inputs, as targets are: only the calibration itself, which is run once, is built."""
    backend = Counting()
    executor = Executor(backend, plan)

    def job(seed, height, width, objective=BANK):
        problem = executor.problem(bank, objective, picture(seed, height, width), picture(seed + 1, 25, 26 + seed))
        executor.evaluate(problem, encoded(objective, picture(seed + 2, height, width)))
        return sum(count for name, count in backend.compiled.items() if not name.endswith("calibration"))

    cold = job(1, 22, 23)
    assert job(4, 22, 23) == cold
    assert job(5, 22, 23, BANK.scaled(3.0)) == cold
    assert job(6, 22, 23, BANK.without(["bank2"])) > cold


def test_torch_without_torch_names_the_remedy(monkeypatch):
    """The module of the reference fails to import as it would without the package."""
    import sys

    from impasto.errors import UnavailableError

    for name in ("impasto.models.reference", "impasto.runtime.backends.torch"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(UnavailableError, match="pip install"):
        open_backend("torch")


@pytest.mark.parametrize(
    ("raised", "error", "message"),
    [
        (
            torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
            LimitError,
            "out of GPU memory in torch",
        ),
        (RuntimeError("CUDA error: unspecified launch failure\nand more"), DeviceError, "launch failure"),
        (RuntimeError("shapes do not match"), RuntimeError, "shapes"),
    ],
)
@pytest.mark.parametrize("doing", ["measure", "prepare", "evaluate"])
def test_a_gpu_that_fails_torch_is_an_error_of_ours(shallow, picture, monkeypatch, raised, error, message, doing):
    executor = Executor(TorchBackend(), "fused")
    problem = executor.problem(shallow, OBJECTIVE, picture(1, 22, 31), picture(2, 27, 18))
    image = encoded(OBJECTIVE, picture(3, 22, 31))
    evaluator = executor.backend.prepare(problem, "fused")

    def fail(*_):
        raise raised

    monkeypatch.setattr("impasto.runtime.backends.torch._Place.__call__", fail)
    does = {
        "measure": lambda: executor.backend.measure(shallow, OBJECTIVE, image, ("relu2_1",), (), {}),
        "prepare": lambda: executor.backend.prepare(problem, "fused"),
        "evaluate": lambda: evaluator.evaluate(image),
    }
    with pytest.raises(error, match=message):
        does[doing]()
