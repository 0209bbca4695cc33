"""A job that was painted, as its result tells it, paints the same picture again."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from impasto.errors import InputError, UsageError
from impasto.models.weights import save_weights
from impasto.runtime.job_spec import JobSpec
from impasto.runtime.jobs import begin, open_stylizer, paint
from impasto.runtime.stylizer import Stylizer
from impasto.runtime.write_image import write_image


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("IMPASTO_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def files(tmp_path, picture, shallow):
    write_image(tmp_path / "content.png", picture(1, 30, 41))
    write_image(tmp_path / "style.png", picture(2, 33, 27))
    write_image(tmp_path / "start.png", picture(3, 20, 20))
    save_weights(shallow, tmp_path / "own.safetensors")
    return tmp_path


def spec_of(files, **changes):
    spec = JobSpec(content="content.png", style="style.png", weights="own.safetensors", preset="pytorch")
    return replace(spec, **{"size": 32, "iterations": 3, **changes}).located(files)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"init": "noise", "seed": 5},
        {"init": "start.png"},
        {"solver": "adam", "style_weight": 3e5, "tv_weight": 1.0, "pooling": "average"},
        {"preset": "impasto", "plan": "tiled", "tile_memory": 100_000_000, "threads": 1},
        {"preset": "impasto", "backend": "torch"},
        {"preset": "filterbank", "weights": "filterbank-3", "plan": "sliced", "limits": {"max_pixels": None}},
    ],
    ids=lambda changes: "-".join(map(str, changes.values())) or "plain",
)
def test_the_job_of_a_result_paints_it_again_bit_for_bit(files, changes):
    if changes.get("backend") == "torch":
        pytest.importorskip("torch", reason="torch is not installed")
    first = paint(spec_of(files, **changes))
    value = json.loads(json.dumps(first.to_json(), allow_nan=False))
    again = JobSpec.from_json(value)
    second = paint(again)
    assert second.image.tobytes() == first.image.tobytes()
    assert second.terms == first.terms
    assert second.job == first.job
    assert (first.plan, first.precision) == (again.plan, again.precision)


@pytest.mark.parametrize("scales", ["auto", 1, 2, (0.75, 1.0)])
@pytest.mark.parametrize("preset", ["pytorch", "impasto"])
def test_the_scales_of_a_job_are_those_that_were_painted(files, monkeypatch, preset, scales):
    # So that auto has something to add to, also where the recipe has no sizes of its own, or the job asked for fewer.
    monkeypatch.setattr("impasto.runtime.scales.COARSEST", 10)
    first = paint(spec_of(files, preset=preset, solver="lbfgs", scales=scales, iterations=6))
    again = JobSpec.from_json(first.to_json())
    assert again.scales == "preset"
    assert len(again.preset.stages) == {"auto": {"pytorch": 3, "impasto": 3}[preset], 1: 0, 2: 2}.get(scales, 2)
    second = paint(again)
    assert second.image.tobytes() == first.image.tobytes()
    assert second.job == first.job


def test_a_job_that_was_fitted_into_memory_tells_what_was_painted(files):
    spec = spec_of(files, size=256, solver="adam", iterations=2)
    with open_stylizer(replace(spec, limits={"memory": None})) as stylizer:
        need = stylizer.foresee(spec.content, spec.style, size=256, timed=False).painted
    # Less than that, so that it is tiled; then the job's own words have to do without the pressure.
    tight = replace(spec, limits={"memory": need.memory_bytes * 7 // 10})
    first = paint(tight)
    assert first.plan == "tiled"
    again = replace(JobSpec.from_json(first.to_json()), limits={"memory": None})
    assert again.tile_memory is not None
    np.testing.assert_array_equal(paint(again).image, first.image)


def test_other_pictures_and_weights_than_the_job_s_are_refused(files, picture):
    job = JobSpec.from_json(paint(spec_of(files)).to_json())
    write_image(files / "style.png", picture(4, 33, 27), overwrite=True)
    with pytest.raises(InputError, match=r"style '.*style\.png' is not what the job was painted with"):
        paint(job)
    # Who names the picture himself is taken at his word.
    assert paint(job.changed({"style": job.style})).stop == "done"
    with pytest.raises(InputError, match="weights 'filterbank' is not what"):
        paint(replace(job, weights="filterbank", preset="filterbank"))


def test_pictures_that_were_no_files_have_no_path_in_the_job(files, picture, shallow):
    with Stylizer("pytorch", weights=shallow) as stylizer:
        result = stylizer.stylize(picture(1, 30, 41), files / "style.png", size=24, iterations=2)
    job = JobSpec.from_json(result.to_json())
    assert job.content is None
    assert "content" in job.digests
    with pytest.raises(UsageError, match="names no content"):
        paint(replace(job, weights=str(files / "own.safetensors")))


def test_a_stylizer_paints_several_jobs_that_differ_in_pictures_and_size(files):
    spec = spec_of(files)
    with open_stylizer(spec) as stylizer:
        for size in (24, 32):
            painting = begin(replace(spec, size=size), stylizer)
            for _ in painting:
                pass
            assert painting.result().size == (size, size)
