"""Animations: the course of a painting in at most so many frames of at most so many pixels."""

from __future__ import annotations

import sys

import numpy as np
import pytest
from PIL import Image

from impasto.errors import OutputError, UnavailableError
from impasto.runtime.animation import FRAMES, LONG_SIDE, Animation, check_animation
from impasto.runtime.loop import Step


def step(iteration, value, size):
    shape = (size[1], size[0], 3)
    return Step(iteration, iteration + 1, 0.0, 1.0, {}, True, size, lambda: np.full(shape, value, np.uint8))


def animate(path, size, iterations, sizes=None):
    animation = Animation(path, size, iterations)
    for iteration in range(iterations + 1):
        at = size if sizes is None else sizes[iteration * len(sizes) // (iterations + 1)]
        animation.see(step(iteration, 40 + 160 * iteration // iterations, at))
    animation.write(np.full((size[1], size[0], 3), 220, np.uint8))
    return animation


@pytest.mark.parametrize("suffix", ["webp", "gif"])
def test_frames_follow_the_painting_and_end_with_the_result(tmp_path, suffix):
    path = tmp_path / f"a.{suffix}"
    animate(path, (31, 17), 10, sizes=[(8, 4), (16, 9), (31, 17)])
    with Image.open(path) as image:
        assert image.size == (31, 17)
        assert image.n_frames == 12
        levels = []
        for frame in range(image.n_frames):
            image.seek(frame)
            levels.append(int(np.asarray(image.convert("RGB"))[8, 15, 0]))
    # WebP's and GIF's colours are near, not equal.
    assert levels == sorted(levels)
    assert levels[0] == pytest.approx(40, abs=4)
    assert levels[-1] == pytest.approx(220, abs=4)


def test_a_long_painting_of_a_large_picture_has_so_many_small_frames(tmp_path):
    path = tmp_path / "a.gif"
    animation = animate(path, (2 * LONG_SIDE, 30), 5 * FRAMES + 3)
    assert len(animation._frames) <= FRAMES
    assert {frame.shape for frame in animation._frames} == {(15, LONG_SIDE, 3)}
    with Image.open(path) as image:
        assert FRAMES // 2 < image.n_frames <= FRAMES + 1


@pytest.mark.parametrize("size", [(31, 17), (1, 1)])
def test_mp4_has_every_pixel_of_odd_pictures(tmp_path, size):
    av = pytest.importorskip("av", reason="PyAV is not installed")
    animate(tmp_path / "a.mp4", size, 5)
    with av.open(tmp_path / "a.mp4") as container:
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    assert frames[0].shape == (size[1] + size[1] % 2, size[0] + size[0] % 2, 3)
    assert len(frames) == 5 + 2 + 15
    assert frames[0][0, 0, 0] == pytest.approx(40, abs=8)
    assert frames[-1][-1, -1, 0] == pytest.approx(220, abs=8)


def test_mp4_without_pyav_is_refused_with_the_remedy(tmp_path, monkeypatch):
    monkeypatch.setattr("impasto.runtime.animation.find_spec", lambda _name: None)
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(UnavailableError, match=r"impasto\[video\]"):
        check_animation(tmp_path / "a.mp4")


def test_other_suffixes_and_files_that_are_there_are_refused(tmp_path):
    with pytest.raises(OutputError, match=r"suffix '\.avi'"):
        check_animation(tmp_path / "a.avi")
    (tmp_path / "a.gif").write_bytes(b"")
    with pytest.raises(OutputError, match="exists"):
        Animation(tmp_path / "a.gif", (3, 3), 1)
    Animation(tmp_path / "a.gif", (3, 3), 1, overwrite=True)
