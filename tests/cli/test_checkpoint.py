"""``--checkpoint`` and ``--resume``: a killed job goes on to the identical picture."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import impasto
from impasto.runtime.read_image import read_image

_ROOT = Path(impasto.__file__).parents[1]

# Twenty processes, each killed at a random moment, most of them after they began to paint, then one that may end. A
# parent that has imported everything, and started no thread, forks them: they cost what painting costs, not what
# importing does. The arguments are a seed and the command. With 12 ms and more an evaluation, 300 of them take longer
# than twenty lives of up to 0.17 s: on no machine does the job end before the last kill.
_KILLS = """
import os, random, signal, sys, time
import impasto.cli.paint, impasto.runtime.stylizer, impasto.runtime.backends.onnxruntime, onnx, onnxruntime
from impasto.cli import main
from impasto.runtime.plans.fused import FusedPlan

moments, kills, status = random.Random(int(sys.argv[1])), 0, -signal.SIGKILL
while status == -signal.SIGKILL:
    ready, begun = os.pipe()
    child = os.fork()
    if child == 0:
        evaluate = FusedPlan.evaluate
        def slowly(*args):
            os.write(begun, b".")
            time.sleep(0.012)
            return evaluate(*args)
        FusedPlan.evaluate = slowly
        os._exit(main(sys.argv[2:]))
    os.close(begun)
    if kills < 20:
        if moments.random() < 0.8:
            os.read(ready, 1)
        time.sleep(moments.uniform(0, 0.17))
        os.kill(child, signal.SIGKILL)
        kills += 1
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    os.close(ready)
print(kills, status)
"""


def names(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture
def paint(pictures):
    """A command, by the backend that starts soonest."""
    return [*pictures.job, "--backend", "onnxruntime"]


@pytest.fixture
def job(paint, tmp_path):
    """A command that keeps checkpoints as often as it may, and what it writes."""
    return [*paint, "-o", tmp_path / "out.png", "--checkpoint", tmp_path / "c", "--checkpoint-every", "0"]


def interrupted(start, *args):
    """Start a command, and end it by SIGTERM once a checkpoint is there; its standard error."""
    process = start(*args)
    checkpoint = args[args.index("--checkpoint") + 1]
    deadline = time.monotonic() + 60
    while not checkpoint.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    return err


@pytest.mark.skipif(not hasattr(os, "fork"), reason="fork")
def test_killed_twenty_times_it_paints_the_same_picture(run, paint, tmp_path):
    whole, killed = tmp_path / "whole.png", tmp_path / "killed.png"
    job = [*paint, "--iterations", 300, "--quiet"]
    assert run(*job, "-o", whole).code == 0
    keep = ["--checkpoint", tmp_path / "c", "--checkpoint-every", 0.02, "--resume"]
    command = map(str, [20, *job, *keep, "-o", killed])
    done = subprocess.run(
        [sys.executable, "-c", _KILLS, *command],
        env=os.environ | {"PYTHONPATH": str(_ROOT)},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.stdout == "20 0\n", done.stderr
    assert killed.read_bytes() == whole.read_bytes()
    # Neither the checkpoint nor what was being written when the kill came.
    assert names(tmp_path) == ["killed.png", "whole.png"]


@pytest.mark.skipif(os.name != "posix", reason="POSIX signals")
def test_killed_while_writing_the_last_good_one_stays(run, start, job, paint, tmp_path):
    kill = (
        "import os; from impasto.runtime import checkpoint\n"
        "write, count = checkpoint.write_checkpoint, [0]\n"
        "def killed(file, *args):\n"
        "    count[0] += 1; write(file, *args)\n"
        "    if count[0] == 3: file.flush(); os.kill(os.getpid(), signal.SIGKILL)\n"
        "checkpoint.write_checkpoint = killed\n"
    )
    process = start(*job, "--iterations", 150, before=kill)
    process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL
    (temporary,) = (path for path in tmp_path.iterdir() if path.name != "c")
    assert temporary.name.startswith(".c-")
    assert run(*job, "--iterations", 150, "--resume").code == 0
    assert names(tmp_path) == ["out.png"]
    assert run(*paint, "--iterations", 150, "-o", tmp_path / "whole.png").code == 0
    assert (tmp_path / "out.png").read_bytes() == (tmp_path / "whole.png").read_bytes()


@pytest.mark.skipif(os.name != "posix", reason="POSIX signals")
def test_ctrl_c_keeps_the_checkpoint_and_resume_goes_on(run, start, job, paint, tmp_path):
    long = [*job, "--iterations", 150]
    err = interrupted(start, *long)
    assert err.splitlines()[-1].endswith("and --resume goes on from the checkpoint")
    assert read_image(tmp_path / "out.png").size == (24, 24)
    assert names(tmp_path) == ["c", "out.png"]
    # The half that was written already may be replaced by the whole.
    resumed = run(*long, "--resume")
    assert resumed.code == 0
    assert "impasto: on from iteration " in resumed.err
    assert "impasto: note: resumed after " in resumed.err
    assert names(tmp_path) == ["out.png"]
    whole = tmp_path / "whole.png"
    assert run(*paint, "--iterations", 150, "-o", whole).code == 0
    assert (tmp_path / "out.png").read_bytes() == whole.read_bytes()


def test_a_finished_job_leaves_no_checkpoint_and_is_not_painted_again(run, job, tmp_path):
    first = run(*job, "--resume", "--iterations", 60)
    assert first.code == 0
    assert "impasto: no checkpoint yet: from the beginning" in first.err
    assert names(tmp_path) == ["out.png"]
    again = run(*job, "--resume", "--iterations", 60)
    assert again.code == 2
    assert "out.png' exists" in again.error


@pytest.mark.skipif(os.name != "posix", reason="POSIX signals")
def test_snapshots_go_on_after_the_last_one(run, start, job, tmp_path):
    # Endless until it is stopped, and then as far as the last snapshot needs.
    err = interrupted(start, *job, "--iterations", 400, "--save-every", 25)
    assert "goes on" in err
    before = {path.name: path.stat().st_mtime_ns for path in tmp_path.glob("out-*.png")}
    resumed = run(*job, "--iterations", 400, "--save-every", 25, "--resume")
    assert resumed.code == 0
    iteration = int(resumed.err.split("on from iteration ")[1].split()[0])
    after = {path.name: path.stat().st_mtime_ns for path in tmp_path.glob("out-*.png")}
    assert set(after) >= set(before)
    kept = [name for name in before if int(name[4:-4]) <= iteration]
    assert all(after[name] == before[name] for name in kept)


@pytest.fixture
def nothing_slow(monkeypatch):
    def slow(*_, **__):
        raise AssertionError("a stylizer was made")

    monkeypatch.setattr("impasto.runtime.stylizer.Stylizer.__init__", slow)


@pytest.mark.parametrize("place", ["no/folder/c", "folder", "null"])
def test_a_place_that_cannot_be_written_is_refused_first(run, paint, tmp_path, nothing_slow, place):
    (tmp_path / "folder").mkdir()
    (tmp_path / "null").symlink_to(os.devnull)
    refused = run(*paint, "-o", tmp_path / "out.png", "--checkpoint", tmp_path / place)
    assert refused.code == 2
    assert str(tmp_path / place) in refused.error


def test_an_existing_checkpoint_is_not_painted_over(run, job, tmp_path, nothing_slow):
    (tmp_path / "c").write_bytes(b"hours of work")
    refused = run(*job, "--force")
    assert refused.code == 2
    assert "go on from it with resume (--resume), or remove it" in refused.error
    assert (tmp_path / "c").read_bytes() == b"hours of work"


def test_resume_needs_a_file(run, paint, tmp_path, nothing_slow):
    refused = run(*paint, "-o", tmp_path / "out.png", "--resume")
    assert refused.code == 2
    assert "--resume needs the file to go on from" in refused.error


@pytest.mark.skipif(os.name != "posix", reason="POSIX signals")
def test_a_checkpoint_that_does_not_fit_is_named_and_kept(run, start, job, pictures, tmp_path):
    interrupted(start, *job, "--iterations", 400)
    content = (tmp_path / "c").read_bytes()
    for change, told in (
        (["--seed", 5], "seed is 0 there and 5 here"),
        (["--size", 25], "sizing.pixels is 24 there and 25 here"),
        (["--threads", 7], "and 7 here"),
        (["--style-weight", 3], "preset.objective.style."),
    ):
        refused = run(*job, "--iterations", 400, "--resume", *change)
        assert refused.code == 5
        assert told in refused.error
    swapped = ["stylize", pictures.style, pictures.content, *job[3:], "--iterations", 400, "--resume"]
    assert "content differs, style differs" in run(*swapped).error
    assert (tmp_path / "c").read_bytes() == content
    (tmp_path / "c").write_bytes(content[:-1])
    refused = run(*job, "--iterations", 400, "--resume")
    assert refused.code == 5
    assert "is damaged" in refused.error
    assert (tmp_path / "c").read_bytes() == content[:-1]


def test_a_full_disk_is_a_warning_and_the_picture_is_painted(run, start, paint, tmp_path):
    pytest.importorskip("resource")
    assert run(*paint, "--iterations", 40, "-o", tmp_path / "whole.png").code == 0  # also warms the cache
    # The picture fits, a checkpoint does not.
    limit = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (12000, 12000))"
    keep = ["--checkpoint", tmp_path / "c", "--checkpoint-every", 0]
    process = start(*paint, "--iterations", 40, "-o", tmp_path / "out.png", *keep, before=limit)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    assert err.count("warning: painting goes on without a new checkpoint: no space left") == 1
    assert (tmp_path / "out.png").read_bytes() == (tmp_path / "whole.png").read_bytes()
    assert names(tmp_path) == ["out.png", "whole.png"]
