"""``--preview``, ``--animate``, ``--report`` and ``impasto grid``, from the command line."""

from __future__ import annotations

import json
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from impasto.runtime.read_image import read_image


def test_a_painting_can_be_looked_at_in_three_ways_and_is_the_same(run, pictures, tmp_path):
    assert run(*pictures.job, "-o", tmp_path / "plain.png").code == 0
    seeing = ["--preview", tmp_path / "p.png", "--animate", tmp_path / "a.webp", "--report", tmp_path / "r.html"]
    told = run(*pictures.job, "-o", tmp_path / "out.png", *seeing)
    assert told.code == 0
    assert (tmp_path / "out.png").read_bytes() == (tmp_path / "plain.png").read_bytes()
    # In the end the preview is the result.
    np.testing.assert_array_equal(read_image(tmp_path / "p.png").rgb, read_image(tmp_path / "out.png").rgb)
    with Image.open(tmp_path / "a.webp") as image:
        assert (image.size, image.n_frames > 1) == ((24, 24), True)
    assert len(list(ElementTree.parse(tmp_path / "r.html").iter("img"))) == 3
    assert {path.name for path in tmp_path.iterdir()} == {"plain.png", "out.png", "p.png", "a.webp", "r.html"}


@pytest.mark.parametrize(
    ("args", "code", "words"),
    [
        (["--preview", "p.gif"], 2, ["'.gif'", ".png"]),
        (["--preview", "none/p.png"], 2, ["no folder"]),
        (["--animate", "a.avi"], 2, ["'.avi'", ".webp"]),
        (["--animate", "there.gif"], 2, ["exists", "--force"]),
        (["--report", "there.html"], 2, ["exists", "--force"]),
        (["--report", "folder"], 2, ["is a folder"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_what_cannot_be_written_is_refused_before_painting(run, pictures, tmp_path, monkeypatch, args, code, words):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    for name in ("there.gif", "there.html"):
        (tmp_path / name).write_text("old")
    told = run(*pictures.job, "-o", "out.png", *args)
    assert (told.code, told.out) == (code, "")
    assert len(told.err.splitlines()) == 1
    assert all(word in told.error for word in words), told.error
    assert not (tmp_path / "out.png").exists()


def test_mp4_without_pyav_is_told_with_the_remedy(run, pictures, tmp_path, monkeypatch):
    monkeypatch.setattr("impasto.runtime.animation.find_spec", lambda _name: None)
    told = run(*pictures.job, "-o", tmp_path / "out.png", "--animate", tmp_path / "a.mp4")
    assert told.code == 3
    assert "impasto[video]" in told.error


# --- Contact sheets --------------------------------------------------------------------------------------------------


def grid(pictures):
    return ["grid", *pictures.job[1:]]


def test_a_sheet_holds_what_stylize_paints(run, pictures, tmp_path):
    told = run(*grid(pictures), "-o", tmp_path / "g.png", "--columns", "style-weight=1e5,1e7", "--json")
    assert told.code == 0
    value = json.loads(told.out)
    assert value["output"] == str(tmp_path / "g.png")
    ((one, two),) = value["cells"]
    assert run(*pictures.job, "-o", tmp_path / "out.png", "--style-weight", 1e7).code == 0
    with Image.open(tmp_path / "g.png") as image, Image.open(tmp_path / "out.png") as alone:
        painting = np.asarray(image)[-24 - 8 : -8, -24 - 8 : -8]
        np.testing.assert_array_equal(painting, np.asarray(alone))
    assert one["loss"]["total"] < two["loss"]["total"]


def test_layers_styles_and_ratios_can_be_gone_over(run, pictures, tmp_path):
    args = ["--rows", "layers=1,conv1_1+conv2_1", "--columns", f"style={pictures.style},{pictures.content}"]
    job = ["grid", pictures.content, *pictures.job[3:]]
    told = run(*job, "-o", tmp_path / "g.jpg", *args, "--json")
    assert told.code == 0, told.err
    cells = json.loads(told.out)["cells"]
    assert [[cell["taps"]["style"] for cell in row] for row in cells] == [
        [["conv1_1"]] * 2,
        [["conv1_1", "conv2_1"]] * 2,
    ]
    assert run(*grid(pictures), "-o", tmp_path / "r.png", "--rows", "ratio=1e-6,1e-4", "--quiet").err == ""


@pytest.mark.parametrize(
    ("args", "code", "words"),
    [
        ([], 2, ["--rows", "--columns"]),
        (["--rows", "layer=1"], 2, ["'layer'", "layers"]),
        (["--rows", "layers=9"], 2, ["5 style layers"]),
        (["--rows", "layers=conv9_1"], 2, ["conv9_1"]),
        (["--rows", "layers=conv1_1,conv5_1"], 2, ["conv5_1"]),
        (["--rows", "ratio=few"], 2, ["'few'"]),
        (["--rows", "preset=none"], 2, ["'none'"]),
        (["--rows", "style=none.png"], 5, ["none.png"]),
        (["--rows", "seed=1", "--columns", "seed=2"], 2, ["both"]),
        (["--rows", "seed=1", "-o", "out.gif"], 2, [".gif"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_a_sheet_that_cannot_be_is_refused_in_one_line_before_painting(
    run, pictures, tmp_path, monkeypatch, args, code, words
):
    monkeypatch.chdir(tmp_path)
    told = run(*grid(pictures), "-o", "g.png", *args)
    assert (told.code, told.out) == (code, "")
    assert len(told.err.splitlines()) == 1
    assert all(word in told.error for word in words), told.error
    assert list(tmp_path.iterdir()) == []
