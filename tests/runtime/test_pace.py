"""How long an evaluation takes is measured once and then known."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from impasto.runtime.backends.onnxruntime import OnnxRuntimeBackend
from impasto.runtime.forecast import forecast
from impasto.runtime.images import Picture, Sizing
from impasto.runtime.pace import FILE, seconds, seconds_per_pixel
from impasto.runtime.painting import Job
from impasto.runtime.recipes import find_preset

PRESET = find_preset("pytorch").with_solver("adam").with_iterations(9)


class Counting(OnnxRuntimeBackend):
    """Counts what it is asked to prepare, and by which plan."""

    def __init__(self) -> None:
        super().__init__()
        self.prepared: list[str] = []

    def prepare(self, problem, plan, memory=None):
        self.prepared.append(plan)
        return super().prepare(problem, plan, memory)


@pytest.fixture(scope="module")
def backend() -> Counting:
    return Counting()


@pytest.fixture
def job(shallow):
    def make(plan: str = "fused", side: int = 64, **changes) -> Job:
        blank = Picture(np.zeros((64, 64, 3), np.float32), None, "blank")
        return Job(blank, blank, PRESET.for_weights(shallow), shallow, plan, Sizing("long", side), **changes)

    return make


def test_it_is_measured_once_for_all_sizes_and_processes(job, backend, tmp_path: Path) -> None:
    backend.prepared.clear()
    first = seconds_per_pixel(job(), backend, tmp_path / "new")
    assert first > 0
    assert seconds_per_pixel(job(side=640), backend, tmp_path / "new") == first
    assert backend.prepared == ["fused"]
    assert list(json.loads((tmp_path / "new" / FILE).read_text()).values()) == [first]


def test_what_changes_the_pace_is_measured_apart(job, backend, tmp_path: Path) -> None:
    backend.prepared.clear()
    for each in (job(), job("sliced"), job(threads=1), job("tiled")):
        seconds_per_pixel(each, backend, tmp_path)
    # The plan tiled is reckoned from the pace of one graph.
    assert backend.prepared == ["fused", "sliced", "fused"]
    assert len(json.loads((tmp_path / FILE).read_text())) == 3


@pytest.mark.parametrize("text", ["", "[1]", '{"a": "b"}', "{", '{"a": null}'])
def test_a_file_that_makes_no_sense_is_written_anew(job, backend, tmp_path: Path, text: str) -> None:
    (tmp_path / FILE).write_text(text)
    found = seconds_per_pixel(job(), backend, tmp_path)
    assert list(json.loads((tmp_path / FILE).read_text()).values()) == [found]


def test_a_cache_that_cannot_be_written_is_done_without(job, backend, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    assert seconds_per_pixel(job(), backend, tmp_path / "file") > 0


def test_time_is_proportional_to_pixels_and_evaluations(
    job, backend, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("IMPASTO_CACHE", str(tmp_path))
    small, large = (seconds(job(side=side), backend, forecast(job(side=side), backend)) for side in (64, 256))
    assert large == pytest.approx(16 * small)
    assert small == pytest.approx(10 * 64**2 * seconds_per_pixel(job(), backend))  # nine iterations and the start
    tiled = replace(job("tiled", side=256), tile_memory=64 << 20)
    foretold = forecast(tiled, backend)
    (stage,) = foretold.stages
    assert stage.overhead >= 1
    assert seconds(tiled, backend, foretold) == pytest.approx(1.5 * stage.overhead * large)
