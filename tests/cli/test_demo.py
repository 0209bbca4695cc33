"""``impasto demo``, at a size and length that tests can afford."""

from __future__ import annotations

import numpy as np
import pytest

from impasto.cli import demo as module
from impasto.cli.demo import side_by_side
from impasto.runtime import recipes
from impasto.runtime.read_image import read_image


@pytest.fixture(autouse=True)
def short(monkeypatch):
    monkeypatch.setattr(module, "DEMO_SIZE", 48)
    monkeypatch.setattr(recipes, "FILTERBANK", recipes.FILTERBANK.with_iterations(3))


def test_it_writes_a_painting_and_its_side_by_side_and_replaces_its_own(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    told = run("demo")
    assert (told.code, told.out) == (0, "")
    assert "weights fetch" not in told.err  # it has all that it needs
    folder = tmp_path / "impasto-demo"
    assert sorted(path.name for path in folder.iterdir()) == ["painting.png", "side-by-side.png"]
    assert "painting.png" in told.err
    painting = read_image(folder / "painting.png")
    assert painting.size == (48, 36)
    contact = read_image(folder / "side-by-side.png").rgb
    assert contact.shape[0] == 36
    assert np.array_equal(contact[:, -48:], painting.rgb)
    again = run("demo", "-o", folder, "--quiet")
    assert (again.code, again.err) == (0, "")
    deeper = run("demo", "-o", tmp_path / "new" / "folder", "--quiet")
    assert (deeper.code, deeper.err) == (0, "")


def test_a_folder_that_cannot_be_made(run, tmp_path):
    (tmp_path / "file").write_bytes(b"")
    for folder in (tmp_path / "file", tmp_path / "file" / "demo"):
        told = run("demo", "-o", folder)
        assert told.code == 2
        assert str(folder) in told.error


def test_side_by_side_is_in_the_last_ones_height_with_white_between():
    generator = np.random.default_rng(2)
    first, last = (generator.random((height, 12, 3), dtype=np.float32) for height in (20, 10))
    row = side_by_side([first, last])
    assert row.shape[0] == 10
    assert np.array_equal(row[:, -12:], last)
    gap = row[:, 6:-12]  # 20×12 becomes 10×6
    assert gap.shape[1] >= 1
    assert (gap == 1).all()
