"""Forecasts against what jobs really hold, as far as that can be counted exactly."""

from __future__ import annotations

import tracemalloc
from dataclasses import replace

import numpy as np
import pytest

from impasto.runtime.backends.onnxruntime import OnnxRuntimeBackend
from impasto.runtime.footprint import footprint
from impasto.runtime.forecast import evaluations, forecast, solver_vectors
from impasto.runtime.images import Picture, Sizing
from impasto.runtime.painting import Job
from impasto.runtime.presets import Preset, Stage
from impasto.runtime.recipes import find_preset
from impasto.runtime.solvers import LBFGS, SGD, Adam, TorchLBFGS, drive
from impasto.runtime.targets import measure_targets

LBFGS_OF_3 = find_preset("pytorch").with_solver("lbfgs").with_iterations(3)


class Named:
    """All of a backend that a forecast looks at."""

    def __init__(self, name: str, precision: str = "fp32") -> None:
        self.name, self.precision = name, precision


@pytest.fixture
def job(shallow):
    def make(side: int, preset: Preset = LBFGS_OF_3, plan: str = "fused", **changes) -> Job:
        blank = Picture(np.zeros((64, 48, 3), np.float32), None, "blank")
        return Job(blank, blank, preset.for_weights(shallow), shallow, plan, Sizing("long", side), **changes)

    return make


@pytest.mark.parametrize("name", ["onnxruntime", "openvino", "torch"])
def test_components_add_up_and_none_is_negative(job, name: str) -> None:
    found = forecast(job(128), Named(name))
    parts = found.largest.components
    assert sum(parts.values()) == found.memory_bytes == found.stages[0].memory_bytes
    assert all(size > 0 for size in parts.values())
    assert parts["pictures"] == 2 * 12 * 64 * 48
    assert found.to_json()["memory_bytes"] == found.memory_bytes


@pytest.mark.parametrize(
    ("name", "plan"),
    [
        ("onnxruntime", "fused"),
        ("onnxruntime", "sliced"),
        ("onnxruntime", "tiled"),
        ("openvino", "fused"),
        ("torch", "fused"),
    ],
)
def test_a_larger_picture_takes_more_but_for_a_fixed_part_in_proportion(job, name: str, plan: str) -> None:
    sides = [96, 160, 320, 640]
    found = [forecast(job(side, plan=plan), Named(name)).memory_bytes for side in sides]
    assert found == sorted(found)
    assert len(set(found)) == len(found)
    if plan != "tiled":
        # A straight line through the last two, at 640/320: memory a pixel is constant above a fixed part.
        pixels = [side * round(side * 0.75) for side in sides]
        slope = (found[3] - found[2]) / (pixels[3] - pixels[2])
        assert found[1] == pytest.approx(found[2] - slope * (pixels[2] - pixels[1]), rel=0.02)


def test_targets_are_counted_to_the_byte(job, shallow, picture) -> None:
    preset = replace(LBFGS_OF_3, style_fit="rule").for_weights(shallow)
    content, style = picture(1, 71, 54), picture(2, 64, 90)
    backend = OnnxRuntimeBackend()
    targets = measure_targets(backend, shallow, preset.objective, content, style)
    held = sum(value.nbytes for value in (*targets.content.values(), *targets.style.values()))
    found = footprint(backend, shallow, preset.objective, (71, 54), (64, 90), "fused")
    assert found.targets == held


@pytest.mark.parametrize(
    "solver",
    [
        LBFGS(iterations=40, history=6),
        LBFGS(iterations=4, history=20),
        TorchLBFGS(history=5),
        Adam(iterations=5, learning_rate=1e-3),
        SGD(iterations=5, learning_rate=1e-3),
    ],
    ids=repr,
)
def test_a_solvers_vectors_are_those_that_it_allocates(solver) -> None:
    size = 50_000
    stream = np.random.RandomState(3)
    scale = stream.uniform(0.5, 2, size).astype(np.float32)
    start = stream.standard_normal(size).astype(np.float32)
    gradient = np.empty_like(start)

    def function(x):
        np.multiply(scale, x, out=gradient)
        return 0.5 * float(gradient @ x), gradient

    tracemalloc.start()
    try:
        drive(solver, start, function, 12)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    # `drive` keeps a vector of its own, the best; temporaries of the arithmetic are up to two.
    vectors = peak / (4 * size) - 1
    predicted = solver_vectors(solver, 12)
    assert predicted - 3.5 < vectors < predicted + 2.5


def test_evaluations_are_those_of_the_settings_up_to_the_budget() -> None:
    assert evaluations(LBFGS(iterations=100), None) == 106  # 1.05 for each iteration, and the start
    assert evaluations(LBFGS(iterations=100), 50) == 50
    assert evaluations(Adam(iterations=7, learning_rate=1.0), None) == 8
    assert evaluations(TorchLBFGS(), 300) == 300


def test_stages_are_foretold_one_by_one_and_what_an_earlier_one_left_is_counted(job) -> None:
    staged = replace(LBFGS_OF_3, stages=(Stage(0.5, 3), Stage(1.0, 4)))
    found = forecast(job(256, staged), Named("onnxruntime"))
    assert [stage.size for stage in found.stages] == [(96, 128), (192, 256)]
    alone = forecast(job(256, LBFGS_OF_3.with_iterations(4)), Named("onnxruntime"))
    small = forecast(job(128, LBFGS_OF_3), Named("onnxruntime"))
    left = small.largest.components["session"]
    assert found.memory_bytes == alone.memory_bytes + left
    assert found.evaluations == alone.evaluations + small.evaluations
    # PyTorch keeps nothing.
    assert (
        forecast(job(256, staged), Named("torch")).memory_bytes
        == forecast(job(256, LBFGS_OF_3.with_iterations(4)), Named("torch")).memory_bytes
    )


def test_a_longer_history_takes_its_vectors_more(job) -> None:
    long = LBFGS_OF_3.with_iterations(100)
    pairs = {history: replace(long, solver=replace(long.solver, history=history)) for history in (5, 20)}
    short, full = (forecast(job(128, pairs[history]), Named("onnxruntime")).memory_bytes for history in (5, 20))
    assert full - short == 2 * 15 * 12 * 96 * 128


def test_less_memory_makes_more_windows(job) -> None:
    found = [forecast(job(640, plan="tiled", tile_memory=m << 20), Named("onnxruntime")) for m in (512, 128, 64)]
    windows = [each.stages[0].windows for each in found]
    assert windows == sorted(windows)
    assert windows[0] < windows[-1]
    assert [each.stages[0].overhead for each in found] == sorted(each.stages[0].overhead for each in found)
    assert found[0].memory_bytes > found[-1].memory_bytes
