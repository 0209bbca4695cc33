"""Who paints: Impasto by each backend and plan for the CPU, PyTorch in the ways it is used, and other packages."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path

from benchmarks.task import Run, Task, Worker, run
from impasto.errors import LimitError
from impasto.optimize.openvino import native_precisions
from impasto.runtime.backends.protocol import Plan


@dataclass(frozen=True)
class Program:
    """A worker, and what it is told of backend, precision and plan; ``package`` is what it cannot do without."""

    worker: Worker
    backend: str
    precision: str = "fp32"
    plan: Plan = "fused"
    package: str = "torch"

    def task(self, task: Task) -> Task:
        """Return a task as this program is to do it."""
        return replace(task, backend=self.backend, precision=self.precision, plan=self.plan)

    def missing(self) -> str | None:
        """Return why it cannot run here, None if it can."""
        if not find_spec(self.package):
            return f"package {self.package} is not installed"
        if self.precision not in native_precisions():
            return f"this CPU does not multiply {self.precision}"
        if self.backend == "torch.compile" and compiler() is None:
            return "there is no C++ compiler"
        return None


TORCH, TORCH_BF16 = "PyTorch, fp32", "PyTorch, bf16, channels_last"
COMPILED, TUTORIAL = "PyTorch, fp32, torch.compile", "PyTorch, fp32, as in its tutorial"
NEURAL_STYLE, PASTICHE = "neural-style", "pastiche"
ORT, OPENVINO, OPENVINO_BF16 = "Impasto, onnxruntime fp32", "Impasto, openvino fp32", "Impasto, openvino bf16"

PROGRAMS: Mapping[str, Program] = {
    TORCH: Program("plain_torch", "torch"),
    TORCH_BF16: Program("plain_torch", "torch", "bf16"),
    COMPILED: Program("plain_torch", "torch.compile"),
    TUTORIAL: Program("tutorial", "torch"),
    NEURAL_STYLE: Program("neural_style", "torch", package="neural_style"),
    PASTICHE: Program("pastiche", "torch", package="pastiche"),
    "Impasto, torch fp32": Program("stylizer", "torch"),
    ORT: Program("stylizer", "onnxruntime", package="onnxruntime"),
    f"{ORT}, sliced": Program("stylizer", "onnxruntime", plan="sliced", package="onnxruntime"),
    f"{ORT}, tiled": Program("stylizer", "onnxruntime", plan="tiled", package="onnxruntime"),
    OPENVINO: Program("stylizer", "openvino", package="openvino"),
    f"{OPENVINO}, tiled": Program("stylizer", "openvino", plan="tiled", package="openvino"),
    OPENVINO_BF16: Program("stylizer", "openvino", "bf16", package="openvino"),
    f"{OPENVINO_BF16}, tiled": Program("stylizer", "openvino", "bf16", "tiled", package="openvino"),
}
"""Every program that paints `johnson` on a CPU; the first is what others are compared with."""

MAIN = (TORCH, TORCH_BF16, ORT, OPENVINO, OPENVINO_BF16)
"""The ones that bounds are about."""


def here(names: Sequence[str]) -> tuple[list[str], str]:
    """Return those that can run here, and a sentence that says why others cannot, empty if all can."""
    missing = {name: PROGRAMS[name].missing() for name in names}
    left_out = "; ".join(f"{name} ({why})" for name, why in missing.items() if why is not None)
    return [name for name, why in missing.items() if why is None], f"Left out: {left_out}." if left_out else ""


def fastest() -> str:
    """Return what `auto` stands for on this CPU, as the bounds are about it."""
    for name in (OPENVINO_BF16, OPENVINO):
        if PROGRAMS[name].missing() is None:
            return name
    return ORT


def compiler() -> str | None:
    """Return the C++ compiler that ``torch.compile`` would use, None if there is none."""
    return next(filter(None, map(shutil.which, (os.environ.get("CXX", "g++"), "g++", "clang++"))), None)


def in_turns(task: Task, rounds: Mapping[str, int], before: Callable[[], None] = lambda: None) -> dict[str, list[Run]]:
    """Run a task by programs in turns, each in its first ``rounds``; ``before`` is called before each round.

    A program for which there is not enough memory has no runs.
    """
    runs: dict[str, list[Run]] = {name: [] for name in rounds}
    left = dict(rounds)
    with tempfile.TemporaryDirectory() as cache:
        for number in range(max(rounds.values())):
            before()
            for name, program in ((name, PROGRAMS[name]) for name in rounds):
                if number < left[name]:
                    try:
                        runs[name].append(run(program.worker, program.task(task), Path(cache)))
                    except LimitError:
                        left[name] = 0
    return runs
