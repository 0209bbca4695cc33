"""Jobs from first to last step, on shallow weights and small pictures."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest

from impasto.errors import DivergenceError, ImageError, Interrupted, UsageError
from impasto.export.objective import Objective
from impasto.models.conventions import pixel_space
from impasto.runtime.backends.onnxruntime import OnnxRuntimeBackend
from impasto.runtime.images import Picture, Sizing, resize
from impasto.runtime.painting import Job, Painting
from impasto.runtime.presets import Preset, Stage
from impasto.runtime.problem import Losses, Problem
from impasto.runtime.solvers import LBFGS, SGD, Adam, TorchLBFGS
from impasto.runtime.targets import encoded, measure_targets

PRESET = Preset(
    name="small",
    source="these tests",
    objective=Objective(content={"relu2_1": 5.0}, style={"relu1_1": 100.0, "relu3_1": 50.0}, tv=1e-3),
    solver=LBFGS(iterations=6),
    sizing=Sizing("long", 24),
)


class Spy(OnnxRuntimeBackend):
    """Keeps what it measured and evaluated; ``spoil`` may change the losses of an evaluation, numbered from 1."""

    def __init__(self):
        super().__init__()
        self.reset()

    def reset(self, spoil=lambda _, losses: losses):
        self.measured, self.problems, self.images = [], [], []
        self.spoil = spoil

    def measure(self, weights, objective, image, content, style, calibration):
        self.measured.append(image.copy())
        return super().measure(weights, objective, image, content, style, calibration)

    def prepare(self, problem, plan, memory=None):
        self.problems.append(problem)
        evaluator = super().prepare(problem, plan, memory)
        spy = self

        class Evaluator:
            def evaluate(self, image):
                spy.images.append(image.copy())
                return spy.spoil(len(spy.images), evaluator.evaluate(image))

        return Evaluator()


@pytest.fixture(scope="module")
def warm():
    backend = Spy()
    yield backend
    backend.close()


@pytest.fixture
def spy(warm):
    warm.reset()
    return warm


@pytest.fixture
def job(shallow, picture):
    def make(preset=PRESET, content=None, style=None, **settings):
        content = picture(1, 18, 24) if content is None else content
        style = picture(2, 24, 20) if style is None else style
        return Job(
            content=Picture(content, settings.pop("alpha", None), "content"),
            style=Picture(style, None, "style"),
            preset=preset,
            weights=shallow,
            plan="fused",
            sizing=settings.pop("sizing", preset.sizing),
            **settings,
        )

    return make


def surrounded(picture, margin):
    return np.pad(picture, ((margin, margin), (margin, margin), (0, 0)), mode="reflect")


def decoded(objective, image):
    return pixel_space(objective.pixels).decode(image[0]).clip(0, 1)


def painted(job, backend):
    """All steps, and the result."""
    painting = Painting(job, backend)
    return list(painting), painting.result()


def nan(losses):
    return Losses(dict.fromkeys(losses.terms, math.nan), np.full_like(losses.gradient, math.nan))


def test_a_plan_is_timed_without_what_the_caller_does_with_a_step(spy, job, monkeypatch):
    now = [0.0]
    monkeypatch.setattr("impasto.runtime.loop.time.perf_counter", lambda: now[0])
    took = []
    monkeypatch.setattr(spy, "took", lambda _, plan, seconds: took.append((plan, seconds)))

    def slowly(number, losses):
        now[0] += 100.0 if number < 3 else 0.25
        return losses

    spy.spoil = slowly
    for _ in Painting(job(replace(PRESET, solver=LBFGS(8))), spy):
        now[0] += 10.0
    assert took == [("fused", 0.25)]


# --- The result ------------------------------------------------------------------------------------------------------


def test_the_result_is_the_best_picture(spy, job):
    steps, result = painted(job(), spy)
    assert result.stop == "done"
    best = min(range(len(steps)), key=lambda index: steps[index].loss)
    assert result.loss["total"] == pytest.approx(steps[best].loss, rel=1e-14)
    assert result.loss["total"] < 0.5 * steps[0].loss
    np.testing.assert_array_equal(result.image, decoded(PRESET.objective, spy.images[best]))
    assert dict(result.terms) == dict(steps[best].terms)


def test_terms_add_up(spy, job):
    steps, result = painted(job(), spy)
    for step in steps:
        assert tuple(step.terms) == PRESET.objective.terms
        assert step.loss == pytest.approx(sum(step.terms.values()), rel=1e-14)
    parts = result.loss
    assert parts["total"] == pytest.approx(parts["content"] + parts["style"] + parts["tv"], rel=1e-14)
    assert parts["style"] == pytest.approx(result.terms["style.relu1_1"] + result.terms["style.relu3_1"], rel=1e-14)
    assert (parts["content"], parts["tv"]) == (result.terms["content.relu2_1"], result.terms["tv"])


def test_losses_are_those_of_the_preset_whatever_the_solver_is_given(spy, job, shallow, picture):
    """L-BFGS is given the objective divided by its largest weight; steps and result tell the recipe's own numbers."""
    steps, _ = painted(job(), spy)
    targets = measure_targets(spy, shallow, PRESET.objective, picture(1, 18, 24), resize(picture(2, 24, 20), (20, 24)))
    problem = Problem(PRESET.objective, shallow, targets, (18, 24))
    plain = OnnxRuntimeBackend().prepare(problem, "fused").evaluate(spy.images[0])
    assert dict(steps[0].terms) == pytest.approx(dict(plain.terms), rel=1e-6)


def test_the_trace_is_that_of_the_steps(spy, job):
    steps, result = painted(job(), spy)
    assert [(p.iteration, p.evaluation, p.seconds, p.loss) for p in result.trace] == [
        (s.iteration, s.evaluation, s.seconds, s.loss) for s in steps
    ]
    assert [s.evaluation for s in steps] == list(range(1, len(spy.images) + 1))
    assert steps[0].iteration == 0
    assert max(s.iteration for s in steps) <= 6
    seconds = [s.seconds for s in steps]
    assert seconds[0] > 0
    assert seconds == sorted(seconds)
    assert result.seconds >= seconds[-1]
    assert all(step.size == (24, 18) for step in steps)


def test_the_result_says_how_it_came_about(spy, job, shallow):
    _, result = painted(job(seed=7, notes=("a note",)), spy)
    told = json.loads(json.dumps(result.to_json("out.png"), allow_nan=False))
    assert told["output"] == "out.png"
    assert told["size"] == [24, 18]
    assert (told["preset"], told["backend"], told["precision"], told["plan"]) == (
        "small",
        "onnxruntime",
        "fp32",
        "fused",
    )
    assert told["weights"] == {"name": shallow.name, "sha256": shallow.sha256}
    assert told["taps"] == {"content": ["relu2_1"], "style": ["relu1_1", "relu3_1"]}
    assert set(told["loss"]) == {"total", "content", "style", "tv"}
    assert set(told["trace"][0]) == {"iteration", "evaluation", "seconds", "loss"}
    assert told["seed"] == 7
    assert told["notes"] == ["a note"]
    assert told["peak_memory_bytes"] > 2**20
    assert {"impasto", "python", "numpy", "onnxruntime"} <= set(told["versions"])
    assert told["stop"] == "done"


def test_opacity_goes_with_the_picture(spy, job, picture):
    alpha = picture(9, 18, 24)[:, :, 0]
    _, result = painted(job(alpha=alpha), spy)
    np.testing.assert_array_equal(result.alpha, alpha)
    _, result = painted(job(alpha=alpha, sizing=Sizing("long", 12)), spy)
    assert result.alpha.shape == (9, 12)
    np.testing.assert_array_equal(result.alpha, resize(alpha, (12, 9)))


def test_previews_show_the_best_picture_so_far(spy, job):
    painting = Painting(job(), spy)
    losses = []
    for step in painting:
        losses.append(step.loss)
        best = decoded(PRESET.objective, spy.images[int(np.argmin(losses))])
        preview = step.preview()
        assert preview.dtype == np.uint8
        np.testing.assert_array_equal(preview, np.rint(best * 255).astype(np.uint8))


# --- Stopping --------------------------------------------------------------------------------------------------------


def test_leaving_the_loop_keeps_the_result(spy, job):
    painting = Painting(job(), spy)
    losses = []
    for step in painting:
        losses.append(step.loss)
        if step.evaluation == 4:
            break
    result = painting.result()
    assert result.stop == "stopped"
    assert len(result.trace) == 4
    assert result.loss["total"] == pytest.approx(min(losses), rel=1e-14)
    # It may go on from there.
    assert next(painting).evaluation == 5
    painting.close()
    assert next(painting, None) is None
    assert len(painting.result().trace) == 5


def test_there_is_no_result_before_the_first_evaluation(spy, job):
    painting = Painting(job(), spy)
    with pytest.raises(Interrupted, match="no picture yet"):
        painting.result()
    painting.close()
    with pytest.raises(Interrupted):
        painting.result()


@pytest.mark.parametrize("at", [2, 5])
def test_an_interrupt_in_an_evaluation_keeps_the_result(spy, job, at):
    def interrupt(count, losses):
        if count == at:
            raise KeyboardInterrupt
        return losses

    spy.reset(interrupt)
    painting, losses = Painting(job(), spy), []
    with pytest.raises(KeyboardInterrupt):
        losses.extend(step.loss for step in painting)
    result = painting.result()
    assert result.stop == "interrupted"
    assert len(losses) == at - 1
    assert result.loss["total"] == pytest.approx(min(losses), rel=1e-14)
    np.testing.assert_array_equal(result.image, decoded(PRESET.objective, spy.images[int(np.argmin(losses))]))


def test_an_interrupt_in_the_first_evaluation_leaves_nothing(spy, job):
    def interrupt(count, losses):
        raise KeyboardInterrupt

    spy.reset(interrupt)
    painting = Painting(job(), spy)
    with pytest.raises(KeyboardInterrupt):
        next(painting)
    with pytest.raises(Interrupted):
        painting.result()


# --- Failures --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("solver", [LBFGS(iterations=8), Adam(iterations=15, learning_rate=8.0)], ids=["lbfgs", "adam"])
def test_recovers_from_evaluations_that_fail(spy, job, solver):
    failing = {3, 4, 8}
    spy.reset(lambda count, losses: nan(losses) if count in failing else losses)
    steps, result = painted(job(replace(PRESET, solver=solver)), spy)
    assert [step.evaluation for step in steps if math.isnan(step.loss)] == sorted(failing)
    assert not any(step.best for step in steps if step.evaluation in failing)
    good = [step.loss for step in steps if step.evaluation not in failing]
    assert result.loss["total"] == pytest.approx(min(good), rel=1e-14)
    assert result.loss["total"] < good[0]
    # JSON has no NaN.
    told = json.loads(json.dumps(result.to_json(), allow_nan=False))
    assert [point["evaluation"] for point in told["trace"] if point["loss"] is None] == sorted(failing)


def test_a_job_that_cannot_go_on_is_an_error_that_keeps_the_best(spy, job):
    spy.reset(lambda count, losses: losses if count <= 3 else nan(losses))
    painting, losses = Painting(job(), spy), []
    with pytest.raises(DivergenceError, match="lower"):
        losses.extend(step.loss for step in painting)
    assert painting.result().loss["total"] == pytest.approx(min(losses[:3]), rel=1e-14)


@pytest.mark.parametrize(
    "solver", [LBFGS(iterations=3), Adam(iterations=12, learning_rate=10.0)], ids=["lbfgs", "adam"]
)
def test_a_picture_in_its_own_style_comes_back_as_it_is(spy, job, picture, solver):
    """The start is the optimum but for rounding: anything else is a thousand times worse, and no explosion."""
    content = picture(1, 18, 24)
    preset = replace(PRESET, objective=replace(PRESET.objective, tv=0.0), solver=solver)
    _, result = painted(job(preset, content=content, style=content), spy)
    # Through the 0–255 pixel space and back, each rounded once.
    np.testing.assert_allclose(result.image, content, rtol=0, atol=2e-7)


def test_a_weight_of_zero_is_a_term_of_zero(spy, job):
    _, result = painted(job(PRESET.with_weights(style=0.0, tv=0.0)), spy)
    assert result.loss["style"] == 0
    assert result.loss["tv"] == 0
    assert set(result.terms) == {"content.relu2_1", "style.relu1_1", "style.relu3_1"}


# --- Sizes and stages ------------------------------------------------------------------------------------------------


def test_pictures_of_the_size_already_are_not_resampled(spy, job, picture):
    content, style = picture(1, 18, 24), picture(2, 24, 20)
    painting = Painting(job(), spy)
    step = next(painting)
    measured_content, measured_style = spy.measured
    np.testing.assert_array_equal(measured_content, encoded(PRESET.objective, content))
    np.testing.assert_array_equal(measured_style, encoded(PRESET.objective, style))
    np.testing.assert_array_equal(spy.images[0], encoded(PRESET.objective, content))
    # The same numbers through two graphs: nothing but rounding is left of the content term.
    assert step.terms["content.relu2_1"] <= 1e-12 * step.loss
    np.testing.assert_allclose(painting.result().image, content, rtol=0, atol=2e-7)


@pytest.mark.parametrize(
    ("fit", "size"), [("result", (18, 24)), ("rule", (24, 20))], ids=["the result's size", "its own by the rule"]
)
def test_the_style_picture_is_sized_as_the_recipe_says(spy, job, fit, size):
    next(Painting(job(replace(PRESET, style_fit=fit)), spy))
    assert spy.measured[1].shape[2:] == size


STAGED = replace(PRESET, stages=(Stage(0.5, 3), Stage(1.0, 4)))


def test_stages_paint_one_size_after_the_other(spy, job):
    steps, result = painted(job(STAGED), spy)
    first = [step for step in steps if step.size == (12, 9)]
    second = [step for step in steps if step.size == (24, 18)]
    assert steps == first + second
    assert [image.shape[2:] for image in spy.images] == [(9, 12)] * len(first) + [(18, 24)] * len(second)
    assert [image.shape[2:] for image in spy.measured] == [(9, 12), (12, 10), (18, 24), (24, 20)]
    # Counters run on; each stage has its own iterations.
    assert [step.evaluation for step in steps] == list(range(1, len(steps) + 1))
    iterations = [step.iteration for step in steps]
    assert iterations == sorted(iterations)
    assert first[-1].iteration == 3
    assert second[0].iteration == 3
    assert second[-1].iteration == 7
    assert [step.seconds for step in steps] == sorted(step.seconds for step in steps)
    # The best is that of the last stage, be the first one's loss lower or not.
    assert result.loss["total"] == pytest.approx(min(step.loss for step in second), rel=1e-14)
    assert result.size == (24, 18)


def test_a_stage_starts_from_the_last_ones_best_enlarged(spy, job):
    steps, _ = painted(job(STAGED), spy)
    first = [step.loss for step in steps if step.size == (12, 9)]
    best = decoded(STAGED.objective, spy.images[int(np.argmin(first))])
    np.testing.assert_array_equal(spy.images[len(first)], encoded(STAGED.objective, resize(best, (24, 18))))


@pytest.mark.parametrize("where", ["first stage", "between", "second stage"])
def test_stopping_in_any_stage_gives_a_picture_of_the_whole_size(spy, job, where):
    painting = Painting(job(STAGED), spy)
    if where == "between":

        def interrupt(count, losses):
            if losses.gradient.shape[3] == 24:
                raise KeyboardInterrupt
            return losses

        spy.reset(interrupt)
        with pytest.raises(KeyboardInterrupt):
            list(painting)
    else:
        width = 12 if where == "first stage" else 24
        next(step for step in painting if step.size[0] == width)
    result = painting.result()
    assert result.size == (24, 18)
    assert result.stop == ("interrupted" if where == "between" else "stopped")


def test_stages_too_small_for_a_tap_are_left_out(spy, job):
    preset = replace(PRESET, stages=(Stage(0.1, 3), Stage(1.0, 4)))
    steps, _ = painted(job(preset), spy)
    assert {step.size for step in steps} == {(24, 18)}


def test_stages_need_a_solver_with_iterations(spy, job):
    preset = replace(STAGED, solver=TorchLBFGS(), evaluations=9)
    with pytest.raises(UsageError, match="stages need a solver"):
        painted(job(preset), spy)


@pytest.mark.parametrize("solver", [SGD(iterations=9, learning_rate=1e-6), Adam(iterations=9, learning_rate=1.0)])
def test_a_budget_of_evaluations_is_kept(spy, job, solver):
    _, result = painted(job(replace(PRESET, solver=solver, evaluations=4)), spy)
    assert len(result.trace) == len(spy.images) == 4


# --- A margin --------------------------------------------------------------------------------------------------------

WIDE = replace(PRESET, margin=3)


def test_a_margin_is_painted_and_cut_off(spy, job, picture):
    content, style = picture(1, 18, 24), picture(2, 24, 20)
    painting = Painting(job(WIDE), spy)
    steps = []
    for step in painting:
        steps.append(step)
        assert step.size == (24, 18)
        assert step.preview().shape == (18, 24, 3)
    result = painting.result()
    assert {image.shape for image in spy.images} == {(1, 3, 18 + 6, 24 + 6)}
    # The content picture has it, reflected; the style picture has none.
    np.testing.assert_array_equal(spy.images[0], encoded(PRESET.objective, surrounded(content, 3)))
    measured_content, measured_style = spy.measured
    np.testing.assert_array_equal(measured_content, spy.images[0])
    np.testing.assert_array_equal(measured_style, encoded(PRESET.objective, style))
    best = decoded(PRESET.objective, spy.images[int(np.argmin([step.loss for step in steps]))])
    np.testing.assert_array_equal(result.image, best[3:-3, 3:-3])
    np.testing.assert_array_equal(steps[-1].preview(), np.rint(best[3:-3, 3:-3] * 255).astype(np.uint8))


def test_the_margin_of_a_stage_is_in_proportion(spy, job):
    preset = replace(STAGED, margin=5)
    steps, result = painted(job(preset), spy)
    # Half of 5 is 2.5, and rounds to the even one.
    first = [image for image in spy.images if image.shape[2:] == (9 + 4, 12 + 4)]
    second = [image for image in spy.images if image.shape[2:] == (18 + 10, 24 + 10)]
    assert len(first) + len(second) == len(spy.images)
    losses = [step.loss for step in steps[: len(first)]]
    best = decoded(preset.objective, first[int(np.argmin(losses))])[2:-2, 2:-2]
    # What was painted is enlarged without its old margin, and gets its own reflection as the new one.
    start = surrounded(resize(best, (24, 18)), 5)
    np.testing.assert_array_equal(second[0], encoded(preset.objective, start))
    assert result.size == (24, 18)


@pytest.mark.parametrize("where", [(12, 9), (24, 18)], ids=["first stage", "second stage"])
def test_stopping_with_a_margin_gives_a_picture_without(spy, job, where):
    painting = Painting(job(replace(STAGED, margin=5)), spy)
    step = next(step for step in painting if step.size == where)
    image = painting.result().image
    assert image.shape == (18, 24, 3)
    if step.size == (24, 18):
        np.testing.assert_array_equal(np.rint(image * 255).astype(np.uint8), step.preview())


def test_a_margin_is_no_wider_than_a_reflection(spy, job, picture):
    small = job(replace(PRESET, margin=50), content=picture(1, 4, 7), sizing=Sizing("long", 7))
    _, result = painted(small, spy)
    assert result.size == (7, 4)
    assert spy.images[0].shape == (1, 3, 4 + 6, 7 + 6)


def test_a_margin_makes_no_picture_large_enough(spy, job, picture):
    """And an error names the picture's size, not that of what would be painted."""
    small = job(WIDE, content=picture(1, 3, 24))
    with pytest.raises(ImageError, match="24x3 pixels is too small for tap relu3_1, which needs at least 4x4"):
        next(Painting(small, spy))


@pytest.mark.parametrize("init", ["style", "noise", "picture"])
def test_every_start_has_the_margin(spy, job, picture, init):
    given = picture(8, 30, 31)
    settings = {"start": Picture(given, None, "start")} if init == "picture" else {}
    preset = WIDE if init == "picture" else replace(WIDE, init=init, noise=20.0)
    begun = start(spy, job(preset, **settings))
    assert begun.shape == (1, 3, 24, 30)
    if init == "noise":
        # In the margin as everywhere, 540 draws above and below: four standard errors of the deviation.
        rim = np.concatenate([begun[:, :, :3].ravel(), begun[:, :, -3:].ravel()])
        assert abs(rim.std() - 20) < 4 * 20 / np.sqrt(2 * rim.size)
    else:
        source = given if init == "picture" else picture(2, 24, 20)
        wanted = surrounded(resize(source, (24, 18)), 3)
        np.testing.assert_array_equal(begun, encoded(PRESET.objective, wanted))


# --- Where it starts -------------------------------------------------------------------------------------------------


def start(spy, job):
    next(Painting(job, spy))
    return spy.images[0]


def test_starts_from_content_or_style(spy, job, picture):
    np.testing.assert_array_equal(start(spy, job()), encoded(PRESET.objective, picture(1, 18, 24)))
    spy.reset()
    from_style = start(spy, job(replace(PRESET, init="style")))
    np.testing.assert_array_equal(from_style, encoded(PRESET.objective, resize(picture(2, 24, 20), (24, 18))))


def test_starts_from_noise_of_the_seed(spy, job):
    noisy = replace(PRESET, init="noise", noise=20.0)
    images = []
    for seed in (0, 0, 1):
        spy.reset()
        images.append(start(spy, job(noisy, seed=seed)))
    np.testing.assert_array_equal(images[0], images[1])
    assert not np.array_equal(images[0], images[2])
    # 1296 draws: mean and deviation are within four of their standard errors, 20/36 and 20/51.
    assert abs(images[0].mean()) < 4 * 20 / 36
    assert abs(images[0].std() - 20) < 4 * 20 / 51


def test_starts_from_a_picture_of_any_size(spy, job, picture):
    given = picture(8, 30, 31)
    begun = start(spy, job(start=Picture(given, None, "start")))
    np.testing.assert_array_equal(begun, encoded(PRESET.objective, resize(given, (24, 18))))


def test_the_same_seed_paints_the_same_picture(spy, job):
    noisy = replace(PRESET, init="noise", noise=20.0, solver=LBFGS(iterations=12))
    pictures = []
    for seed in (3, 3, 4):
        _, result = painted(job(noisy, seed=seed), spy)
        pictures.append(result.image)
    np.testing.assert_array_equal(pictures[0], pictures[1])
    assert np.abs(pictures[0] - pictures[2]).max() > 0.01
