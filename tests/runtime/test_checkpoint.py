from __future__ import annotations

import errno
import os

import numpy as np
import pytest

from impasto.errors import CheckpointError, OutputError, UsageError
from impasto.runtime import checkpoint as module
from impasto.runtime import files
from impasto.runtime.checkpoint import Checkpoint, CheckpointWriter
from impasto.runtime.checkpoint_file import read_checkpoint

JOB = {"seed": 3}


def vectors(value):
    return {"x": np.full(5000, value, np.float32)}


def names(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture
def clock(monkeypatch):
    """The time that writers see, in seconds; writing takes as long as ``takes`` says."""

    class Clock:
        now, takes = 1000.0, 0.0

    def write(*args, **options):
        Clock.now += Clock.takes
        return files.write_atomically(*args, **options)

    monkeypatch.setattr(module.time, "monotonic", lambda: Clock.now)
    monkeypatch.setattr(module, "write_atomically", write)
    return Clock


def test_one_is_due_every_so_many_seconds(tmp_path, clock):
    writer = CheckpointWriter(Checkpoint(tmp_path / "c", every=60), JOB)
    clock.now += 59
    assert not writer.due()
    clock.now += 1
    assert writer.due()
    writer.write({}, vectors(1))
    assert not writer.due()
    clock.now += 60
    assert writer.due()


@pytest.mark.parametrize("every", [0.0, 60.0])
@pytest.mark.parametrize("takes", [0.01, 3.0, 25.0])
def test_writing_takes_at_most_a_tenth_of_the_time(tmp_path, clock, every, takes):
    clock.takes = takes
    writer = CheckpointWriter(Checkpoint(tmp_path / "c", every=every), JOB)
    start = clock.now
    for _ in range(200_000):
        if writer.due():
            writer.write({}, vectors(1))
            if writer.written == 20:
                break
        clock.now += max(every, 10 * takes) / 400
    # The last one is not yet paid for.
    assert writer.seconds == pytest.approx(20 * takes)
    assert writer.seconds - takes <= 0.1 * (clock.now - start) + 1e-6
    assert clock.now - start >= 20 * every


def test_an_existing_one_is_kept_unless_it_is_resumed(tmp_path):
    (tmp_path / "c").write_bytes(b"hours of work")
    with pytest.raises(OutputError, match=r"exists: go on from it with resume \(--resume\), or remove it"):
        CheckpointWriter(Checkpoint(tmp_path / "c"), JOB)
    with pytest.raises(CheckpointError, match="no checkpoint"):
        CheckpointWriter(Checkpoint(tmp_path / "c", resume=True), JOB).load()
    assert (tmp_path / "c").read_bytes() == b"hours of work"


def test_one_of_another_job_is_refused_and_kept(tmp_path):
    path = tmp_path / "c"
    CheckpointWriter(Checkpoint(path), JOB).write({"stage": 2}, vectors(1))
    content = path.read_bytes()
    with pytest.raises(CheckpointError, match="of another job: seed is 3 there and 4 here; repeat"):
        CheckpointWriter(Checkpoint(path, resume=True), {"seed": 4}).load()
    assert path.read_bytes() == content
    state, arrays = CheckpointWriter(Checkpoint(path, resume=True), JOB).load()
    assert state["stage"] == 2
    np.testing.assert_array_equal(arrays["x"], vectors(1)["x"])


def test_without_a_file_there_is_nothing_to_resume(tmp_path):
    assert CheckpointWriter(Checkpoint(tmp_path / "c", resume=True), JOB).load() is None


@pytest.mark.parametrize("place", ["no/folder/c", ".", "null"])
def test_a_place_that_cannot_be_written_is_refused_at_the_start(tmp_path, place):
    (tmp_path / "null").symlink_to(os.devnull)
    with pytest.raises(OutputError):
        CheckpointWriter(Checkpoint(tmp_path / place), JOB)


@pytest.mark.parametrize("every", [-1.0, float("nan"), float("inf")])
def test_times_that_mean_nothing_are_refused(tmp_path, every):
    with pytest.raises(UsageError, match="give a number of 0 or more"):
        Checkpoint(tmp_path / "c", every=every)


def no_space(path, caplog, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(files.os, "fsync", full)
    return monkeypatch.undo


def too_large(path, caplog, monkeypatch):
    resource = pytest.importorskip("resource")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (8192, hard))
    return lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def no_folder(path, caplog, monkeypatch):
    hidden = path.parent.with_name("hidden")
    path.parent.rename(hidden)
    return lambda: hidden.rename(path.parent)


@pytest.mark.parametrize("trouble", [no_space, too_large, no_folder])
def test_a_failure_is_told_once_and_the_last_good_one_stays(tmp_path, caplog, monkeypatch, trouble):
    (tmp_path / "folder").mkdir()
    path = tmp_path / "folder" / "c"
    writer = CheckpointWriter(Checkpoint(path, every=0), JOB)
    writer.write({}, vectors(1))
    content = path.read_bytes()
    mend = trouble(path, caplog, monkeypatch)
    try:
        writer.write({}, vectors(2))
        writer.write({}, vectors(3))
    finally:
        mend()
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "painting goes on without a new checkpoint" in caplog.text
    assert path.read_bytes() == content
    assert names(path.parent) == ["c"]
    # Once there is room again it is written again, and the next trouble is told again.
    writer.write({}, vectors(4))
    assert read_checkpoint(path)[1]["x"][0] == 4
    assert writer.written == 2
    mend = trouble(path, caplog, monkeypatch)
    try:
        writer.write({}, vectors(5))
    finally:
        mend()
    assert len(caplog.records) == 2


def test_what_killed_processes_left_is_removed_and_nothing_else(tmp_path):
    checkpoint = Checkpoint(tmp_path / "c[1]")
    others = [".c1-0123.tmp", ".impasto-0123.tmp", "c[1].png", ".c[1]-0123.png"]
    for name in [*others, ".c[1]-0123456789abcdef.tmp"]:
        (tmp_path / name).write_bytes(b"half")
    CheckpointWriter(checkpoint, JOB)
    assert names(tmp_path) == sorted(others)


def test_remove_leaves_no_trace_and_may_be_called_twice(tmp_path):
    checkpoint = Checkpoint(tmp_path / "c")
    CheckpointWriter(checkpoint, JOB).write({}, vectors(1))
    assert checkpoint.exists()
    checkpoint.remove()
    checkpoint.remove()
    assert names(tmp_path) == []
