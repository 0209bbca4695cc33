"""A job is made to fit, or refused with a size that then fits."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pytest

from impasto.errors import LimitError
from impasto.runtime.backends.onnxruntime import OnnxRuntimeBackend
from impasto.runtime.backends.protocol import Plan
from impasto.runtime.fitting import LEAST_HISTORY, fit, largest_size, with_long_side
from impasto.runtime.forecast import forecast
from impasto.runtime.images import Picture, Sizing
from impasto.runtime.limits import Limits
from impasto.runtime.painting import Job
from impasto.runtime.recipes import find_preset
from impasto.runtime.stylizer import Stylizer

PRESET = find_preset("pytorch").with_solver("lbfgs").with_iterations(50)


@pytest.fixture(scope="module")
def backend():
    return OnnxRuntimeBackend()


@pytest.fixture
def job(shallow) -> Job:
    blank = Picture(np.zeros((64, 48, 3), np.float32), None, "blank")
    return Job(blank, blank, PRESET.for_weights(shallow), shallow, None, Sizing("long", 512))


@pytest.fixture
def need(job, backend) -> int:
    return forecast(job, backend).memory_bytes


def test_a_job_that_fits_is_left_as_it_is(job, backend, need: int) -> None:
    for limit in (need, None):
        found = fit(job, backend, limit)
        assert found.job is job
        assert found.notes == ()


def test_the_forecast_is_left_out_only_where_it_would_fit(job, backend, need: int) -> None:
    sure = fit(job, backend, 10 * need + 10**10)
    assert sure.job is job
    assert sure.forecast is None


def test_what_does_not_fit_is_tiled_and_told(job, backend, need: int) -> None:
    limit = int(0.9 * need)
    found = fit(job, backend, limit)
    assert found.job.plan == "tiled"
    assert found.job.preset == job.preset
    assert found.forecast is not None
    assert found.forecast.memory_bytes <= limit
    assert forecast(found.job, backend).memory_bytes == found.forecast.memory_bytes
    (note,) = found.notes
    assert note.startswith("tiled")
    assert f"{found.forecast.stages[0].windows} windows" in note


def test_a_plan_that_was_named_stays_and_the_history_gives_way(job, backend, need: int) -> None:
    vectors = 12 * 512 * 384
    found = fit(replace(job, plan="fused"), backend, need - 6 * vectors - 1)
    assert found.job.plan == "fused"
    # Each pair is two vectors: 6 vectors and a byte are more than three pairs.
    assert found.job.preset.solver.history == PRESET.solver.history - 4
    assert found.forecast is not None
    assert found.forecast.memory_bytes <= need - 6 * vectors - 1
    (note,) = found.notes
    assert "from 20 to 16 pairs" in note


@pytest.fixture
def full_disk(monkeypatch) -> None:
    monkeypatch.setattr("impasto.runtime.fitting.free_room", lambda: 0)


def test_what_does_not_fit_tiled_goes_to_files_and_the_history_stays(job, backend, monkeypatch) -> None:
    job = with_long_side(job, 1024)
    tiled = [replace(job, plan="tiled", tile_memory=1 << shift) for shift in (25, 26, 27)]
    least = min(forecast(each, backend).memory_bytes for each in tiled if _can_be_cut(each, backend))
    found = fit(job, backend, least - 1)
    assert (found.job.plan, found.job.scratch) == ("tiled", True)
    assert found.job.preset == job.preset
    assert found.forecast is not None
    assert found.forecast.memory_bytes <= least - 1
    # L-BFGS's 48 vectors, and at least the best, the gradient and both pictures.
    assert found.forecast.scratch_bytes >= 51 * 12 * 1024 * 768
    assert "solver" not in found.forecast.largest.components
    assert [note.split()[0] for note in found.notes] == ["tiled,", "pictures"]
    # The room must be there.
    monkeypatch.setattr("impasto.runtime.fitting.free_room", lambda: found.forecast.scratch_bytes - 1)
    assert fit(job, backend, least - 1).job.preset != job.preset


def test_scipys_vectors_cannot_be_in_files(job, backend) -> None:
    preset = job.preset.with_solver("lbfgs-b")
    with pytest.raises(LimitError):
        fit(with_long_side(replace(job, preset=preset), 1024), backend, 500_000_000)


@pytest.mark.usefixtures("full_disk")
def test_the_history_is_shortened_after_tiling_only(job, backend) -> None:
    tiled = [replace(job, plan="tiled", tile_memory=1 << shift) for shift in (26, 27)]
    least = min(forecast(each, backend).memory_bytes for each in tiled if _can_be_cut(each, backend))
    found = fit(job, backend, least - 1)
    assert found.job.plan == "tiled"
    assert found.job.preset.solver.history >= LEAST_HISTORY
    assert found.forecast is not None
    assert found.forecast.memory_bytes <= least - 1


def _can_be_cut(job, backend) -> bool:
    try:
        forecast(job, backend)
    except LimitError:
        return False
    return True


@pytest.mark.parametrize("plan", [None, "fused"])
@pytest.mark.parametrize("share", [0.3, 0.5])
def test_what_cannot_fit_is_refused_with_a_size_that_does(
    job, backend, need: int, plan: Plan | None, share: float, full_disk: None
) -> None:
    job = with_long_side(replace(job, plan=plan), 2048)
    limit = int(share * need)
    with pytest.raises(LimitError) as caught:
        fit(job, backend, limit)
    message = str(caught.value)
    assert "1536×2048" in message
    assert "--memory-limit" in message
    assert ("(TMPDIR) for files" in message) == (plan is None and share == 0.5)
    match = re.search(r"\(--size (\d+)\)", message)
    assert match
    smaller = replace(job, sizing=Sizing("long", int(match[1])))
    found = fit(smaller, backend, limit)
    assert found.forecast is not None
    assert found.forecast.memory_bytes <= limit
    # It is the largest, but for the steps in which it is looked for.
    larger = replace(job, sizing=Sizing("long", int(match[1]) + 40))
    with pytest.raises(LimitError):
        fit(larger, backend, limit)


def test_where_nothing_fits_no_size_is_named(job, backend) -> None:
    assert largest_size(job, backend, 1000) is None
    with pytest.raises(LimitError, match="no size does"):
        fit(job, backend, 1000)


def test_a_backend_on_a_gpu_is_left_alone(job) -> None:
    class Device:
        name, precision = "cuda", "tf32"

    assert fit(job, Device(), 1000).job is job


def test_a_stylizer_tiles_what_its_limits_forbid_to_do_whole(shallow, picture) -> None:
    content, style = picture(4, 288, 384), picture(5, 100, 90)
    preset = find_preset("pytorch").with_solver("adam").with_iterations(1)
    with Stylizer(preset, weights=shallow, backend="onnxruntime", cache=False, limits=Limits(memory=None)) as whole:
        free = whole.stylize(content, style, size=384)
        need = whole.foresee(content, style, size=384, timed=False).asked.memory_bytes
    limits = Limits(memory=int(0.7 * need))
    with Stylizer(preset, weights=shallow, backend="onnxruntime", cache=False, limits=limits) as stylizer:
        tiled = stylizer.stylize(content, style, size=384)
        prospect = stylizer.foresee(content, style, size=384, timed=False)
    assert free.plan == "fused"
    assert tiled.plan == "tiled"
    assert any(note.startswith("tiled") for note in tiled.notes)
    # The same gradient up to rounding, so the same first steps up to a little.
    assert tiled.trace[0].loss == pytest.approx(free.trace[0].loss, rel=1e-4)
    assert prospect.fits
    assert prospect.asked.plan == "fused"
    assert prospect.painted.plan == "tiled"
    assert prospect.notes == tuple(note for note in tiled.notes if note.startswith("tiled"))
    with (
        Stylizer(preset, weights=shallow, backend="onnxruntime", plan="fused", cache=False, limits=limits) as named,
        pytest.raises(LimitError, match="leave out --plan"),
    ):
        named.stylize(content, style, size=384)
