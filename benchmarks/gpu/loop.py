"""Part `loop`: the time of an evaluation in a painting under way, solver and loop included, beside PyTorch's.

Each of ours takes turns with both of PyTorch's, so that a ratio is of neighbours in time.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

import numpy as np

from benchmarks.evaluation import convolution_gflop
from benchmarks.gpu.findings import Part
from benchmarks.gpu.peaks import matrix_tflops, torch_on_gpu
from benchmarks.gpu.variants import DEVICE_LOOP, Open, Variant, engine_cache, open_variant
from benchmarks.pictures import pairs, square
from benchmarks.report import Bound, Table, spread
from impasto.models.random_weights import random_weights
from impasto.optimize.cache import EngineCache
from impasto.runtime.backends.protocol import Backend, Plan
from impasto.runtime.gpu.hosted import HostedEvaluator
from impasto.runtime.gpu.loop import DeviceBest, descend_on_device
from impasto.runtime.loop import Best, Observation, descend
from impasto.runtime.problem import FloatArray, Problem
from impasto.runtime.recipes import JOHNSON
from impasto.runtime.solvers import LBFGS
from impasto.runtime.targets import measure_targets

EAGER, COMPILED = "PyTorch eager fp32 (TF32)", "PyTorch compiled fp16"
HOSTED = (Variant("onnxruntime-cuda", "tf32", ("fused",)),)
WARM_UP = 4
"""Evaluations at the start of a descent that are not counted."""

_LEAST_EAGER, _LEAST_COMPILED, _LEAST_PEAK = 3.0, 1.5, 0.6

Descent = Callable[[int], list[float]]
"""Descends for some evaluations and returns the seconds from each to the next."""


@dataclass(frozen=True)
class Times:
    """The times of one variant and plan at a size, and of PyTorch's beside it: seconds of an evaluation, by round."""

    what: str
    precision: str
    plan: str
    size: int
    seconds: list[float]
    rivals: dict[str, list[float]]
    peak_bytes: int | None
    finite: bool = True

    def speedups(self, rival: str) -> list[float]:
        """Return, round by round, how many times as fast as a rival it is."""
        return [theirs / ours for ours, theirs in zip(self.seconds, self.rivals[rival], strict=True)]


def part(quick: bool) -> Part:
    """Measure on the first GPU."""
    found = Part("Loop")
    sizes, rounds, evaluations = ((128,), 2, 6) if quick else ((512, 1024), 3, 16)
    rivals: dict[str, Callable[[Problem, FloatArray], Descent]] = {}
    with found.attempt("PyTorch beside the loop"):
        torch_on_gpu()
        from benchmarks.gpu import torch_loop

        rivals = {EAGER: torch_loop.eager, COMPILED: torch_loop.compiled}
    peak = None
    with found.attempt("share of the peak"):
        peak = matrix_tflops("bf16")
    with engine_cache() as cache:
        times = [
            each
            for size in sizes
            for each in measured(found, size, rounds, evaluations, (*DEVICE_LOOP, *HOSTED), rivals, open_variant, cache)
        ]
    report(found, times, peak)
    return found


def measured(
    found: Part,
    size: int,
    rounds: int,
    evaluations: int,
    variants: Iterable[Variant],
    rivals: dict[str, Callable[[Problem, FloatArray], Descent]],
    open_: Open,
    cache: EngineCache,
) -> Iterator[Times]:
    """Measure variants at a size, beside rivals; what fails or cannot run is told to ``found``."""
    problem: Problem | None = None
    start = np.random.RandomState(0).standard_normal((1, 3, size, size)).astype(np.float32) * np.float32(JOHNSON.noise)
    others: dict[str, Descent] = {}
    for variant in variants:
        print(f"  {size} px, {variant} …", file=sys.stderr, flush=True)
        with found.attempt(f"{variant} at {size} px"):
            backend = open_(variant, cache)
            try:
                if problem is None:
                    problem = make_problem(backend, size)
                    others = _made(found, rivals, problem, start)
                for plan in variant.plans:
                    with found.attempt(f"{variant} {plan} at {size} px"):
                        yield _times(backend, variant, plan, problem, start, others, rounds, evaluations)
            finally:
                backend.close()


def make_problem(backend: Backend, size: int) -> Problem:
    """Return `johnson` on full VGG-19 with random weights, with targets as the backend measures them."""
    weights = random_weights("vgg19", 0)
    objective = JOHNSON.objective.canonical(weights)
    content, style = (square(name, size) for name in pairs()[0])
    return Problem(objective, weights, measure_targets(backend, weights, objective, content, style), (size, size))


def _made(
    found: Part, rivals: dict[str, Callable[[Problem, FloatArray], Descent]], problem: Problem, start: FloatArray
) -> dict[str, Descent]:
    made = {}
    for name, make in rivals.items():
        with found.attempt(name):
            descent = make(problem, start)
            descent(WARM_UP)  # compiles, and chooses algorithms
            made[name] = descent
    return made


def _times(
    backend: Backend,
    variant: Variant,
    plan: Plan,
    problem: Problem,
    start: FloatArray,
    others: dict[str, Descent],
    rounds: int,
    evaluations: int,
) -> Times:
    free = _free_bytes(backend)
    evaluator = backend.prepare(problem, plan)
    losses: list[float] = []
    least: list[int] = []

    def descent(count: int) -> list[float]:
        seconds, last = [], time.perf_counter()
        for seen in steps(evaluator, start, count):
            now = time.perf_counter()
            seconds.append(now - last)
            losses.append(seen.loss)
            if seen.evaluation == count and not least:
                least.append(_free_bytes(backend) or 0)
            last = time.perf_counter()
        return seconds

    descent(WARM_UP + 1)
    taken = None if free is None else free - least[0]
    own: list[float] = []
    theirs: dict[str, list[float]] = {name: [] for name in others}
    for _ in range(rounds):
        own.append(median(descent(evaluations)[WARM_UP:]))
        for name, other in others.items():
            theirs[name].append(median(other(evaluations)[WARM_UP:]))
    finite = bool(np.isfinite(losses).all())
    return Times(variant.backend, variant.precision, plan, problem.shape[0], own, theirs, taken, finite)


def steps(evaluator: Any, start: FloatArray, evaluations: int) -> Iterator[Observation]:
    """Descend by the preset's solver, on the device where the evaluator is there."""
    assert isinstance(JOHNSON.solver, LBFGS)
    if isinstance(evaluator, HostedEvaluator):
        seen = descend_on_device(evaluator.on_device, JOHNSON.solver, DeviceBest(start), max_evaluations=evaluations)
    else:
        seen = descend(evaluator, JOHNSON.solver, Best(start), max_evaluations=evaluations)
    with closing(seen):
        yield from seen


def _free_bytes(backend: Backend) -> int | None:
    """Return the device memory that is free; None for backends that keep their device to themselves."""
    device = getattr(backend, "device", None)
    return None if device is None or not hasattr(device, "memory_info") else int(device.memory_info()[0])


def report(found: Part, times: list[Times], peak: float | None) -> None:
    """Add tables, targets, and what went wrong; ``peak`` is in TFLOP/s."""
    flop = {size: 1e9 * convolution_gflop(JOHNSON.objective, _backbone(), size) for size in {t.size for t in times}}
    shares = [None if peak is None else flop[t.size] / median(t.seconds) / (1e12 * peak) for t in times]
    found.failures += [f"{name(t)}: losses are not finite" for t in times if not t.finite]
    for size in sorted(flop):
        rows = [(t, share) for t, share in zip(times, shares, strict=True) if t.size == size]
        found.body += [
            f"`johnson` at {size}×{size} px, full VGG-19 with random weights, {flop[size] / 1e9:.0f} GFLOP in "
            "convolutions an evaluation: the median time from one evaluation to the next, with the least and the most "
            "over the rounds. Ratios are to PyTorch's own L-BFGS in turns on the same GPU.",
            table(rows),
        ]
        plans = faster_plans([t for t, _ in rows])
        if plans:
            found.body.append("The faster plan: " + "; ".join(plans) + ".")
    found.data["times"] = [asdict(t) for t in times]
    found.data["peak_tflops"] = peak
    found.targets += targets(times, shares)


def targets(times: list[Times], shares: list[float | None]) -> list[Bound]:
    """Return the project's targets, of the fastest variant each."""
    bounds = []
    for rival, least in ((EAGER, _LEAST_EAGER), (COMPILED, _LEAST_COMPILED)):
        ours = [t for t in times if t.size == 512 and t.precision == "fp16" and t.rivals.get(rival)]
        if ours:
            best = max(ours, key=lambda t: median(t.speedups(rival)))
            ratio = best.speedups(rival)
            what = f"The loop in fp16 at 512 px beside {rival} ({name(best)})"
            bounds.append(Bound(what, f"≥ {least}×", f"{spread(ratio)}×", median(ratio) >= least))
    large = [(share, t) for share, t in zip(shares, times, strict=True) if share is not None and t.size == 1024]
    if large:
        share, best = max(large, key=lambda pair: pair[0])
        what = f"The loop at 1024 px, of the measured bf16 peak ({name(best)})"
        bounds.append(Bound(what, f"≥ {_LEAST_PEAK:.0%}", f"{share:.0%}", share >= _LEAST_PEAK))
    return bounds


def faster_plans(times: list[Times]) -> list[str]:
    """Return, for each backend and precision that has several plans, which one was faster."""
    found: dict[tuple[str, str], dict[str, float]] = {}
    for t in times:
        found.setdefault((t.what, t.precision), {})[t.plan] = median(t.seconds)
    lines = []
    for (backend, precision), plans in found.items():
        if len(plans) > 1:
            fast, slow = sorted(plans, key=lambda plan: plans[plan])
            lines.append(f"{backend} {precision} {fast} ({plans[slow] / plans[fast]:.2f}× as fast as {slow})")
    return lines


def table(rows: Iterable[tuple[Times, float | None]]) -> Table:
    """Return a row for each."""
    cells = tuple(
        (
            name(t),
            *(spread(t.speedups(rival)) if t.rivals.get(rival) else "" for rival in (EAGER, COMPILED)),
            spread([1e3 * s for s in t.seconds]),
            *(f"{1e3 * median(t.rivals[rival]):.2f}" if t.rivals.get(rival) else "" for rival in (EAGER, COMPILED)),
            "" if share is None else f"{share:.0%}",
            "" if t.peak_bytes is None else f"{t.peak_bytes / 1e9:.2f}",
        )
        for t, share in rows
    )
    rivals = EAGER.removeprefix("PyTorch "), COMPILED.removeprefix("PyTorch ")
    header = ("", *(f"times as fast as {r}" for r in rivals), "ms", *(f"{r}, ms" for r in rivals), "of bf16 peak",
              "device memory, GB")  # fmt: skip
    return Table(header, cells)


def name(times: Times) -> str:
    """Return what a row is called."""
    return f"{times.what} {times.precision} {times.plan}"


def _backbone() -> Any:
    from impasto.models.backbones import backbone

    return backbone("vgg19")
