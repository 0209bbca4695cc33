"""What an evaluation of the filter bank costs, beside one of VGG-19."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median

from benchmarks.evaluation import WARM_UP
from benchmarks.machine import Machine
from benchmarks.pictures import pairs
from benchmarks.programs import OPENVINO, OPENVINO_BF16, ORT, here, in_turns
from benchmarks.report import Bound, Section, Table, spread
from benchmarks.task import Run, Task, run
from impasto.runtime.recipes import FILTERBANK, JOHNSON

BANK, VGG = "`filterbank`", "`johnson`, VGG-19"
_MOST_SHARE = 0.5


@dataclass(frozen=True)
class Costs:
    """Every run of both presets, a run a round."""

    runs: dict[str, list[Run]]

    def milliseconds(self, preset: str) -> list[float]:
        """Return, round by round, the median time of an evaluation."""
        return [1e3 * median(run.seconds[WARM_UP:]) for run in self.runs[preset]]

    def shares(self) -> list[float]:
        """Return, round by round, the bank's time over VGG-19's."""
        return [a / b for a, b in zip(self.milliseconds(BANK), self.milliseconds(VGG), strict=True)]


def measure(bank: Task, vgg: Task, rounds: int) -> Costs:
    """Run both tasks, ``rounds`` times in turns."""
    runs: dict[str, list[Run]] = {BANK: [], VGG: []}
    with tempfile.TemporaryDirectory() as cache:
        for _ in range(rounds):
            for name, task in ((BANK, bank), (VGG, vgg)):
                runs[name].append(run("stylizer", task, Path(cache)))
    return Costs(runs)


def section(_machine: Machine, quick: bool) -> Section:
    """Measure and report."""
    size, rounds, evaluations = (96, 2, 5) if quick else (512, 3, 12)
    vgg = Task(JOHNSON, "random", *pairs()[0], size, evaluations)
    bank = replace(vgg, preset=replace(FILTERBANK, stages=()), weights=FILTERBANK.weights)
    found = measure(bank, vgg, rounds)
    shares = found.shares()
    backends, left_out = here((ORT, OPENVINO, OPENVINO_BF16, f"{ORT}, tiled"))
    by_backend = in_turns(bank, dict.fromkeys(backends, rounds))
    return Section(
        title="The filter bank",
        body=(
            f"One evaluation at {size}×{size} px by ONNX Runtime, fused, solver and loop included: the median of the "
            f"{evaluations - WARM_UP} evaluations after the first {WARM_UP}, in each of {rounds} rounds.",
            costs_table(found),
            "The filter bank by each backend; OpenVINO takes bf16 for it only if asked to.",
            backends_table(by_backend),
            *([left_out] if left_out else []),
        ),
        bounds=(
            Bound(
                f"One evaluation of `filterbank` at {size}×{size} px, over one of `johnson`",
                f"≤ {_MOST_SHARE}",
                spread(shares),
                median(shares) <= _MOST_SHARE,
            ),
        ),
        data={name: [asdict(run) for run in runs] for name, runs in {**found.runs, **by_backend}.items()},
    )


def backends_table(runs: Mapping[str, list[Run]]) -> Table:
    """Return a row for each program."""
    rows = tuple(
        (
            name,
            spread([1e3 * median(run.seconds[WARM_UP:]) for run in found], ".0f"),
            f"{max(run.peak_bytes for run in found) / 1e9:.2f}",
        )
        for name, found in runs.items()
        if found
    )
    return Table(("", "ms", "peak memory, GB"), rows)


def costs_table(found: Costs) -> Table:
    """Return a row for each preset, shares first."""
    rows = tuple(
        (
            name,
            "1" if name == VGG else spread(found.shares()),
            spread(found.milliseconds(name), ".0f"),
            f"{max(run.peak_bytes for run in runs) / 1e9:.2f}",
        )
        for name, runs in found.runs.items()
    )
    return Table(("", "time over VGG-19's", "ms", "peak memory, GB"), rows)
