"""What L-BFGS takes beside the evaluations, from the measurement in `solvers`."""

from __future__ import annotations

from benchmarks import solvers
from benchmarks.machine import Machine
from benchmarks.report import Section, Table


def section(_machine: Machine, quick: bool) -> Section:
    """Measure and report."""
    histories = solvers.HISTORIES[:1] if quick else solvers.HISTORIES
    rows, data = [], {}
    for history in histories:
        ours, torchs = (solvers.percentiles(run, history) for run in (solvers.ours, solvers.torchs))
        cells = (f"{p50:.1f} ({p20:.1f}–{p80:.1f})" for p20, p50, p80 in (ours, torchs))
        rows.append((str(history), f"{ours[1] / torchs[1]:.2f}", *cells))
        data[str(history)] = {"impasto_ms": list(ours), "torch_ms": list(torchs)}
    return Section(
        title="The solver's own cost",
        body=(
            "Milliseconds from the end of one evaluation to the start of the next with the history full, for "
            f"{solvers.SIZE} variables (a picture of 512×512 px has 786432): median of {solvers.COUNTED} iterations, "
            "with the 20th and 80th percentile.",
            Table(("history", "Impasto over torch", "Impasto, ms", "torch, ms"), tuple(rows)),
        ),
        bounds=(),
        data=data,
    )
