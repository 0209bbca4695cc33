"""What holds for every command: help, version, start-up, usage errors, defects."""

from __future__ import annotations

import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

import impasto
from impasto.cli import main
from impasto.cli.options import DEFAULT_PRESET
from impasto.export.forward import POOLINGS
from impasto.runtime import recipes
from impasto.runtime.backends.protocol import PLANS
from impasto.runtime.backends.select import BACKENDS, PRECISIONS
from impasto.runtime.limits import Limits
from impasto.runtime.presets import INITS
from impasto.runtime.solvers import SOLVERS

COMMANDS = [
    ["stylize"],
    ["evaluate"],
    ["export"],
    ["verify"],
    ["presets"],
    ["presets", "list"],
    ["presets", "show"],
    ["weights"],
    ["weights", "list"],
    ["weights", "fetch"],
    ["weights", "convert"],
    ["weights", "show"],
    ["doctor"],
    ["cache"],
    ["cache", "show"],
    ["cache", "clear"],
    ["demo"],
]


@pytest.mark.parametrize("command", [[], *COMMANDS], ids=" ".join)
def test_help_goes_to_standard_output(run, command):
    for option in ("--help", "-h"):
        told = run(*command, option)
        assert (told.code, told.err) == (0, "")
        assert f"Usage: {' '.join(['impasto', *command])}" in told.out


def test_no_command_prints_the_help_as_a_usage_error(run):
    told = run()
    assert told.code == 2
    assert all(command[0] in told.out for command in COMMANDS)


def test_version(run):
    told = run("--version")
    assert (told.code, told.out) == (0, f"impasto {impasto.__version__}\n")


def test_help_names_what_the_library_knows(run):
    text = run("stylize", "--help").out
    for choices in (PLANS, PRECISIONS, POOLINGS, (*INITS, "PATH")):
        assert "|".join(choices) in text
    assert {"auto", *BACKENDS} <= set(re.findall(r"[a-z][a-z-]+", text))
    listed = next(word for word in text.split() if "torch-lbfgs" in word)
    assert set(listed.split("|")) == set(SOLVERS)
    assert all("--" + name.replace("_", "-") in text for name in Limits().to_json())
    assert DEFAULT_PRESET in recipes.PRESETS


@pytest.mark.parametrize("args", ["--help", "--version", "stylize --help", "weights --help"])
def test_help_imports_nothing_heavy(args):
    # This is what makes `impasto --help` quick; a wall-clock bound would depend on the machine.
    script = (
        "import sys; from impasto.cli import main; main(sys.argv[1:]);"
        "heavy = {'numpy', 'onnx', 'onnxruntime', 'torch', 'scipy', 'PIL', 'filelock', 'platformdirs'};"
        "print(*heavy & set(sys.modules), file=sys.stderr)"
    )
    root = Path(impasto.__file__).parents[1]
    told = subprocess.run(
        [sys.executable, "-c", script, *args.split()], capture_output=True, text=True, check=True, cwd=root
    )
    assert told.stderr.split() == []


def test_it_runs_as_a_module():
    root = Path(impasto.__file__).parents[1]
    command = [sys.executable, "-m", "impasto", "presets", "show", "gatis"]
    told = subprocess.run(command, capture_output=True, text=True, cwd=root)
    assert told.returncode == 2
    assert told.stderr == "impasto: error: unknown preset 'gatis': did you mean gatys?\n"


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["stylise"], ["stylise", "impasto --help"]),
        (["stylize", "a.png"], ["STYLE", "impasto stylize --help"]),
        (["stylize", "a.png", "b.png"], ["--output"]),
        (["stylize", "a.png", "b.png", "-o", "c.png", "--sise", "3"], ["--sise", "--size"]),
        (["stylize", "a.png", "b.png", "-o", "c.png", "--size", "0"], ["--size"]),
        (["stylize", "a.png", "b.png", "-o", "c.png", "--quality", "101"], ["--quality"]),
        (["stylize", "a.png", "b.png", "-o", "c.png", "--max-pixels", "few"], ["--max-pixels", "few", "none"]),
        (["stylize", "a.png", "b.png", "-o", "c.png", "--max-pixels", "-3"], ["--max-pixels", "-3"]),
        (["presets"], ["command", "impasto presets --help"]),
        (["weights", "show"], ["NAME"]),
    ],
    ids=lambda value: " ".join(value),
)
def test_usage_errors_are_one_line_and_exit_with_2(run, args, words):
    told = run(*args)
    assert (told.code, told.out) == (2, "")
    assert len(told.err.splitlines()) == 1
    assert all(word in told.error for word in words)


def test_a_defect_is_one_line_without_a_traceback(run, monkeypatch):
    def broken(name):
        raise ZeroDivisionError("first\nsecond")

    monkeypatch.setattr(recipes, "find_preset", broken)
    told = run("presets", "show", "gatys")
    assert (told.code, told.out) == (1, "")
    assert len(told.err.splitlines()) == 1
    assert "ZeroDivisionError: first second" in told.error
    assert "report" in told.error
    monkeypatch.setenv("IMPASTO_DEBUG", "1")
    with pytest.raises(ZeroDivisionError):
        main(["presets", "show", "gatys"])


def test_running_out_of_memory_is_a_limit_with_a_hint(run, monkeypatch, pictures, tmp_path):
    def no_memory(*args, **kwargs):
        raise MemoryError

    monkeypatch.setattr("impasto.runtime.stylizer.read_image", no_memory)
    told = run(*pictures.job, "-o", tmp_path / "out.png")
    assert told.code == 4
    assert "--size" in told.error
    assert list(tmp_path.iterdir()) == []


def test_a_reader_that_leaves_early_is_no_error(start):
    # The reader is gone before the first byte, as when `impasto presets list | true` loses the race.
    process = start("presets", "list")
    process.stdout.close()
    assert process.stderr.read() == ""
    assert process.wait() == 0
    process.stderr.close()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_standard_output_without_space_is_an_output_error(start):
    with Path("/dev/full").open("wb") as full:
        process = start("presets", "list", stdout=full.fileno())
        _, err = process.communicate()
    assert process.returncode == 2
    assert err.startswith("impasto: error: standard output cannot be written")
    assert len(err.splitlines()) == 1


def test_the_entry_point_is_main():
    try:
        points = metadata.distribution("impasto").entry_points
    except metadata.PackageNotFoundError:
        pytest.skip("the package is not installed")
    (point,) = (point for point in points if point.group == "console_scripts")
    assert (point.name, point.load()) == ("impasto", main)
