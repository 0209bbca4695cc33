"""How long it takes to paint as well as torch's L-BFGS does: time to a given loss, judged alike for all."""

from __future__ import annotations

import bisect
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median

import numpy as np

from benchmarks.convergence import judge
from benchmarks.machine import Machine
from benchmarks.pictures import pairs
from benchmarks.programs import MAIN, PROGRAMS, TORCH, TORCH_BF16, TUTORIAL, fastest, here
from benchmarks.report import Bound, Section, Table, spread
from benchmarks.task import Task, run
from impasto.models.conventions import FloatArray
from impasto.runtime.recipes import JOHNSON

_LEAST_BF16, _LEAST_FP32 = 4.0, 2.0
_NEAR, _BEYOND = 1.1, 0.95
"""Iterates are kept from a loss of the first times the target on, and the painting ends at the second times it: what a
program sees in its own precision is within that of what the judge finds."""
_PATIENCE = 1.5
"""How many times torch's evaluations a program may make."""


@dataclass(frozen=True)
class Reached:
    """How a program came to the target: ``evaluations``, None if it did not, and their seconds in each round.

    ``lowest`` is the loss of the last iterate over the target, as judged, or, if none came near, as the program saw it.
    """

    evaluations: int | None
    seconds: list[float]
    lowest: float


def measure(task: Task, rounds: Mapping[str, int]) -> tuple[float, dict[str, Reached]]:
    """Return the loss that torch reaches within the task's evaluations, and how each program comes there.

    Programs take turns, each in its first ``rounds``. Where they come to is judged in the first; in those after it the
    same evaluations are timed again.
    """
    judged = judge(task)
    with tempfile.TemporaryDirectory() as folder:
        cache, best = Path(folder), Path(folder) / "best.npy"
        torchs = run("plain_torch", replace(PROGRAMS[TORCH].task(task), iterate=str(best)), cache)
        target = judged(np.load(best))
        count = torchs.losses.index(min(torchs.losses)) + 1
        found = {TORCH: Reached(count, [sum(torchs.seconds[:count])], 1.0)}
        for number in range(max(rounds.values())):
            for name, most in rounds.items():
                if number >= most or (name == TORCH and number == 0):
                    continue
                asked = PROGRAMS[name].task(replace(task, evaluations=int(_PATIENCE * task.evaluations)))
                if name not in found:
                    found[name] = _descend(name, asked, judged, target, cache)
                else:
                    again = replace(asked, evaluations=found[name].evaluations or asked.evaluations)
                    found[name].seconds.append(sum(run(PROGRAMS[name].worker, again, cache).seconds))
    return target, found


def _descend(name: str, task: Task, judged: Callable[[FloatArray], float], target: float, cache: Path) -> Reached:
    with tempfile.TemporaryDirectory() as trail:
        kept = replace(task, trail=trail, trail_from=_NEAR * target, until=_BEYOND * target)
        ran = run(PROGRAMS[name].worker, kept, cache)
        count, lowest = first_below(Path(trail), judged, target)
    near = float(np.nanmin(ran.losses)) if lowest is None else lowest  # steps without a line search may end in NaN
    return Reached(count, [sum(ran.seconds[:count])], near / target)


def first_below(trail: Path, judged: Callable[[FloatArray], float], target: float) -> tuple[int | None, float | None]:
    """Return how many evaluations it took until an iterate was as good as the target, and the last iterate's loss.

    None if none was. The iterates get better one by one, so that halving finds the first. Both are None without any.
    """
    numbers = sorted(int(path.stem) for path in trail.glob("*.npy"))
    if not numbers:
        return None, None

    def loss(number: int) -> float:
        return judged(np.load(trail / f"{number}.npy"))

    last = loss(numbers[-1])
    if last > target:
        return None, last
    first = bisect.bisect_left(numbers, True, key=lambda number: loss(number) <= target)
    return numbers[first] + 1, last


def section(_machine: Machine, quick: bool) -> Section:
    """Measure and report."""
    size, evaluations = (64, 20) if quick else (256, 200)
    names, left_out = here((*MAIN[:2], TUTORIAL, *MAIN[2:]))
    ours = fastest()
    twice = not quick
    task = Task(JOHNSON, "random", *pairs()[0], size, evaluations)
    target, found = measure(task, {name: 2 if twice and name in (TORCH, ours) else 1 for name in names})
    ratios = speedups(found, ours)
    least = _LEAST_BF16 if TORCH_BF16 in names else _LEAST_FP32
    return Section(
        title="Time to a given loss",
        body=(
            f"`johnson` at {size}×{size} px from the same noise, to the lowest loss of `torch.optim.LBFGS` with strong "
            f"Wolfe line searches within {evaluations} evaluations in float32: {target:.5g}, as judged in float64, as "
            "all are. Seconds are those of the descent, start-up and the targets' measurement left out. Programs get "
            f"{_PATIENCE} times as many evaluations as torch.",
            loss_table(found),
            *([left_out] if left_out else []),
        ),
        bounds=(
            Bound(
                f"Time to torch's loss at {size}×{size} px: {ours} against {TORCH}",
                f"≥ {least}×",
                f"{spread(ratios)}×" if ratios else "not reached",
                bool(ratios) and median(ratios) >= least,
            ),
        ),
        data={"size": size, "target": target, **{name: asdict(reached) for name, reached in found.items()}},
    )


def speedups(found: Mapping[str, Reached], name: str) -> list[float]:
    """Return, round by round, how many times sooner than torch a program was there; nothing if it was not."""
    if found[name].evaluations is None:
        return []
    return [a / b for a, b in zip(found[TORCH].seconds, found[name].seconds, strict=False)]  # some sit rounds out


def loss_table(found: Mapping[str, Reached]) -> Table:
    """Return a row for each program, ratios first."""
    rows = []
    for name, reached in found.items():
        ratio = "1" if name == TORCH else spread(speedups(found, name)) if reached.evaluations else "—"
        evaluations = f"{reached.evaluations}" if reached.evaluations else f"not there: {reached.lowest:.3f} of it"
        rows.append((name, ratio, spread(reached.seconds), evaluations))
    return Table(("", f"times sooner than {TORCH}", "s", "evaluations"), tuple(rows))
