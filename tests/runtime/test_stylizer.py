from __future__ import annotations

import os
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import impasto
from impasto.errors import ImageError, LimitError, MissingTapError, UnavailableError, UnknownNameError, UsageError
from impasto.export.objective import Objective
from impasto.models.weights import save_weights
from impasto.optimize.cache import EngineCache
from impasto.runtime.images import Sizing
from impasto.runtime.limits import Limits
from impasto.runtime.presets import Preset
from impasto.runtime.recipes import PRESETS
from impasto.runtime.solvers import LBFGS
from impasto.runtime.stylizer import Stylizer

PRESET = Preset(
    name="small",
    source="these tests",
    objective=Objective(content={"relu2_1": 5.0}, style={"relu1_1": 100.0, "relu3_1": 50.0}, tv=1e-3),
    solver=LBFGS(iterations=4),
    sizing=Sizing("long", 24),
)


@pytest.fixture
def stylizer(shallow):
    with Stylizer(PRESET, weights=shallow, cache=False) as stylizer:
        yield stylizer


@pytest.fixture
def content(picture):
    return picture(1, 18, 24)


@pytest.fixture
def style(picture):
    return picture(2, 24, 20)


def assert_same(found, expected):
    """The same picture and losses, bit for bit."""
    np.testing.assert_array_equal(found.image, expected.image)
    assert found.loss == expected.loss
    assert [point.loss for point in found.trace] == [point.loss for point in expected.trace]


# --- Jobs ------------------------------------------------------------------------------------------------------------


def test_a_warm_job_paints_what_a_cold_one_paints(stylizer, shallow, content, style, picture):
    cold = stylizer.stylize(content, style)
    assert_same(stylizer.stylize(content, style), cold)
    # Other pictures, sizes and settings in between leave no trace.
    stylizer.stylize(picture(3, 18, 24), picture(4, 24, 20), init="noise", seed=9)
    stylizer.stylize(content, style, size=13, iterations=1)
    assert_same(stylizer.stylize(content, style), cold)
    stylizer.close()
    assert_same(stylizer.stylize(content, style), cold)
    with Stylizer(PRESET, weights=shallow, cache=False) as another:
        assert_same(another.stylize(content, style), cold)


def test_engines_from_the_cache_paint_the_same(stylizer, shallow, content, style, tmp_path):
    expected = stylizer.stylize(content, style)
    for _ in ("built", "loaded"):
        with (
            EngineCache(tmp_path / "engines") as cache,
            Stylizer(PRESET, weights=shallow, cache=cache) as another,
        ):
            assert_same(another.stylize(content, style), expected)
    assert list((tmp_path / "engines").glob("*/engine.json"))


@pytest.mark.parametrize(("backend", "plan"), [("onnxruntime", "sliced"), ("torch", "fused")])
def test_every_backend_and_plan_paints_nearly_the_same(stylizer, shallow, content, style, backend, plan):
    expected = stylizer.stylize(content, style)
    with Stylizer(PRESET, weights=shallow, backend=backend, plan=plan, cache=False) as another:
        result = another.stylize(content, style)
    assert (result.backend, result.plan) == (backend, plan)
    assert result.trace[0].loss == pytest.approx(expected.trace[0].loss, rel=1e-5)
    # Four iterations let rounding grow, but not to a grey level.
    assert np.abs(result.image - expected.image).max() < 1 / 255


def test_warming_up_leaves_the_first_job_nothing_to_compile(stylizer, content, style, monkeypatch):
    stylizer.warm_up(24, 18)
    compiled = []
    compile = stylizer.backend.compile
    monkeypatch.setattr(stylizer.backend, "compile", lambda graph, **kw: compiled.append(graph) or compile(graph, **kw))
    stylizer.stylize(content, style)
    # The style picture's size was not known.
    assert all("loss.tv" not in graph.outputs for graph in compiled)


def test_steps_and_stylize_are_one(stylizer, content, style):
    losses = [step.loss for step in stylizer.steps(content, style, iterations=3)]
    result = stylizer.stylize(content, style, iterations=3)
    assert [point.loss for point in result.trace] == losses
    assert max(point.iteration for point in result.trace) == 3


def test_pictures_come_as_arrays_images_files_and_bytes(stylizer, content, style, tmp_path):
    levels = [np.rint(picture * 255).astype(np.uint8) for picture in (content, style)]
    expected = stylizer.stylize(*levels)
    paths = [tmp_path / name for name in ("content.png", "style.png")]
    for path, level in zip(paths, levels, strict=True):
        Image.fromarray(level).save(path)
    assert_same(stylizer.stylize(*paths), expected)
    assert_same(stylizer.stylize(*map(str, paths)), expected)
    assert_same(stylizer.stylize(*(path.read_bytes() for path in paths)), expected)
    assert_same(stylizer.stylize(*map(Image.fromarray, levels)), expected)


@pytest.mark.parametrize(
    ("sizing", "size", "expected"),
    [
        (Sizing("long", 24), None, (24, 18)),
        (Sizing("long", 24), 16, (16, 12)),
        (Sizing("height", 9), None, (12, 9)),
        (Sizing("height", 9), 20, (20, 15)),
        (Sizing("short", 9), 20, (20, 15)),
        (Sizing("stretch", 10), None, (10, 10)),
        (Sizing("stretch", 10), 14, (14, 14)),
    ],
)
def test_sizes(shallow, content, style, sizing, size, expected):
    with Stylizer(replace(PRESET, sizing=sizing), weights=shallow, cache=False) as stylizer:
        assert stylizer.stylize(content, style, size=size, iterations=1).size == expected


def test_starts_from_what_is_asked_for(stylizer, content, style, picture, tmp_path):
    def first(**settings):
        return next(iter(stylizer.steps(content, style, **settings))).loss

    by_content = first()
    assert first(init="content") == by_content
    start = picture(7, 18, 24)
    others = [first(init="style"), first(init="noise"), first(init="noise", seed=1), first(init=start)]
    assert len({by_content, *others}) == 5
    assert first(init="noise", seed=1) == others[2]
    path = tmp_path / "start.png"
    Image.fromarray(np.rint(content * 255).astype(np.uint8)).save(path)
    assert first(init=path) == first(init=str(path)) == first(init=path.read_bytes())


@pytest.mark.parametrize("name", [name for name, preset in PRESETS.items() if preset.weights == "vgg19"])
def test_every_preset_of_vgg19_paints(shallow, picture, name):
    """On the taps that shallow weights have, for a few evaluations, by the preset's own solver, sizing and stages."""
    preset = PRESETS[name]
    style_weights = {tap: weight for tap, weight in preset.objective.style.items() if tap in shallow.taps}
    content_weights = {"relu2_2": max(preset.objective.content.values())}
    preset = replace(preset, objective=replace(preset.objective, content=content_weights, style=style_weights))
    with Stylizer(preset, weights=shallow, cache=False) as stylizer:
        result = stylizer.stylize(picture(1, 18, 24), picture(2, 24, 20), size=24, iterations=4)
    assert result.preset == name
    assert result.stop == "done"
    assert np.isfinite(result.image).all()
    assert 0 <= result.image.min() <= result.image.max() <= 1
    assert len(result.trace) >= 2
    # Losses at the sizes of different stages cannot be compared.
    assert preset.stages or result.loss["total"] <= result.trace[0].loss


# --- Notes -----------------------------------------------------------------------------------------------------------


def test_what_an_adapting_preset_left_out_is_told(shallow, content, style):
    with Stylizer("impasto", weights=shallow, cache=False) as stylizer:
        result = stylizer.stylize(content, style, size=16, iterations=1)
    assert result.taps == {"content": ["relu3_1"], "style": ["relu1_1", "relu2_1", "relu3_1"]}
    (note,) = result.notes
    for tap in ("relu4_2", "relu4_1", "relu5_1"):
        assert tap in note
    assert "relu3_1" not in note


def test_nothing_is_told_where_all_taps_were_reached(shallow, content, style):
    aliases = Objective(content={"block2_conv1": 1.0}, style={"conv_1": 1.0})
    preset = replace(PRESET, adapt=True, objective=aliases)
    with Stylizer(preset, weights=shallow, cache=False) as stylizer:
        assert stylizer.stylize(content, style, iterations=1).notes == ()


# --- One at a time ---------------------------------------------------------------------------------------------------


def test_another_job_meanwhile_is_refused(stylizer, content, style):
    steps = stylizer.steps(content, style)
    next(steps)
    caught = []

    def ask():
        try:
            stylizer.stylize(content, style)
        except UsageError as error:
            caught.append(str(error))

    thread = threading.Thread(target=ask)
    thread.start()
    thread.join()
    assert len(caught) == 1
    assert "painting already" in caught[0]
    # The job under way goes on, and when it ends the next may come.
    assert sum(1 for _ in steps) >= 3
    stylizer.stylize(content, style, iterations=1)


@pytest.mark.parametrize("end", ["closed", "dropped"])
def test_a_job_that_was_left_lets_the_next_one_in(stylizer, content, style, end):
    steps = stylizer.steps(content, style)
    next(steps)
    if end == "closed":
        steps.close()
    else:
        del steps
    assert len(stylizer.stylize(content, style, iterations=1).trace) >= 2


def test_a_job_that_failed_lets_the_next_one_in(stylizer, content, style, picture):
    with pytest.raises(ImageError, match="too small"):
        stylizer.stylize(content, style, size=3)
    assert len(stylizer.stylize(content, style, iterations=1).trace) >= 2


# --- Refusals --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"preset": "jonson"}, UnknownNameError, "johnson"),
        ({"plan": "woven"}, UnknownNameError, "fused"),
        ({"backend": "tensorrrt"}, UnknownNameError, "onnxruntime"),
        ({"weights": "vgg99"}, UnknownNameError, "vgg19"),
        ({"threads": 0}, UsageError, "threads is 0"),
        ({"preset": "johnson"}, MissingTapError, "relu4_2"),
    ],
)
def test_settings_that_cannot_work_are_refused(shallow, settings, error, message):
    with pytest.raises(error, match=message):
        Stylizer(**{"weights": shallow, "cache": False, **settings})


@pytest.mark.parametrize("settings", [{"weights": "vgg99"}, {"preset": "johnson"}, {"threads": 0}, {"plan": "woven"}])
def test_no_backend_is_opened_for_settings_that_cannot_work(shallow, settings, monkeypatch):
    def opened(*_):
        raise AssertionError

    monkeypatch.setattr("impasto.runtime.stylizer.open_automatic", opened)
    with pytest.raises(UsageError):
        Stylizer(**{"weights": shallow, "cache": False, **settings})


@pytest.mark.parametrize("settings", [{"preset": "johnson"}, {"weights": "vgg19"}])
def test_weights_that_were_not_fetched_are_told_how_to_get_and_to_do_without(tmp_path, monkeypatch, settings):
    monkeypatch.setenv("IMPASTO_CACHE", str(tmp_path))
    with pytest.raises(UnavailableError, match=r"impasto weights fetch vgg19.*--preset filterbank"):
        Stylizer(**settings, cache=False)


def test_a_preset_and_weights_of_two_backbones_are_refused(bank, shallow):
    for preset, weights, tap in (("johnson", bank, "relu4_2"), ("filterbank", shallow, "bank0")):
        with pytest.raises(UnknownNameError, match=f"tap of {weights.backbone.name} '{tap}'"):
            Stylizer(preset, weights=weights, cache=False)


def test_weights_by_path_are_those_in_the_file(stylizer, shallow, content, style, tmp_path):
    path = tmp_path / "shallow.safetensors"
    save_weights(shallow, path)
    with Stylizer(PRESET, weights=path, cache=False) as another:
        result = another.stylize(content, style)
    assert result.weights == {"name": "shallow.safetensors", "sha256": shallow.sha256}
    assert_same(result, stylizer.stylize(content, style))


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"size": 0}, UsageError, "size is 0"),
        ({"iterations": 0}, UsageError, "iterations is 0"),
        ({"seed": -1}, UsageError, "seed is -1"),
        ({"seed": 2**32}, UsageError, "seed is 4294967296"),
        ({"init": "contents"}, UnknownNameError, "content"),
        ({"size": 9000}, LimitError, "9000"),
        ({"iterations": 20_001}, LimitError, "20001"),
    ],
)
def test_requests_that_cannot_work_are_refused(stylizer, content, style, settings, error, message):
    with pytest.raises(error, match=message):
        stylizer.begin(content, style, **settings)


def test_limits_are_those_given(shallow, content, style):
    limits = Limits(max_pixels=18 * 24, max_long_side=24, max_iterations=5, max_evaluations=50)
    with Stylizer(PRESET, weights=shallow, cache=False, limits=limits) as stylizer:
        with pytest.raises(LimitError, match="max_pixels"):
            stylizer.stylize(content, np.zeros((19, 24, 3), np.float32))
        small = style[:18]
        stylizer.stylize(content, small, iterations=5)
        with pytest.raises(LimitError, match="max_iterations"):
            stylizer.begin(content, small, iterations=6)
        with pytest.raises(LimitError, match="max_long_side"):
            stylizer.begin(content, small, size=25)
    many = replace(PRESET, evaluations=51)
    with (
        Stylizer(many, weights=shallow, cache=False, limits=limits) as stylizer,
        pytest.raises(LimitError, match="max_evaluations"),
    ):
        stylizer.begin(content, small)


# --- Other processes -------------------------------------------------------------------------------------------------


def run(script, tmp_path, *arguments):
    """Run a script in a fresh interpreter in which impasto can be imported; return what it prints."""
    path = [str(Path(impasto.__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(filter(None, path)),
        "IMPASTO_CACHE": str(tmp_path / "cache"),
    }
    command = [sys.executable, "-W", "error", "-c", script, *arguments]
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


WITHOUT_TORCH = """
import sys

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("torch", "scipy", "h5py"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Refuse())
import numpy as np
from impasto import Stylizer
from impasto.errors import UnavailableError
from impasto.models.random_weights import random_weights

weights = random_weights("vgg19", 1, last_conv="conv3_1")
rng = np.random.RandomState(0)
content, style = rng.random_sample((2, 24, 32, 3)).astype(np.float32)
for plan in ("fused", "sliced"):
    with Stylizer("impasto", weights=weights, plan=plan) as stylizer:
        result = stylizer.stylize(content, style, size=32, iterations=2)
    result.save(f"{plan}.png")
    assert result.stop == "done" and np.isfinite(result.image).all()
    with Stylizer(plan=plan) as stylizer:
        result = stylizer.stylize(content, style, size=32, iterations=2)
    result.save(f"{plan}-bank.png")
    assert result.weights["name"] == "filterbank" and np.isfinite(result.image).all()
try:
    Stylizer("impasto", weights=weights, backend="torch")
except UnavailableError as error:
    print(error)
assert not {"torch", "scipy", "h5py"} & set(sys.modules)
"""


def test_paints_where_there_is_no_torch(tmp_path):
    told = run(WITHOUT_TORCH, tmp_path)
    assert "pip install 'impasto[reference]'" in told
    for name in ("fused", "sliced", "fused-bank", "sliced-bank"):
        with Image.open(tmp_path / f"{name}.png") as painted:
            assert painted.size == (32, 24)


@pytest.mark.parametrize("module", ["impasto", "impasto.errors"])
def test_importing_the_package_loads_nothing_heavy(tmp_path, module):
    heavy = ("numpy", "onnx", "onnxruntime", "PIL", "torch", "scipy", "safetensors", "typer", "rich")
    script = f"import sys, {module}; print(*(set(sys.modules) & {set(heavy)}))"
    assert run(script, tmp_path).strip() == ""


def test_importing_the_stylizer_loads_no_framework(tmp_path):
    script = "import sys; from impasto import Stylizer; print(*(set(sys.modules) & {'torch', 'scipy', 'h5py'}))"
    assert run(script, tmp_path).strip() == ""
