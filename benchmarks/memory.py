"""How well memory is foretold: the forecast beside the peak that a fresh process then has."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from importlib import import_module
from importlib.util import find_spec

import numpy as np

from benchmarks.machine import Machine
from benchmarks.report import Bound, Section, Table
from benchmarks.task import ROOT, peak_bytes
from impasto.errors import ImpastoError
from impasto.runtime.backends.protocol import Plan

_MOST_ERROR = 0.15
_EVALUATIONS = 3
_PACKAGES = {"onnxruntime": "onnxruntime", "openvino": "openvino", "torch": "torch"}


@dataclass(frozen=True)
class Case:
    """A painting of a few evaluations, side × side; ``tile_memory`` is the plan ``tiled``'s, in bytes."""

    backend: str
    precision: str
    plan: Plan
    preset: str
    side: int
    tile_memory: int | None = None

    @property
    def name(self) -> str:
        """What the table calls it."""
        return f"{self.backend} {self.precision}, {self.plan}, {self.preset}"


@dataclass(frozen=True)
class Found:
    """Bytes above the interpreter's: what was foretold, and the peak."""

    predicted: int
    measured: int

    @property
    def error(self) -> float:
        """By which part the forecast exceeds the peak."""
        return self.predicted / self.measured - 1


def cases(quick: bool) -> list[Case]:
    """Return the cases that can run here."""
    from impasto.optimize.openvino import native_precisions

    if quick:
        return [Case("onnxruntime", "fp32", "fused", "pytorch", 256)]
    native = native_precisions()
    found = []
    for preset, sides in (
        ("johnson", (256, 512, 1024)),
        ("pytorch", (512,)),
        ("gatys", (512,)),
        ("filterbank", (512, 1024)),
    ):
        for side in sides:
            found += [Case(backend, "fp32", "fused", preset, side) for backend in _PACKAGES]
            found.append(Case("openvino", "bf16", "fused", preset, side))
    found += [Case(backend, "fp32", "sliced", "johnson", 512) for backend in ("onnxruntime", "openvino")]
    found.append(Case("openvino", "bf16", "fused", "johnson", 2048))
    found.append(Case("onnxruntime", "fp32", "tiled", "johnson", 512, 1 << 30))
    found += [Case("onnxruntime", "fp32", "tiled", "filterbank", side, 1 << 29) for side in (1024, 4096)]
    found.append(Case("openvino", "bf16", "tiled", "johnson", 2048, 1 << 30))
    return [case for case in found if find_spec(_PACKAGES[case.backend]) and case.precision in native]


def measure(case: Case, cache: str) -> Found:
    """Paint a case in a process of its own, with its engines in ``cache``; raise `ImpastoError` when that fails."""
    process = subprocess.run(
        [sys.executable, "-m", "benchmarks.memory", json.dumps(asdict(case))],
        cwd=ROOT,
        env={**os.environ, "IMPASTO_CACHE": cache},
        capture_output=True,
        text=True,
    )
    if process.returncode:
        last = (process.stderr.strip().splitlines() or ["no message"])[-1]
        raise ImpastoError(f"benchmark worker memory ended with {process.returncode}: {last}")
    return Found(**json.loads(process.stdout))


def paint(case: Case) -> Found:
    """Paint a case in this process, which must have done nothing else."""
    from impasto.models.locate import find_weights
    from impasto.runtime.forecast import forecast
    from impasto.runtime.limits import Limits
    from impasto.runtime.painting import Painting
    from impasto.runtime.recipes import FILTERBANK, find_preset
    from impasto.runtime.stylizer import Stylizer

    import_module(_PACKAGES[case.backend])
    if case.backend == "torch":
        import_module("impasto.runtime.backends.torch")
    imports = peak_bytes()
    preset = replace(find_preset(case.preset), stages=()).with_solver("adam").with_iterations(_EVALUATIONS - 1)
    weights = find_weights(FILTERBANK.weights if case.preset == FILTERBANK.name else "random")
    pictures = np.random.RandomState(0).randint(0, 256, (2, case.side, case.side, 3), np.uint8)
    with Stylizer(
        preset,
        weights=weights,
        backend=case.backend,
        plan=case.plan,
        precision=case.precision,
        limits=Limits(memory=None),
    ) as stylizer:
        job = replace(stylizer.job(*pictures, size=case.side, scales=1), tile_memory=case.tile_memory)
        for _ in Painting(job, stylizer.backend):
            pass
        measured = peak_bytes() - imports
        found = forecast(job, stylizer.backend)
    return Found(found.memory_bytes, measured)


def section(_machine: Machine, quick: bool) -> Section:
    """Measure and report."""
    with tempfile.TemporaryDirectory() as cache:
        found = [(case, measure(case, cache)) for case in cases(quick)]
    worst = max(abs(each.error) for _, each in found)
    return Section(
        title="Memory foretold",
        body=(
            f"Peak resident size of fresh processes above what they have once everything is imported, {_EVALUATIONS} "
            "evaluations by Adam, weights drawn in the process, and what `impasto plan` says.",
            memory_table(found),
        ),
        bounds=(Bound("Memory foretold, largest error", f"≤ {_MOST_ERROR:.0%}", f"{worst:.0%}", worst <= _MOST_ERROR),),
        data={f"{case.name}, {case.side}": {**asdict(case), **asdict(each)} for case, each in found},
    )


def memory_table(found: Sequence[tuple[Case, Found]]) -> Table:
    """Return a row for each case."""
    rows = [
        (case.name, f"{case.side}", f"{each.predicted / 1e6:.0f}", f"{each.measured / 1e6:.0f}", f"{each.error:+.0%}")
        for case, each in found
    ]
    return Table(("what", "px", "foretold, MB", "measured, MB", "error"), tuple(rows))


if __name__ == "__main__":
    json.dump(asdict(paint(Case(**json.loads(sys.argv[1])))), sys.stdout)
