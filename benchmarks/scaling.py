"""What a pixel costs in pictures of different sizes."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median

from benchmarks.evaluation import WARM_UP
from benchmarks.machine import Machine
from benchmarks.pictures import pairs
from benchmarks.programs import PROGRAMS, fastest
from benchmarks.report import Bound, Section, Table, spread
from benchmarks.task import Run, Task, run
from impasto.runtime.recipes import JOHNSON

_MOST_EXCESS = 0.15


@dataclass(frozen=True)
class Scaling:
    """Every run at each size, a run a round."""

    runs: dict[int, list[Run]]

    def microseconds(self, size: int) -> list[float]:
        """Return, round by round, the median time of an evaluation over the picture's pixels."""
        return [1e6 * median(run.seconds[WARM_UP:]) / size**2 for run in self.runs[size]]

    def costs(self) -> dict[int, float]:
        """Return for each size the median over the rounds."""
        return {size: median(self.microseconds(size)) for size in self.runs}

    def excess(self) -> float:
        """Return by which part the dearest pixel exceeds the cheapest."""
        costs = self.costs().values()
        return max(costs) / min(costs) - 1


def measure(task: Task, rounds: Mapping[int, int]) -> Scaling:
    """Run the task at every size, each in its first ``rounds``, in turns."""
    runs: dict[int, list[Run]] = {size: [] for size in rounds}
    with tempfile.TemporaryDirectory() as cache:
        for number in range(max(rounds.values())):
            for size in (size for size, most in rounds.items() if number < most):
                runs[size].append(run("stylizer", replace(task, size=size), Path(cache)))
    return Scaling(runs)


def section(_machine: Machine, quick: bool) -> Section:
    """Measure and report."""
    content, style = pairs()[0]
    rounds = {64: 1, 128: 1} if quick else {512: 3, 1024: 3, 2048: 2, 4096: 1}
    evaluations = WARM_UP + 2
    name = fastest()
    # As many iterations as there are evaluations: room is not to be left for a history that never comes.
    task = Task(JOHNSON.with_iterations(evaluations), "random", content, style, min(rounds), evaluations)
    found = measure(replace(PROGRAMS[name].task(task), plan=None), rounds)
    excess = found.excess()
    return Section(
        title="Cost of a pixel",
        body=(
            f"An evaluation of `johnson` by {name}, which is what `--backend auto` takes here, at several sizes: the "
            f"median of the {evaluations - WARM_UP} evaluations after the first {WARM_UP}, in each of up to "
            f"{max(rounds.values())} rounds. What does not fit into 80% of the free memory is tiled. The dearest pixel "
            f"costs {excess:.0%} more than the cheapest.",
            scaling_table(found),
        ),
        bounds=(
            Bound(
                f"Cost of a pixel from {min(rounds)} to {max(rounds)} px, dearest over cheapest",
                f"≤ {1 + _MOST_EXCESS:.2f}",
                f"{1 + excess:.2f}",
                excess <= _MOST_EXCESS,
            ),
        ),
        data={"program": name, **{str(size): [asdict(run) for run in runs] for size, runs in found.runs.items()}},
    )


def scaling_table(found: Scaling) -> Table:
    """Return a row for each size, ratios first."""
    costs = found.costs()
    cheapest = min(costs.values())
    rows = []
    for size, runs in found.runs.items():
        times = [1e3 * median(run.seconds[WARM_UP:]) for run in runs]
        rows.append(
            (
                f"{size}×{size}",
                runs[0].plan,
                f"{costs[size] / cheapest:.2f}",
                spread(found.microseconds(size)),
                spread(times, ".0f"),
                f"{max(run.peak_bytes for run in runs) / 1e9:.2f}",
            )
        )
    return Table(("px", "plan", "over the cheapest", "µs a pixel", "ms", "peak memory, GB"), tuple(rows))
