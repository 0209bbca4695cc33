"""What L-BFGS takes beside the evaluations, from the measurement in `solvers`."""

from __future__ import annotations

from benchmarks.machine import Machine
from benchmarks.report import Section, Table
from benchmarks.solvers import COUNTED, HISTORIES, SIZE, ours, percentiles, torchs


def section(_machine: Machine, quick: bool) -> Section:
    """Measure and report."""
    histories = HISTORIES[:1] if quick else HISTORIES
    found = {history: (percentiles(ours, history), percentiles(torchs, history)) for history in histories}
    rows = tuple(
        (str(history), f"{mine[1] / other[1]:.2f}", *(f"{p50:.1f} ({p20:.1f}–{p80:.1f})" for p20, p50, p80 in pair))
        for history, pair in found.items()
        for mine, other in [pair]
    )
    return Section(
        title="The solver's own cost",
        body=(
            f"Milliseconds from the end of one evaluation to the start of the next with the history full, for "
            f"{SIZE:,} variables (512×512 px): median of {COUNTED}, with the 20th and 80th percentile.".replace(
                ",", " ", 1
            ),
            Table(("history", "Impasto over torch", "Impasto, ms", "torch, ms"), rows),
        ),
        bounds=(),
        data={
            str(history): {"impasto_ms": list(mine), "torch_ms": list(other)}
            for history, (mine, other) in found.items()
        },
    )
