"""Which pictures a batch paints, where each goes, and by what a painting is known."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from impasto.errors import ImageError, LimitError, OutputError, UnknownNameError, UsageError
from impasto.runtime.batch_items import file_digest, fingerprint, make_folder, mark, marked, plan_items
from impasto.runtime.job_spec import JobSpec
from impasto.runtime.jobs import open_stylizer
from impasto.runtime.limits import Limits
from impasto.runtime.write_image import write_image


@pytest.fixture
def folder(tmp_path):
    for name in ("b.JPG", "a.png", "notes.txt", "deep/er/c.png", "deep/d.webp", "x[1].png"):
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "in" / name).write_bytes(b"")
    (tmp_path / "in" / "folder.png").mkdir()
    return tmp_path / "in"


def names(items):
    return [item.content.name for item in items]


def test_a_folder_stands_for_the_pictures_directly_in_it(folder, tmp_path):
    items = plan_items([folder], tmp_path / "out", "jpg")
    assert names(items) == ["a.png", "b.JPG", "x[1].png"]
    assert [item.output for item in items] == [tmp_path / "out" / name for name in ("a.jpg", "b.jpg", "x[1].jpg")]


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [("*.png", ["a.png", "x[1].png"]), ("**/*.png", ["a.png", "c.png", "x[1].png"]), ("deep/?.*", ["d.webp"])],
)
def test_a_pattern_stands_for_the_files_that_match(folder, tmp_path, monkeypatch, pattern, expected):
    assert sorted(names(plan_items([folder / pattern], tmp_path / "out", "png"))) == expected
    monkeypatch.chdir(folder)
    assert sorted(names(plan_items([pattern], tmp_path / "out", "png"))) == expected


def test_a_file_whose_name_looks_like_a_pattern_is_that_file(folder, tmp_path):
    assert names(plan_items([folder / "x[1].png"], tmp_path / "out", "png")) == ["x[1].png"]


def test_a_picture_is_painted_once_however_often_it_is_named(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(folder)
    items = plan_items(["a.png", folder, "./a.png", "*.png", folder / "deep" / ".." / "a.png"], tmp_path, "png")
    assert names(items) == ["a.png", "b.JPG", "x[1].png"]


def test_a_path_that_is_not_there_is_told_in_its_turn(tmp_path):
    assert names(plan_items([tmp_path / "none.png"], tmp_path / "out", "png")) == ["none.png"]


def test_what_cannot_be_painted_is_refused_at_once(folder, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match="holds no pictures"):
        plan_items([tmp_path / "empty"], tmp_path / "out", "png")
    with pytest.raises(UsageError, match="matches no file"):
        plan_items([str(folder / "*.tiff")], tmp_path / "out", "png")
    with pytest.raises(UsageError, match="no pictures"):
        plan_items([], tmp_path / "out", "png")
    with pytest.raises(UsageError, match="lies in the folder for paintings"):
        plan_items([folder], folder, "png")
    with pytest.raises(UnknownNameError, match="unknown format 'gif'"):
        plan_items([folder], tmp_path / "out", "gif")
    (tmp_path / "a.jpg").write_bytes(b"")
    with pytest.raises(UsageError, match="would both be painted to"):
        plan_items([folder, tmp_path / "a.jpg"], tmp_path / "out", "png")


def test_the_folder_is_made_or_what_stands_in_its_way_is_told(tmp_path):
    make_folder(tmp_path / "a" / "b")
    make_folder(tmp_path / "a" / "b")
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="is a file: give the name of a folder"):
        make_folder(tmp_path / "file")
    with pytest.raises(OutputError, match="cannot make the folder"):
        make_folder(tmp_path / "file" / "deeper")
    with pytest.raises(OutputError, match="cannot make the folder"):
        make_folder(Path("a\0b"))


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "tiff"])
@pytest.mark.parametrize("alpha", [False, True])
def test_a_painting_is_known_by_its_mark_in_every_format(tmp_path, picture, suffix, alpha):
    path = tmp_path / f"a.{suffix}"
    rgb = picture(1, 9, 7)
    write_image(path, rgb, rgb[..., 0] if alpha else None, metadata=mark("0123abc"))
    assert marked(path) == "0123abc"


def test_other_files_have_no_mark(tmp_path, picture):
    write_image(tmp_path / "plain.png", picture(1, 9, 7))
    write_image(tmp_path / "plain.jpg", picture(1, 9, 7))
    write_image(tmp_path / "other.jpg", picture(1, 9, 7), metadata={"Author": "me"})
    (tmp_path / "text.png").write_text("text")
    Image.fromarray(np.zeros((3, 3), np.uint8)).save(tmp_path / "a.gif")
    for path in (*tmp_path.iterdir(), tmp_path, tmp_path / "none.png"):
        assert marked(path) is None


def test_a_file_is_known_by_its_bytes(tmp_path):
    (tmp_path / "a").write_bytes(b"abc")
    # FIPS 180-4's own example.
    assert file_digest(tmp_path / "a", Limits()).startswith("ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61")
    with pytest.raises(LimitError, match="3 bytes"):
        file_digest(tmp_path / "a", Limits(max_file_bytes=2))
    with pytest.raises(ImageError, match="cannot be read"):
        file_digest(tmp_path / "none", Limits())
    with pytest.raises(ImageError, match="cannot be read"):
        file_digest(tmp_path, Limits())


@pytest.mark.skipif(os.name != "posix", reason="devices")
def test_a_device_is_no_picture():
    with pytest.raises(ImageError, match="not a regular file"):
        file_digest(Path("/dev/zero"), Limits())


def test_the_fingerprint_is_of_all_that_is_asked_and_of_nothing_else(tmp_path, picture):
    for number in (1, 2):
        write_image(tmp_path / f"{number}.png", picture(number, 9, 7))
    spec = JobSpec(preset="filterbank", size=20)

    def of(content="1.png", style="s", format="png", **changes):
        changed = replace(spec, **changes)
        with open_stylizer(changed, cache=False) as stylizer:
            return fingerprint(tmp_path / content, style, stylizer, changed, format)

    same = of()
    (tmp_path / "copy.png").write_bytes((tmp_path / "1.png").read_bytes())
    assert same == of("copy.png") == of(threads=1) == of(limits={"max_pixels": None}) == of(output="x.png")
    # The start that the preset has anyway is another thing to ask for, but not another start than itself.
    others = [
        of("2.png"),
        of(style="t"),
        of(format="jpg"),
        of(size=21),
        of(scales=2),
        of(seed=1),
        of(iterations=3),
        of(style_weight=9.0),
        of(weights="filterbank-1"),
        of(init="noise"),
        of(init=str(tmp_path / "2.png")),
        of(init=str(tmp_path / "1.png")),
        of(quality=94),
        of(plan="sliced"),
        of(backend="onnxruntime"),
        of(precision="fp32"),
    ]
    assert len({same, *others}) == len(others) + 1
