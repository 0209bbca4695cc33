"""A picture of 8192 × 8192 by the default recipe in 3 GB: read, painted and written by a fresh process.

Not among the benchmarks that are run where none is named: it takes half an hour and more.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib import import_module
from itertools import pairwise
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.machine import Machine
from benchmarks.report import Bound, Section, Table
from benchmarks.task import ROOT, peak_bytes
from impasto.errors import ImpastoError

EVALUATIONS = 3
LIMIT = 3_000_000_000
"""Bytes above the interpreter's that 8192 × 8192 may take."""


@dataclass(frozen=True)
class Case:
    """A painting, side × side, in at most ``limit`` bytes above the interpreter's."""

    side: int
    limit: int


@dataclass(frozen=True)
class Found:
    """Bytes above the interpreter's, foretold and at the peak; seconds of all, and of an evaluation after the first."""

    predicted: int
    measured: int
    seconds: float
    evaluation: float
    evaluations: int
    notes: Sequence[str]


def cases(quick: bool) -> list[Case]:
    """Return the cases; the small ones' limits are in proportion, above 0.35 GB that all sizes take."""
    if quick:
        return [Case(512, 350_000_000)]
    return [Case(side, 350_000_000 + (LIMIT - 350_000_000) * side**2 // 8192**2) for side in (2048, 4096, 8192)]


def draw(path: Path, side: int, seed: int) -> None:
    """Write a picture of coloured noise, from coarse to fine, to a file."""
    random, size = np.random.RandomState(seed), (side, side)
    coarse = Image.fromarray(random.randint(0, 256, (-(-side // 64), -(-side // 64), 3), np.uint8))
    fine = Image.fromarray(random.randint(0, 256, (-(-side // 4), -(-side // 4), 3), np.uint8))
    Image.blend(coarse.resize(size), fine.resize(size), 0.3).save(path, compress_level=1)


def measure(case: Case, folder: Path) -> Found:
    """Paint a case in a process of its own; raise `ImpastoError` when that fails."""
    for seed, name in enumerate(("content", "style")):
        draw(folder / f"{name}.png", case.side, seed)
    process = subprocess.run(
        [sys.executable, "-m", "benchmarks.huge", json.dumps(asdict(case)), str(folder)],
        cwd=ROOT,
        # A cache without weights, as a fresh installation has it.
        env={**os.environ, "IMPASTO_CACHE": str(folder / "cache")},
        capture_output=True,
        text=True,
    )
    if process.returncode:
        last = (process.stderr.strip().splitlines() or ["no message"])[-1]
        raise ImpastoError(f"benchmark worker huge ended with {process.returncode}: {last}")
    return Found(**json.loads(process.stdout))


def paint(case: Case, folder: Path) -> Found:
    """Paint a case in this process, which must have done nothing else."""
    from impasto.runtime.default import choose
    from impasto.runtime.limits import Limits
    from impasto.runtime.stylizer import Stylizer

    import_module("onnxruntime")
    imports = peak_bytes()
    recipe, _ = choose("impasto")
    preset = recipe.with_iterations(EVALUATIONS - 1)
    with Stylizer(preset, backend="onnxruntime", limits=Limits(memory=case.limit)) as stylizer:
        pictures = folder / "content.png", folder / "style.png"
        prospect = stylizer.foresee(*pictures, size=case.side, scales=1, timed=False)
        painting = stylizer.begin(*pictures, size=case.side, scales=1)
        for _ in painting:
            pass
        result = painting.result()
        result.save(folder / "result.tif", overwrite=True)
    assert prospect.painted is not None
    times = [after.seconds - before.seconds for before, after in pairwise(result.trace)]
    return Found(
        prospect.painted.memory_bytes,
        peak_bytes() - imports,
        result.seconds,
        float(np.median(times)),
        len(result.trace),
        result.notes,
    )


def section(_machine: Machine, quick: bool) -> Section:
    """Measure and report."""
    found = []
    for case in cases(quick):
        with tempfile.TemporaryDirectory() as folder:
            found.append((case, measure(case, Path(folder))))
    return Section(
        title="Large pictures",
        body=(
            f"The default recipe without weights at one scale, {EVALUATIONS} evaluations or, where its line search "
            "makes one more, so many; pictures from files, the result to a TIFF file; peak resident size of fresh "
            "processes above what they have once everything is imported, within a `--memory-limit`.",
            table(found),
        ),
        bounds=tuple(
            Bound(
                f"{case.side} × {case.side} px, peak memory",
                f"≤ {case.limit / 1e9:.2f} GB",
                f"{each.measured / 1e9:.2f} GB",
                each.measured <= case.limit,
            )
            for case, each in found
        ),
        data={f"{case.side}": {**asdict(case), **asdict(each)} for case, each in found},
    )


def table(found: Sequence[tuple[Case, Found]]) -> Table:
    """Return a row for each case."""
    rows = [
        (
            f"{case.side}",
            f"{case.limit / 1e6:.0f}",
            f"{each.predicted / 1e6:.0f}",
            f"{each.measured / 1e6:.0f}",
            f"{each.evaluation:.0f}",
            f"{each.seconds:.0f}",
        )
        for case, each in found
    ]
    return Table(("px", "limit, MB", "foretold, MB", "measured, MB", "s an evaluation", "s in all"), tuple(rows))


if __name__ == "__main__":
    json.dump(asdict(paint(Case(**json.loads(sys.argv[1])), Path(sys.argv[2]))), sys.stdout)
