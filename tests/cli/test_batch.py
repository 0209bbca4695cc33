"""``impasto batch``: exit codes, what is told, and that it can be stopped and killed."""

from __future__ import annotations

import json
import os
import signal

import numpy as np
import pytest
from PIL import Image


@pytest.fixture
def images(tmp_path):
    (tmp_path / "in").mkdir()
    generator = np.random.default_rng(21)
    for number in range(6):
        blocks = generator.integers(0, 256, (6, 8, 3), dtype=np.uint8)
        Image.fromarray(blocks).resize((32, 24), Image.Resampling.BICUBIC).save(tmp_path / "in" / f"{number}.png")
    return tmp_path / "in"


def options(pictures, out):
    recipe = ["--preset", "pytorch", "--solver", "lbfgs", "--size", "24", "--iterations", "3"]
    return ["--style", pictures.style, "--out", out, "--weights", pictures.weights, *recipe]


def test_it_paints_what_stylize_paints(run, pictures, images, tmp_path):
    told = run("batch", images, *options(pictures, tmp_path / "out"), "--jobs", 1, "--format", "jpg", "--json")
    assert told.code == 0
    value = json.loads(told.out)
    assert (value["painted"], value["present"], value["failed"], value["stopped"]) == (6, 0, 0, 0)
    job = [*pictures.job[:1], str(images / "4.png"), *pictures.job[2:]]
    assert run(*job, "-o", tmp_path / "alone.jpg").code == 0
    with Image.open(tmp_path / "alone.jpg") as alone, Image.open(tmp_path / "out" / "4.jpg") as one:
        np.testing.assert_array_equal(np.asarray(one), np.asarray(alone))


def test_failures_are_told_at_the_end_and_by_the_exit_code(run, pictures, images, tmp_path):
    jsonschema = pytest.importorskip("jsonschema", reason="jsonschema is not installed")
    (images / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    args = [images, *options(pictures, tmp_path / "out"), "--events", tmp_path / "events", "--json"]
    told = run("batch", *args)
    assert told.code == 6
    *_, failure, counts, last = told.err.splitlines()
    assert failure.startswith("impasto: failed: picture ")
    assert "broken.png" in failure
    assert "6 painted" in counts
    assert last.startswith("impasto: error: 1 of 7 pictures failed")
    value = json.loads(told.out)
    jsonschema.Draft202012Validator(json.loads(run("schema", "batch").out)).validate(value)
    events = [json.loads(line) for line in (tmp_path / "events").read_text().splitlines()]
    assert events == value["pictures"]
    event = jsonschema.Draft202012Validator(json.loads(run("schema", "event").out))
    for each in events:
        event.validate(each)
    (failed,) = [each for each in events if each["status"] == "failed"]
    assert failed["exit_code"] == 5
    # Only the failed one is tried again, and nothing at all where nothing is wrong.
    told = run("batch", *args, "--force")
    assert (told.code, json.loads(told.out)["present"]) == (6, 6)
    (images / "broken.png").unlink()
    told = run("batch", *args[:-3], "--quiet")
    assert (told.code, told.out, told.err) == (0, "", "")


@pytest.mark.parametrize(
    ("args", "code", "words"),
    [
        (["in", "--out", "out"], 2, ["no style", "STYLE"]),
        (["empty", "--style", "s.png", "--out", "out"], 2, ["'empty' holds no pictures"]),
        (["in/*.webp", "--style", "s.png", "--out", "out"], 2, ["matches no file"]),
        (["in", "--style", "s.png", "--out", "in"], 2, ["lies in the folder for paintings"]),
        (["in", "--style", "s.png", "--out", "in/0.png"], 2, ["is a file: give the name of a folder"]),
        (["in", "--style", "s.png", "--out", "out"], 5, ["'s.png' does not exist"]),
        (["in", "--style", "in/0.png", "--out", "out", "--format", "gif"], 2, ["'gif'", "tif"]),
        (["in", "--style", "in/0.png", "--out", "out", "--jobs", "0"], 2, ["--jobs"]),
        (["in", "--style", "in/0.png", "--out", "out", "--config", "in/0.png"], 2, [".toml"]),
        (["in", "--style", "in/0.png", "--out", "out", "--preset", "jonson"], 2, ["johnson"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_what_cannot_work_is_refused_in_one_line_before_anything_is_painted(
    run, images, tmp_path, monkeypatch, args, code, words
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    told = run("batch", *args, "--quiet")
    assert (told.code, told.out) == (code, "")
    assert len(told.err.splitlines()) == 1
    assert all(word in told.error for word in words), told.error
    assert not list(tmp_path.glob("out/*"))


def started(process, count):
    """Wait until so many pictures are painted."""
    for line in process.stdout:
        count -= '"painted"' in line
        if not count:
            return
    pytest.fail(f"ended with {process.wait()}")


posix = pytest.mark.skipif(os.name != "posix", reason="POSIX signals")


@posix
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL], ids=lambda number: number.name)
def test_stopped_or_killed_halfway_the_rerun_paints_nothing_twice(run, start, pictures, images, tmp_path, number):
    args = ["batch", images, *options(pictures, tmp_path / "out"), "--iterations", 40, "--jobs", 2]
    process = start(*args, "--events", "/dev/stdout")
    started(process, 2)
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    done = {path: path.stat() for path in (tmp_path / "out").glob("*.png")}
    assert 2 <= len(done) < 6
    if number == signal.SIGKILL:
        assert process.returncode == -number
    else:
        assert process.returncode == 130
        assert f"interrupted: {6 - len(done)} of 6 pictures are left" in err.splitlines()[-1]
        assert sorted(done) == sorted((tmp_path / "out").iterdir())  # no temporary files
    told = run(*args, "--json")
    assert told.code == 0
    value = json.loads(told.out)
    assert (value["present"], value["painted"]) == (len(done), 6 - len(done))
    for path, before in done.items():
        assert (path.stat().st_ino, path.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


@posix
def test_a_second_ctrl_c_does_not_wait(start, pictures, images, tmp_path):
    # An evaluation that never ends stands for one of a large picture.
    stuck = (
        "import time; from impasto.runtime import painting as p; descend = p.descend\n"
        "def slow(*args, **kwargs):\n"
        "    for seen in descend(*args, **kwargs):\n"
        "        print('evaluated', file=sys.stderr, flush=True); time.sleep(600); yield seen\n"
        "p.descend = slow\n"
    )
    process = start("batch", images, *options(pictures, tmp_path / "out"), "--jobs", 1, before=stuck)
    for words in ("evaluated", "once more"):
        for line in process.stderr:
            if words in line:
                process.send_signal(signal.SIGINT)
                break
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in err
    assert list((tmp_path / "out").iterdir()) == []
