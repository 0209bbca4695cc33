"""A painting to be measured: what a worker process is asked, what it answers, and how it is run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from impasto.errors import ImpastoError
from impasto.runtime.backends.protocol import Plan
from impasto.runtime.presets import Preset
from impasto.runtime.result import peak_memory

ROOT = Path(__file__).parents[1]

Worker = Literal["stylizer", "plain_torch"]


@dataclass(frozen=True)
class Task:
    """One painting: ``evaluations`` of a preset's objective at ``size`` × ``size`` pixels, from its own start.

    ``content`` and ``style`` are names that `benchmarks.pictures.square` knows, ``weights`` one that `find_weights`
    knows. ``iterate``, if given, is the file that gets the best iterate, (1, 3, size, size) float32 as ``.npy``.
    ``backend`` and ``precision`` are the stylizer's; plain PyTorch takes the precision alone, fp32 or bf16.
    """

    preset: Preset
    weights: str
    content: str
    style: str
    size: int
    evaluations: int
    plan: Plan = "fused"
    iterate: str | None = None
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
    ``imports_bytes`` what it was once everything was imported and nothing done.
    """

    seconds: list[float]
    losses: list[float]
    peak_bytes: int
    imports_bytes: int


def run(worker: Worker, task: Task, cache: Path) -> Run:
    """Run a task in a process of its own, with its engines in ``cache``.

    Raises `ImpastoError` when the process fails.
    """
    process = subprocess.run(
        [sys.executable, "-m", f"benchmarks.{worker}", task.to_json()],
        cwd=ROOT,
        env={**os.environ, "IMPASTO_CACHE": str(cache)},
        capture_output=True,
        text=True,
    )
    if process.returncode:
        last = (process.stderr.strip().splitlines() or ["no message"])[-1]
        raise ImpastoError(f"benchmark worker {worker} ended with {process.returncode}: {last}")
    return Run(**json.loads(process.stdout))


def answer(paint: Callable[[Task], Run]) -> None:
    """Do what the command line asks and print the answer: the main function of a worker."""
    json.dump(asdict(paint(Task.from_json(sys.argv[1]))), sys.stdout)


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
