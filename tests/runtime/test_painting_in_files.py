"""A job whose large arrays are in mapped files paints the same picture, to the bit, and leaves nothing behind."""

from __future__ import annotations

import errno
import os
import tempfile
from dataclasses import replace

import numpy as np
import pytest

from impasto.errors import StorageError
from impasto.export.objective import Objective
from impasto.models.locate import find_weights
from impasto.runtime.backends.onnxruntime import OnnxRuntimeBackend
from impasto.runtime.checkpoint import Checkpoint
from impasto.runtime.images import Picture, Sizing
from impasto.runtime.painting import Job, Painting
from impasto.runtime.presets import Preset, Stage
from impasto.runtime.recipes import FILTERBANK
from impasto.runtime.scratch import is_mapped
from impasto.runtime.solvers import LBFGS

PRESET = Preset(
    name="small",
    source="these tests",
    objective=Objective(content={"relu2_1": 5.0}, style={"relu1_1": 100.0, "relu3_1": 50.0}, tv=1e-3),
    solver=LBFGS(iterations=5),
    sizing=Sizing("long", 45),
    margin=3,
)
STAGED = replace(PRESET, stages=(Stage(0.5, 3), Stage(1.0, 3)))


@pytest.fixture(scope="module")
def backend():
    found = OnnxRuntimeBackend()
    yield found
    found.close()


@pytest.fixture
def job(shallow, picture):
    def make(preset=PRESET, weights=shallow, **changes):
        pixels = {"content": picture(1, 48, 61), "style": (picture(2, 50, 40) * 255).astype(np.uint8)}
        alpha = np.linspace(0, 1, 48 * 61, dtype=np.float32).reshape(48, 61)
        pictures = {name: Picture(rgb, alpha if name == "content" else None, name) for name, rgb in pixels.items()}
        return Job(
            **pictures,
            preset=preset,
            weights=weights,
            plan="tiled",
            sizing=preset.sizing,
            tile_memory=1 << 27,
            **changes,
        )

    return make


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch):
    """Chunks and stripes that these small pictures have many of."""
    monkeypatch.setattr("impasto.runtime.solvers.vectors.CHUNK", 500)
    monkeypatch.setattr("impasto.runtime.images._STRIPE", 300)
    monkeypatch.setattr("impasto.runtime.canvas._STRIPE", 200)


def painted(painting):
    for _ in painting:
        pass
    return painting.result()


def same(found, wanted):
    np.testing.assert_array_equal(found.image, wanted.image)
    np.testing.assert_array_equal(found.alpha, wanted.alpha)
    assert [point.loss for point in found.trace] == [point.loss for point in wanted.trace]
    assert dict(found.terms) == dict(wanted.terms)


@pytest.mark.parametrize("init", ["content", "style", "noise"])
@pytest.mark.parametrize("solver", ["lbfgs", "adam", "torch-lbfgs"])
def test_it_is_the_same_picture(backend, job, init, solver):
    preset = replace(PRESET, init=init, noise=20.0).with_solver(solver)
    whole = painted(Painting(job(preset), backend))
    found = painted(Painting(job(preset, scratch=True), backend))
    same(found, whole)
    assert is_mapped(found.image)
    assert not is_mapped(whole.image)


def test_stages_go_on_from_each_other(backend, job):
    whole = painted(Painting(job(STAGED), backend))
    found = painted(Painting(job(STAGED, scratch=True), backend))
    same(found, whole)
    assert len({point.evaluation for point in found.trace}) == len(found.trace) >= 8


def test_the_filter_bank_measures_its_content_again(backend, job):
    preset = replace(FILTERBANK, stages=(), sizing=Sizing("long", 45)).with_iterations(2)
    weights = find_weights("filterbank")
    whole, found = (
        painted(Painting(job(preset.for_weights(weights), weights, scratch=scratch), backend))
        for scratch in (False, True)
    )
    same(found, whole)


def test_a_result_before_the_last_stage_and_a_preview_are_the_same(backend, job):
    seen = []
    for scratch in (False, True):
        painting = Painting(job(STAGED, scratch=scratch), backend)
        step = next(painting)
        seen.append((step.preview(), painting.result().image))
        painting.close()
    np.testing.assert_array_equal(seen[0][0], seen[1][0])
    np.testing.assert_array_equal(seen[0][1], seen[1][1])


@pytest.mark.parametrize("solver", ["lbfgs", "adam"])
@pytest.mark.parametrize("first", [False, True])
def test_a_checkpoint_is_taken_up_in_files_or_in_memory(backend, job, tmp_path, monkeypatch, solver, first):
    """Where arrays are kept changes no bit, so it may be decided anew."""
    monkeypatch.setattr("impasto.runtime.checkpoint.SHARE", 1.0)
    preset = PRESET.with_solver(solver)
    whole = painted(Painting(job(preset), backend))
    path = tmp_path / "c"
    painting = Painting(job(preset, scratch=first), backend, Checkpoint(path, every=0))
    for step in painting:
        if step.evaluation == 4:
            break
    painting.close()
    again = Painting(job(preset, scratch=not first), backend, Checkpoint(path, every=0, resume=True))
    assert again.resumed is not None
    assert again.resumed.evaluation >= 3
    same(painted(again), whole)


def test_nothing_is_left_in_the_folder_for_files(backend, job, tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    for step in Painting(job(scratch=True), backend):
        # They have no names from the beginning, so that a kill leaves none either.
        assert not list(tmp_path.iterdir())
        if step.evaluation == 3:
            break
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(not hasattr(os, "posix_fallocate"), reason="room cannot be taken ahead here")
def test_a_disk_that_is_full_is_told_before_the_first_evaluation(backend, job, tmp_path, monkeypatch):
    take, taken = os.posix_fallocate, []

    def filling(file, offset, size):
        taken.append(size)
        if len(taken) > 4:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        take(file, offset, size)

    monkeypatch.setattr(os, "posix_fallocate", filling)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    painting = Painting(job(scratch=True), backend)
    with pytest.raises(StorageError, match=r"no room for .* set TMPDIR") as caught:
        next(painting)
    assert caught.value.exit_code == 4
    assert not list(tmp_path.iterdir())
