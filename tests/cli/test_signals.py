"""Ctrl-C, SIGTERM and SIGKILL: the best picture so far is written, and never half of one."""

from __future__ import annotations

import json
import os
import signal

import pytest

from impasto.runtime.read_image import read_image

pytestmark = pytest.mark.skipif(os.name != "posix", reason="POSIX signals")

ENDLESS = ["--iterations", "20000"]


def wait_for(process, words):
    """Read standard error up to the line with these words; a process that ends before fails the test."""
    for line in process.stderr:
        if words in line:
            return
    pytest.fail(f"ended with {process.wait()} without saying {words!r}")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda number: number.name)
def test_the_best_picture_is_written_and_the_json_says_so(start, pictures, tmp_path, number):
    output = tmp_path / "out.png"
    process = start(*pictures.job, *ENDLESS, "-o", output, "--json")
    wait_for(process, "iteration 0, loss")
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in err
    last = err.splitlines()[-1]
    assert last.startswith("impasto: interrupted after ")
    assert str(output) in last
    assert read_image(output).size == (24, 24)
    value = json.loads(out)
    assert value["stop"] == "interrupted"
    assert value["output"] == str(output)
    assert value["loss"]["total"] == pytest.approx(min(point["loss"] for point in value["trace"]), rel=1e-12)
    assert [path.name for path in tmp_path.iterdir()] == ["out.png"]


def test_before_there_is_a_picture_nothing_is_written(start, pictures, tmp_path):
    # The signal comes while the pictures are read.
    kill = (
        "import os; import impasto.runtime.stylizer as s;"
        "s.read_image = lambda *_: os.kill(os.getpid(), signal.SIGTERM);"
    )
    process = start(*pictures.job, "-o", tmp_path / "out.png", "--json", before=kill)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (130, "")
    assert err == "impasto: interrupted: the result was not written\n"
    assert list(tmp_path.iterdir()) == []


def test_a_second_signal_stops_at_once(start, pictures, tmp_path):
    # An evaluation that never ends stands for one of a large picture.
    stuck = (
        "import time; from impasto.runtime import painting as p; descend = p.descend\n"
        "def slow(*args, **kwargs):\n"
        "    for seen in descend(*args, **kwargs):\n"
        "        yield seen\n"
        "        time.sleep(600)\n"
        "p.descend = slow\n"
    )
    process = start(*pictures.job, "-o", tmp_path / "out.png", before=stuck)
    wait_for(process, "iteration 0, loss")
    process.send_signal(signal.SIGINT)
    wait_for(process, "once more to stop at once")
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert err.splitlines()[-1] == "impasto: interrupted: the result was not written"
    assert list(tmp_path.iterdir()) == []


def test_a_signal_while_the_picture_is_written_does_not_cut_it_off(start, pictures, tmp_path):
    late = (
        "import os; sync = os.fsync\n"
        "from impasto.runtime.result import Result; save = Result.save\n"
        "def signalled(*args, **kwargs):\n"
        "    os.kill(os.getpid(), signal.SIGTERM); save(*args, **kwargs)\n"
        "Result.save = signalled\n"
    )
    process = start(*pictures.job, "-o", tmp_path / "out.png", "--json", before=late)
    out, _ = process.communicate(timeout=60)
    # The painting was finished, so that is what it is.
    assert process.returncode == 0
    assert json.loads(out)["stop"] == "done"
    assert read_image(tmp_path / "out.png").size == (24, 24)


def test_killed_while_writing_the_old_picture_stays(start, pictures, tmp_path):
    output = tmp_path / "out.png"
    output.write_bytes(b"old")
    kill = (
        "import os; from impasto.runtime import files\n"
        "def killed(handle): os.kill(os.getpid(), signal.SIGKILL)\n"
        "from impasto.runtime.result import Result; save = Result.save\n"
        "def saved(*args, **kwargs):\n"
        "    files.os.fsync = killed; save(*args, **kwargs)\n"
        "Result.save = saved\n"
    )
    process = start(*pictures.job, "-o", output, "--force", before=kill)
    process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL
    assert output.read_bytes() == b"old"
    # What is left is a hidden temporary file, which the next run is not disturbed by.
    assert all(path.name.startswith(".impasto-") for path in tmp_path.iterdir() if path != output)
    again = start(*pictures.job, "-o", output, "--force")
    again.communicate(timeout=60)
    assert again.returncode == 0
    assert read_image(output).size == (24, 24)


def test_a_job_in_the_background_keeps_ignoring_ctrl_c(start, pictures, tmp_path):
    ignore = "signal.signal(signal.SIGINT, signal.SIG_IGN);"
    process = start(*pictures.job, "-o", tmp_path / "out.png", "--iterations", 100, before=ignore)
    wait_for(process, "iteration 0, loss")
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
    assert process.returncode == 0
