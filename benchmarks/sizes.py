"""What an evaluation costs, and how much memory it takes, by the size of the picture and by who paints."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from statistics import median

from benchmarks.machine import Machine
from benchmarks.pictures import pairs
from benchmarks.programs import MAIN, ORT, TORCH, fastest, here, in_turns
from benchmarks.report import Section, Table, spread
from benchmarks.task import Run, Task
from impasto.runtime.recipes import JOHNSON

_WARM_UP = 1
"""Less than elsewhere: the large ones take long, and what is touched the first time weighs less in them."""

Measured = Mapping[int, Mapping[str, Sequence[Run]]]
"""Runs by size and program; none where memory did not suffice."""


def section(_machine: Machine, quick: bool) -> Section:
    """Measure and report."""
    tiled = f"{fastest()}, tiled"
    every, left_out = here((*MAIN, tiled))
    few = [name for name in every if name in (TORCH, ORT, fastest(), tiled)]
    plan: Mapping[int, tuple[Sequence[str], int, int]] = (
        {64: (every, 1, 3), 96: (few, 1, 3)} if quick else {256: (every, 2, 7), 1024: (every, 1, 4), 2048: (few, 1, 2)}
    )
    found = {}
    for size, (names, rounds, evaluations) in plan.items():
        # As many iterations as there are evaluations: room is not to be left for a history that never comes.
        task = Task(JOHNSON.with_iterations(evaluations), "random", *pairs()[0], size, evaluations)
        found[size] = in_turns(task, dict.fromkeys(names, rounds))
    counted = ", ".join(
        f"{n - _WARM_UP} at {size} px" + (f" in each of {rounds} rounds" if rounds > 1 else "")
        for size, (_, rounds, n) in plan.items()
    )
    return Section(
        title="By size",
        body=(
            f"An evaluation of `johnson`, as under *One evaluation*, after the first: the median of {counted}. The "
            "largest size is for the few that matter most.",
            sizes_table(
                found, lambda runs: spread([1e3 * median(run.seconds[_WARM_UP:]) for run in runs], ".0f"), "ms"
            ),
            "Peak memory of the whole process, GB.",
            sizes_table(found, lambda runs: f"{max(run.peak_bytes for run in runs) / 1e9:.2f}", "GB"),
            *([left_out] if left_out else []),
        ),
        bounds=(),
        data={
            str(size): {name: [asdict(run) for run in runs] for name, runs in by_name.items()}
            for size, by_name in found.items()
        },
    )


def sizes_table(found: Measured, cell: Callable[[Sequence[Run]], str], unit: str) -> Table:
    """Return a row for each program and a column for each size; a program that was not run has a dash."""
    names = dict.fromkeys(name for by_name in found.values() for name in by_name)

    def of(name: str, size: int) -> str:
        runs = found[size].get(name)
        return "—" if runs is None else cell(runs) if runs else "not enough memory"

    rows = tuple((name, *(of(name, size) for size in found)) for name in names)
    return Table((unit, *(f"{size}×{size}" for size in found)), rows)
