"""Previews: whole at any moment, cheap, and never a reason to stop."""

from __future__ import annotations

import numpy as np
import pytest

from impasto.errors import OutputError
from impasto.runtime.loop import Step
from impasto.runtime.preview import Preview
from impasto.runtime.read_image import read_image


def step(value, seen=None):
    def preview():
        if seen is not None:
            seen.append(value)
        return np.full((6, 8, 3), value, np.uint8)

    return Step(1, 1, 0.0, 1.0, {}, True, (8, 6), preview)


def test_the_first_is_written_at_once_and_the_next_when_it_is_due(tmp_path):
    path, made = tmp_path / "p.png", []
    preview = Preview(path, every=3600)
    preview.see(step(10, made))
    preview.see(step(20, made))
    assert made == [10]  # one that is not due is not even made
    preview = Preview(path, every=0)
    preview.see(step(30, made))
    np.testing.assert_array_equal(read_image(path).rgb, np.float32(30 / 255))
    assert list(tmp_path.iterdir()) == [path]


def test_writing_takes_a_twentieth_of_the_time_at_most(tmp_path, monkeypatch):
    now = [100.0]
    monkeypatch.setattr("impasto.runtime.preview.time.monotonic", lambda: now[0])

    def slow(*args, **kwargs):
        now[0] += 2.0

    monkeypatch.setattr("impasto.runtime.preview.write_image", slow)
    preview, written = Preview(tmp_path / "p.png", every=0), 0
    for _ in range(400):
        before = now[0]
        preview.see(step(1))
        written += now[0] > before
        now[0] += 1.0
    # 2 of every 40 seconds, the first at once.
    assert written * 2.0 <= 0.05 * (now[0] - 100.0) + 2.0
    assert written > 5


def test_a_file_that_cannot_be_written_later_is_one_warning(tmp_path, caplog):
    (tmp_path / "folder").mkdir()
    preview = Preview(tmp_path / "folder" / "p.png", every=0)
    (tmp_path / "folder").rmdir()
    for _ in range(3):
        preview._due = 0.0
        preview.see(step(1))
    assert [record.getMessage()[:36] for record in caplog.records] == ["painting goes on without previews: o"]


@pytest.mark.parametrize("name", ["p.gif", "none/p.png", "p"])
def test_a_file_that_cannot_be_is_refused_at_once(tmp_path, name):
    with pytest.raises(OutputError):
        Preview(tmp_path / name)
