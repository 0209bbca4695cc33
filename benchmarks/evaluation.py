"""One evaluation of `johnson`, loss and pixel gradient: Impasto's two plans and plain PyTorch, in turns."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.machine import Machine, peak_gflops
from benchmarks.pictures import pairs
from benchmarks.report import Bound, Section, Table, spread
from benchmarks.task import Run, Task, Worker, run
from impasto.export.objective import Objective
from impasto.models.backbones import Backbone, backbone
from impasto.models.layers import Conv, Filters
from impasto.runtime.backends.protocol import Plan
from impasto.runtime.recipes import JOHNSON
from impasto.runtime.solvers import LBFGS

WARM_UP = 2
"""Evaluations at the start of a painting that are not counted: memory is still being taken and pages touched."""

FUSED, SLICED, TORCH = "Impasto, fused", "Impasto, sliced", "PyTorch, eager"
_VARIANTS: Mapping[str, tuple[Worker, Plan]] = {
    FUSED: ("stylizer", "fused"),
    SLICED: ("stylizer", "sliced"),
    TORCH: ("plain_torch", "fused"),
}
_MOST_BYTES = 1.8e9

assert isinstance(JOHNSON.solver, LBFGS)
JOHNSON_HISTORY = JOHNSON.solver.history
"""The most pairs that the solver keeps, ours and torch's."""


@dataclass(frozen=True)
class Evaluations:
    """Every run of each variant, a run a round, and the machine's peak in GFLOP/s as found in each round."""

    runs: Mapping[str, list[Run]]
    peaks: list[float]

    def milliseconds(self, variant: str) -> list[float]:
        """Return, round by round, the median time of an evaluation."""
        return [1e3 * median(run.seconds[WARM_UP:]) for run in self.runs[variant]]

    def speedups(self, variant: str) -> list[float]:
        """Return, round by round, how many times as fast as PyTorch the variant is."""
        pairs = zip(self.milliseconds(TORCH), self.milliseconds(variant), strict=True)
        return [torchs / ours for torchs, ours in pairs]

    def largest_bytes(self, variant: str) -> int:
        """Return the largest resident size of all rounds; the first of Impasto's builds the engine."""
        return max(run.peak_bytes for run in self.runs[variant])

    def imports_bytes(self, variant: str) -> int:
        """Return the resident size after the imports."""
        return min(run.imports_bytes for run in self.runs[variant])


def measure(task: Task, rounds: int, peak_size: int = 4096) -> Evaluations:
    """Run every variant of the task, ``rounds`` times in turns; ``peak_size`` is the side of the peak's matrices."""
    runs: dict[str, list[Run]] = {variant: [] for variant in _VARIANTS}
    peaks = []
    with tempfile.TemporaryDirectory() as cache:
        for _ in range(rounds):
            peaks.append(peak_gflops(peak_size))
            for variant, (worker, plan) in _VARIANTS.items():
                runs[variant].append(run(worker, replace(task, plan=plan), Path(cache)))
    return Evaluations(runs, peaks)


def section(machine: Machine, quick: bool) -> Section:
    """Measure and report."""
    content, style = pairs()[0]
    size, rounds, evaluations, long = (128, 2, 6, 6) if quick else (512, 5, 12, 130)
    task = Task(JOHNSON, "random", content, style, size, evaluations)
    found = measure(task, rounds)
    largest = max(measure_long(task, long).peak_bytes, found.largest_bytes(FUSED))
    gflop = convolution_gflop(JOHNSON.objective, backbone("vgg19"), size)
    least = least_speedup(machine)
    speedups = found.speedups(FUSED)
    what = f"One evaluation of `johnson` at {size}×{size} px"
    return Section(
        title="One evaluation",
        body=(
            f"{what}, float32, full VGG-19 with random weights: every loss term and the gradient of every pixel, "
            f"{gflop:.0f} GFLOP in convolutions. Times are from one evaluation to the next in a painting under way, "
            "solver and loop included: the median of the "
            f"{evaluations - WARM_UP} evaluations after the first {WARM_UP}, in each of {rounds} rounds. "
            "The solver's history is short by then; what a full one takes is under *The solver's own cost*.",
            speed_table(found, gflop),
            f"The share is that of {max(found.peaks):.0f} GFLOP/s, the best rate of a large float32 matrix product "
            "here in NumPy or torch, convolutions counted as direct ones. Memory is the largest resident size of the "
            "whole process over the rounds (Impasto's first round builds its engine), and what is left of it "
            "without the interpreter and its imports. It grows with the solver's history, by two pictures in float32 "
            f"an iteration up to {JOHNSON_HISTORY}: after {long} evaluations, fused, it is {largest / 1e9:.2f} GB.",
        ),
        bounds=(
            Bound(f"{what}, against PyTorch", f"≥ {least}×", f"{spread(speedups)}×", median(speedups) >= least),
            Bound(
                f"Memory of a painting by `johnson` at {size}×{size} px after {long} evaluations",
                f"≤ {_MOST_BYTES / 1e9} GB",
                f"{largest / 1e9:.2f} GB",
                largest <= _MOST_BYTES,
            ),
        ),
        data={**_data(found, size, gflop), "long": {"evaluations": long, "peak_bytes": largest}},
    )


def measure_long(task: Task, evaluations: int) -> Run:
    """Run a painting by Impasto that is long enough to fill the solver's history."""
    with tempfile.TemporaryDirectory() as cache:
        return run("stylizer", replace(task, evaluations=evaluations), Path(cache))


def speed_table(found: Evaluations, gflop: float) -> Table:
    """Return a row for each variant, ratios first."""
    rows = []
    for variant in found.runs:
        times = found.milliseconds(variant)
        largest = found.largest_bytes(variant)
        share = gflop / (median(times) / 1e3) / max(found.peaks)
        rows.append(
            (
                variant,
                "1" if variant == TORCH else spread(found.speedups(variant)),
                spread(times, ".0f"),
                f"{share:.0%}",
                f"{largest / 1e9:.2f}",
                f"{(largest - found.imports_bytes(variant)) / 1e9:.2f}",
            )
        )
    header = ("", "times as fast as PyTorch", "ms", "share of peak", "peak memory, GB", "… without imports, GB")
    return Table(header, tuple(rows))


def convolution_gflop(objective: Objective, network: Backbone, size: int) -> float:
    """Return the arithmetic of one evaluation's convolutions in GFLOP, a multiplication and an addition being two.

    Forward to the deepest tap, and backward to the pixels, which costs the same again: weights get no gradient.
    """
    flop = 0
    for layer in network.needed(objective.taps):
        if isinstance(layer, Conv | Filters):
            positions = math.prod(network.grid(layer.name, (size, size)))
            flop += 2 * 2 * layer.in_channels * layer.out_channels * layer.kernel**2 * positions
    return flop / 1e9


def least_speedup(machine: Machine) -> float:
    """Return how many times as fast as PyTorch an evaluation has to be on such a machine.

    When the bounds were set, ONNX Runtime was 1.3 times as fast on Cascade Lake and 1.85 times on Zen 5.
    """
    sets = machine.instruction_sets
    return 1.25 if "avx512f" in sets and "avx512_bf16" not in sets else 1.7


def _data(found: Evaluations, size: int, gflop: float) -> dict[str, Any]:
    return {
        "size": size,
        "gflop": gflop,
        "peak_gflops": found.peaks,
        "runs": {variant: [asdict(run) for run in runs] for variant, runs in found.runs.items()},
    }
