"""Many pictures: each painted once and as it would be alone, none lost to another's trouble, memory flat."""

from __future__ import annotations

import struct
import threading
import zlib
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from impasto.errors import ImageError, LimitError, OutputError, UsageError
from impasto.models.weights import save_weights
from impasto.runtime.batch import Batch
from impasto.runtime.job_spec import JobSpec
from impasto.runtime.jobs import paint
from impasto.runtime.read_image import read_image
from impasto.runtime.stylizer import Stylizer
from impasto.runtime.write_image import write_image


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("IMPASTO_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def spec(tmp_path, picture, shallow):
    write_image(tmp_path / "style.png", picture(2, 33, 27))
    save_weights(shallow, tmp_path / "own.safetensors")
    return JobSpec(
        style=str(tmp_path / "style.png"),
        weights=str(tmp_path / "own.safetensors"),
        preset="pytorch",
        solver="lbfgs",
        size=24,
        iterations=3,
        threads=1,
    )


@pytest.fixture
def images(tmp_path, picture):
    """Five pictures in a folder."""
    (tmp_path / "in").mkdir()
    for number in range(5):
        write_image(tmp_path / "in" / f"{number}.png", picture(10 + number, 20, 20 + number))
    return tmp_path / "in"


def huge_png():
    """A picture that says it has 10¹⁰ pixels, in a few bytes."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 100_000, 100_000, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"0")) + chunk(b"IEND", b"")


def resident_bytes():
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        pytest.skip("this system does not tell what is resident")
    return int(status.split("VmRSS:")[1].split()[0]) * 1024


@pytest.mark.parametrize("jobs", [1, 3])
def test_every_picture_is_painted_as_it_would_be_alone(spec, images, tmp_path, jobs):
    outcomes = list(Batch([images], tmp_path / "out", spec, jobs=jobs).run())
    assert {Path(outcome.content).name for outcome in outcomes} == {f"{number}.png" for number in range(5)}
    for outcome in outcomes:
        assert outcome.status == "painted"
        alone = paint(replace(spec, content=outcome.content))
        alone.save(tmp_path / "alone.png", overwrite=True)
        np.testing.assert_array_equal(read_image(outcome.output).rgb, read_image(tmp_path / "alone.png").rgb)
        assert outcome.loss == alone.loss["total"]


@pytest.mark.parametrize("jobs", [1, 2])
def test_of_fifty_with_a_corrupt_a_huge_and_an_unreadable_one_47_are_painted_in_flat_memory(spec, tmp_path, jobs):
    folder = tmp_path / "in"
    folder.mkdir()
    # Small files, of which each takes 9.6 MB once it is decoded: 47 of them that stayed would be 450 MB.
    for number in range(47):
        Image.new("RGB", (1000, 800), (5 * number, 90, 200 - number)).save(folder / f"{number:02}.png")
    (folder / "00-corrupt.png").write_bytes((folder / "01.png").read_bytes()[:200])
    (folder / "20-huge.png").write_bytes(huge_png())
    (folder / "30-unreadable.png").symlink_to("nowhere")
    resident, outcomes = [], []
    batch = Batch([folder], tmp_path / "out", replace(spec, iterations=1), jobs=jobs)
    for outcome in batch.run():
        outcomes.append(outcome)
        resident.append(resident_bytes())
    assert Counter(outcome.status for outcome in outcomes) == {"painted": 47, "failed": 3}
    failed = {Path(outcome.content).name: outcome.error for outcome in outcomes if outcome.error}
    assert isinstance(failed["00-corrupt.png"], ImageError)
    assert isinstance(failed["20-huge.png"], LimitError)
    assert isinstance(failed["30-unreadable.png"], ImageError)
    assert all(name in str(error) for name, error in failed.items())
    # After ten every session is warm; what comes and goes is a picture or two for each worker.
    assert max(resident[10:]) - resident[10] < 100e6
    # Once more: nothing is painted twice, and the three are told of again.
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()}
    again = list(batch.run())
    assert Counter(outcome.status for outcome in again) == {"present": 47, "failed": 3}
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()} == before


def test_a_rerun_paints_only_what_is_missing(spec, images, tmp_path):
    batch = Batch([images], tmp_path / "out", spec, jobs=2)
    list(batch.run())
    (tmp_path / "out" / "3.png").unlink()
    statuses = {Path(outcome.output).name: outcome.status for outcome in batch.run()}
    assert statuses.pop("3.png") == "painted"
    assert set(statuses.values()) == {"present"}


def test_what_is_of_another_job_is_never_taken_for_done_nor_lost(spec, images, tmp_path, picture):
    out = tmp_path / "out"
    list(Batch([images], out, spec).run())
    before = (out / "0.png").read_bytes()
    other = replace(spec, seed=1, init="noise")
    with pytest.raises(OutputError, match=r"0\.png' exists and is of another job"):
        list(Batch([images], out, other).run())
    # A photograph that was edited since makes another job, too.
    write_image(images / "4.png", picture(99, 20, 24), overwrite=True)
    with pytest.raises(OutputError, match=r"4\.png' exists"):
        list(Batch([images], out, spec).run())
    assert (out / "0.png").read_bytes() == before
    outcomes = list(Batch([images], out, spec, overwrite=True).run())
    assert Counter(outcome.status for outcome in outcomes) == {"present": 4, "painted": 1}
    outcomes = list(Batch([images], out, other, overwrite=True).run())
    assert Counter(outcome.status for outcome in outcomes) == {"painted": 5}


@pytest.mark.parametrize("jobs", [1, 2])
def test_stopped_it_writes_nothing_half_painted_and_goes_on_later(spec, images, tmp_path, jobs):
    endless = replace(spec, iterations=20_000)
    asked = threading.Event()
    batch = Batch([images], tmp_path / "out", spec, jobs=jobs)
    seen = []
    for outcome in batch.run(asked.is_set):
        seen.append(outcome)
        asked.set()
    assert 1 <= len(seen) <= 1 + jobs
    assert len(list((tmp_path / "out").iterdir())) == len(seen)
    assert Counter(outcome.status for outcome in batch.run())["present"] == len(seen)
    stopping = Batch([images], tmp_path / "other", endless, jobs=jobs)
    timer = threading.Timer(1.0, asked.set)
    asked.clear()
    timer.start()
    assert list(stopping.run(asked.is_set)) == []
    assert list((tmp_path / "other").iterdir()) == []


def test_a_loop_that_is_left_ends_the_workers(spec, images, tmp_path):
    before = threading.active_count()
    for _ in Batch([images], tmp_path / "out", spec, jobs=2).run():
        break
    assert threading.active_count() == before


def test_what_would_fail_every_picture_is_raised_before_any(spec, images, tmp_path):
    with pytest.raises(ImageError, match=r"none\.png"):
        list(Batch([images], tmp_path / "out", replace(spec, style=str(tmp_path / "none.png"))).run())
    with pytest.raises(UsageError, match="no style"):
        Batch([images], tmp_path / "out", replace(spec, style=None))
    with pytest.raises(UsageError, match="jobs is 0"):
        Batch([images], tmp_path / "out", spec, jobs=0)
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="is a file"):
        Batch([images], tmp_path / "file", spec)


def test_memory_bounds_how_many_are_painted_at_the_same_time(spec, images, tmp_path, monkeypatch):
    """With room for one and a half, three workers paint one after the other."""
    with Stylizer("pytorch", weights=spec.weights) as stylizer:
        preset = replace(spec, content=str(images / "0.png"), size=64).recipe()[0]
        stylizer.preset = preset.for_weights(stylizer.weights)
        need = stylizer.foresee(images / "0.png", spec.style, size=64, timed=False).asked.memory_bytes
    painting, most, lock = set(), [], threading.Lock()
    begin = Stylizer.painting

    def watched(self, job, checkpoint=None):
        found = begin(self, job, checkpoint)
        steps = found._steps

        def run():
            name = threading.current_thread().name
            with lock:
                painting.add(name)
                most.append(len(painting))
            yield from steps
            with lock:
                painting.discard(name)

        found._steps = run()
        return found

    monkeypatch.setattr(Stylizer, "painting", watched)
    for factor, expected in ((1.5, 1), (None, 2)):
        painting.clear()
        most.clear()
        limits = {"memory": None if factor is None else int(factor * need)}
        tight = replace(spec, size=64, iterations=12, limits=limits)
        outcomes = list(Batch([images], tmp_path / str(factor), tight, jobs=3).run())
        assert {outcome.status for outcome in outcomes} == {"painted"}
        assert max(most) == expected if factor else max(most) >= expected


def test_an_error_that_is_a_defect_fails_one_picture(spec, images, tmp_path, monkeypatch, caplog):
    job = Stylizer.job

    def broken(self, content, *args, **kwargs):
        if str(content).endswith("2.png"):
            raise RuntimeError("boom")
        return job(self, content, *args, **kwargs)

    monkeypatch.setattr(Stylizer, "job", broken)
    outcomes = list(Batch([images], tmp_path / "out", spec).run())
    (failed,) = [outcome for outcome in outcomes if outcome.status == "failed"]
    assert failed.content.endswith("2.png")
    assert failed.error.exit_code == 1
    assert "RuntimeError: boom" in str(failed.error)
    assert "boom" in caplog.text
