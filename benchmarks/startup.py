"""How long it takes to start: the command's help, the imports, and each program's way to the first evaluation."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median

from benchmarks.machine import Machine
from benchmarks.pictures import pairs
from benchmarks.programs import (
    COMPILED,
    NEURAL_STYLE,
    OPENVINO,
    OPENVINO_BF16,
    ORT,
    PASTICHE,
    PROGRAMS,
    TORCH,
    TORCH_BF16,
    TUTORIAL,
    here,
)
from benchmarks.report import Bound, Section, Table, spread
from benchmarks.task import ROOT, Task, run
from impasto.models.random_weights import random_weights
from impasto.models.weights import save_weights
from impasto.runtime.recipes import JOHNSON

_MOST_SECONDS = 0.4
HELP = "impasto --help"
AGAIN = ", engines in the cache"
"""Of Impasto's: what they build at the first start, and ``torch.compile`` its code, is there at the next."""

_FIRST = (TORCH, TORCH_BF16, COMPILED, TUTORIAL, NEURAL_STYLE, PASTICHE, ORT, OPENVINO, OPENVINO_BF16)


def command_seconds(commands: Mapping[str, Sequence[str]], repeats: int) -> dict[str, list[float]]:
    """Return the wall times of commands, which take turns."""
    seconds: dict[str, list[float]] = {name: [] for name in commands}
    for _ in range(repeats):
        for name, command in commands.items():
            start = time.perf_counter()
            subprocess.run(command, check=True, cwd=ROOT, stdout=subprocess.DEVNULL)
            seconds[name].append(time.perf_counter() - start)
    return seconds


def commands() -> dict[str, list[str]]:
    """Return what is timed: an empty program, imports, and the command's help."""
    script = Path(sys.executable).with_name("impasto")
    # In a checkout that is not installed there is no script.
    command = [str(script)] if script.exists() else [sys.executable, "-m", "impasto"]
    return {
        "python, nothing else": [sys.executable, "-c", "pass"],
        "import impasto": [sys.executable, "-c", "import impasto"],
        "from impasto import Stylizer": [sys.executable, "-c", "from impasto import Stylizer"],
        HELP: [*command, "--help"],
    }


def first_evaluation_seconds(task: Task, names: Sequence[str], rounds: int) -> dict[str, list[float]]:
    """Return the wall times of processes that evaluate the task once, from their start to their end.

    Programs start with an empty cache, Impasto's then once more.
    """
    once = replace(task, evaluations=1)
    again = {name + AGAIN: name for name in names if PROGRAMS[name].worker == "stylizer"}
    order = [each for name in names for each in (name, name + AGAIN) if each == name or each in again]
    seconds: dict[str, list[float]] = {name: [] for name in order}
    for _ in range(rounds):
        with tempfile.TemporaryDirectory() as cache:
            for name in order:
                program = PROGRAMS[again.get(name, name)]
                start = time.perf_counter()
                run(program.worker, program.task(once), Path(cache))
                seconds[name].append(time.perf_counter() - start)
    return seconds


def section(_machine: Machine, quick: bool) -> Section:
    """Measure and report."""
    repeats, rounds, size = (2, 1, 64) if quick else (10, 2, 512)
    names, left_out = here(_FIRST)
    plain = command_seconds(commands(), repeats)
    with tempfile.TemporaryDirectory() as folder:
        weights = Path(folder) / "vgg19.safetensors"
        save_weights(random_weights("vgg19", 0), weights)
        first = first_evaluation_seconds(Task(JOHNSON, str(weights), *pairs()[0], size, 1), names, rounds)
    of_help = plain[HELP]
    return Section(
        title="Starting",
        body=(
            f"Wall time of whole processes, median of {repeats}.",
            seconds_table("command", plain),
            f"A process that reads full VGG-19 weights and two pictures, measures the targets, and evaluates `johnson` "
            f"at {size}×{size} px once (the packages: their own recipes); median of {rounds}.",
            seconds_table("first evaluation", first),
            *([left_out] if left_out else []),
        ),
        bounds=(Bound(f"`{HELP}`", f"≤ {_MOST_SECONDS} s", f"{spread(of_help)} s", median(of_help) <= _MOST_SECONDS),),
        data={"commands": plain, "first_evaluation": {"size": size, **first}},
    )


def seconds_table(what: str, seconds: Mapping[str, Sequence[float]]) -> Table:
    """Return a row for each name."""
    return Table((what, "s"), tuple((name, spread(values)) for name, values in seconds.items()))
