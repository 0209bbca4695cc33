"""What a pixel costs in pictures of different sizes."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median

from benchmarks.evaluation import WARM_UP
from benchmarks.machine import Machine
from benchmarks.pictures import pairs
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


def measure(task: Task, sizes: Sequence[int], rounds: int) -> Scaling:
    """Run the task at every size, ``rounds`` times in turns."""
    runs: dict[int, list[Run]] = {size: [] for size in sizes}
    with tempfile.TemporaryDirectory() as cache:
        for _ in range(rounds):
            for size in sizes:
                runs[size].append(run("stylizer", replace(task, size=size), Path(cache)))
    return Scaling(runs)


def section(_machine: Machine, quick: bool) -> Section:
    """Measure and report."""
    content, style = pairs()[0]
    sizes, rounds, evaluations = ((64, 128), 2, 5) if quick else ((256, 384, 512, 768, 1024), 3, 10)
    found = measure(Task(JOHNSON, "random", content, style, sizes[0], evaluations), sizes, rounds)
    excess = found.excess()
    return Section(
        title="Cost of a pixel",
        body=(
            f"The same evaluation, fused, at several sizes: the median of the {evaluations - WARM_UP} evaluations "
            f"after the first {WARM_UP}, in each of {rounds} rounds. The dearest pixel costs {excess:.0%} more than "
            "the cheapest.",
            scaling_table(found),
        ),
        bounds=(
            Bound(
                f"Cost of a pixel from {sizes[0]} to {sizes[-1]} px, dearest over cheapest",
                f"≤ {1 + _MOST_EXCESS:.2f}",
                f"{1 + excess:.2f}",
                excess <= _MOST_EXCESS,
            ),
        ),
        data={str(size): [asdict(run) for run in runs] for size, runs in found.runs.items()},
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
                f"{costs[size] / cheapest:.2f}",
                spread(found.microseconds(size)),
                spread(times, ".0f"),
                f"{max(run.peak_bytes for run in runs) / 1e9:.2f}",
            )
        )
    return Table(("px", "over the cheapest", "µs a pixel", "ms", "peak memory, GB"), tuple(rows))
