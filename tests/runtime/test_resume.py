"""A painting that stops anywhere and is resumed becomes the same picture, bit for bit."""

from __future__ import annotations

import math
from contextlib import closing
from dataclasses import replace

import numpy as np
import pytest

from impasto.errors import CheckpointError, UsageError
from impasto.export.objective import Objective
from impasto.runtime import checkpoint as checkpoints
from impasto.runtime.backends.onnxruntime import OnnxRuntimeBackend
from impasto.runtime.backends.select import open_backend
from impasto.runtime.checkpoint import Checkpoint
from impasto.runtime.identity import REPEATABLE
from impasto.runtime.images import Picture, Sizing
from impasto.runtime.painting import Job, Painting
from impasto.runtime.presets import Preset, Stage
from impasto.runtime.problem import Losses
from impasto.runtime.solvers import LBFGS, LBFGSB, SGD, Adam, TorchLBFGS

PRESET = Preset(
    name="small",
    source="these tests",
    objective=Objective(content={"relu2_1": 5.0}, style={"relu1_1": 100.0, "relu3_1": 50.0}, tv=1e-3),
    solver=LBFGS(iterations=9, history=3),
    sizing=Sizing("long", 24),
    init="noise",
    noise=20.0,
)
STAGES = (Stage(0.5, 4), Stage(1.0, 5))
PRESETS = {
    "lbfgs": PRESET,
    "adam": replace(PRESET, solver=Adam(iterations=9, learning_rate=10.0)),
    "sgd": replace(PRESET, solver=SGD(iterations=9, learning_rate=1e-6)),
    "torch-lbfgs": replace(PRESET, solver=TorchLBFGS(history=3, max_iter=4), evaluations=11),
    "lbfgs-b": replace(PRESET, solver=LBFGSB(rounds=6, maxfun=3), evaluations=26),
    "lbfgs in stages": replace(PRESET, stages=STAGES, margin=3),
    "adam in stages": replace(PRESET, solver=Adam(iterations=9, learning_rate=10.0), stages=STAGES),
}


class Sometimes(OnnxRuntimeBackend):
    """Counts evaluations, and fails at those whose numbers are in ``failing``."""

    failing = ()
    count = 0

    def prepare(self, problem, plan, memory=None):
        evaluator = super().prepare(problem, plan, memory)
        backend = self

        class Evaluator:
            def evaluate(self, image):
                losses = evaluator.evaluate(image)
                backend.count += 1
                if backend.count in backend.failing:
                    return Losses(dict.fromkeys(losses.terms, math.inf), losses.gradient)
                return losses

        return Evaluator()


@pytest.fixture(scope="module")
def warm():
    backend = Sometimes()
    yield backend
    backend.close()


@pytest.fixture
def backend(warm):
    warm.failing, warm.count, warm.name = (), 0, "onnxruntime"
    return warm


@pytest.fixture(autouse=True)
def always(monkeypatch):
    """A checkpoint at every evaluation that can have one."""
    monkeypatch.setattr(checkpoints, "SHARE", 1.0)


@pytest.fixture
def job(shallow, picture):
    def make(preset=PRESET, seed=3, **pictures):
        chosen = {"content": picture(1, 18, 24), "style": picture(2, 24, 20), **pictures}
        return Job(
            **{name: Picture(rgb, None, name) for name, rgb in chosen.items()},
            preset=preset,
            weights=shallow,
            plan="fused",
            sizing=preset.sizing,
            seed=seed,
        )

    return make


def facts(result):
    """What must not depend on how often the job was killed; seconds may."""
    trace = [(p.iteration, p.evaluation, p.loss) for p in result.trace]
    return trace, result.terms, result.stop


def same(result, whole):
    np.testing.assert_array_equal(result.image, whole.image)
    assert facts(result) == facts(whole)
    seconds = [point.seconds for point in result.trace]
    assert seconds == sorted(seconds)
    assert result.seconds >= seconds[-1]


def to_the_end(painting):
    for _ in painting:
        pass
    return painting.result()


@pytest.mark.parametrize("preset", PRESETS.values(), ids=PRESETS)
@pytest.mark.parametrize("failing", [(), (3, 4)], ids=["", "failing"])
def test_stopped_anywhere_it_becomes_the_same_picture(backend, job, tmp_path, preset, failing):
    if isinstance(preset.solver, LBFGSB):
        pytest.importorskip("scipy")
    backend.failing = failing
    whole = to_the_end(Painting(job(preset), backend))
    path = tmp_path / "c"
    resumed_after = set()
    for stop in range(2, len(whole.trace) + 1, 2 if failing else 1):
        path.unlink(missing_ok=True)
        backend.count = 0
        painting = Painting(job(preset), backend, Checkpoint(path, every=0))
        assert painting.resumed is None
        for step in painting:
            if step.evaluation == stop:
                break
        painting.close()
        if not path.exists():
            continue  # before the first trial with a state
        again = Painting(job(preset), backend, Checkpoint(path, every=0, resume=True))
        done = again.resumed.evaluation
        assert again.resumed == painting.result().trace[done - 1]
        backend.count = done - 1  # the last one is made again
        resumed_after.add(done)
        result = to_the_end(again)
        same(result, whole)
        assert f"resumed after {done} evaluations" in result.notes
    # Rounds of L-BFGS-B are of several evaluations each, and begin with a state.
    assert len(resumed_after) >= (2 if isinstance(preset.solver, LBFGSB) else 4)


@pytest.mark.parametrize("name", ["lbfgs in stages", "adam"])
def test_stopped_after_every_few_evaluations_it_becomes_the_same_picture(backend, job, tmp_path, name):
    preset = PRESETS[name]
    whole = to_the_end(Painting(job(preset), backend))
    checkpoint = Checkpoint(tmp_path / "c", every=0, resume=True)
    stream = np.random.default_rng(7)
    for _ in range(100):
        painting = Painting(job(preset), backend, checkpoint)
        left = int(stream.integers(1, 6))
        for _ in painting:
            left -= 1
            if left == 0:
                painting.close()
                break
        else:
            break
    same(painting.result(), whole)


@pytest.mark.parametrize(
    ("name", "plan"), [*((name, "fused") for name in REPEATABLE), ("onnxruntime", "tiled"), ("openvino", "tiled")]
)
def test_what_one_backend_began_another_of_its_kind_ends(job, tmp_path, name, plan):
    """Sessions are compiled anew, as in another process."""
    pytest.importorskip(name)
    painting = replace(job(), plan=plan)

    def opened():
        return closing(open_backend(name))

    with opened() as backend:
        whole = to_the_end(Painting(painting, backend))
    checkpoint = Checkpoint(tmp_path / "c", every=0, resume=True)
    with opened() as backend:
        first = Painting(painting, backend, checkpoint)
        for step in first:
            if step.evaluation == 6:
                break
        first.close()
    with opened() as backend:
        second = Painting(painting, backend, checkpoint)
        assert second.resumed.evaluation > 1
        same(to_the_end(second), whole)


def test_checkpoints_change_nothing(backend, job, tmp_path):
    whole = to_the_end(Painting(job(), backend))
    result = to_the_end(Painting(job(), backend, Checkpoint(tmp_path / "c", every=0)))
    same(result, whole)
    assert any(note.endswith(" s") and "checkpoints written in" in note for note in result.notes)
    assert not any("checkpoint" in note for note in whole.notes)


def test_a_picture_to_start_from_is_not_needed_again_but_must_be_the_same(backend, job, picture, tmp_path):
    start = picture(5, 30, 31)
    whole = to_the_end(Painting(job(start=start), backend))
    path = tmp_path / "c"
    painting = Painting(job(start=start), backend, Checkpoint(path, every=0))
    for step in painting:
        if step.evaluation == 5:
            break
    painting.close()
    with pytest.raises(CheckpointError, match="start differs"):
        Painting(job(start=picture(6, 30, 31)), backend, Checkpoint(path, resume=True))
    with pytest.raises(CheckpointError, match="start differs"):
        Painting(job(), backend, Checkpoint(path, resume=True))
    same(to_the_end(Painting(job(start=start), backend, Checkpoint(path, resume=True))), whole)


def test_another_job_is_refused_before_anything_is_computed(backend, job, picture, tmp_path, monkeypatch):
    path = tmp_path / "c"
    to_the_end(Painting(job(), backend, Checkpoint(path, every=0)))
    content = path.read_bytes()

    def computes(*_):
        raise AssertionError("computed")

    monkeypatch.setattr(backend, "measure", computes)
    for other, told in (
        (job(seed=4), "seed is 3 there and 4 here"),
        (job(content=picture(8, 18, 24)), "content differs"),
        (job(style=picture(8, 18, 24)), "style differs"),
        (job(PRESET.with_iterations(10)), "preset.solver.iterations is 9 there and 10 here"),
        (job(replace(PRESET, solver=Adam(9, 10.0))), "preset.solver."),
    ):
        with pytest.raises(CheckpointError, match=told):
            Painting(other, backend, Checkpoint(path, resume=True))
    assert path.read_bytes() == content


def test_a_backend_without_checkpoints_refuses_at_once(backend, job, tmp_path):
    backend.name = "tensorrt"
    with pytest.raises(UsageError, match="backend tensorrt has no checkpoints"):
        Painting(job(), backend, Checkpoint(tmp_path / "c"))
    assert list(tmp_path.iterdir()) == []
