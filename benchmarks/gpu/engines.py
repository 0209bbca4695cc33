"""Part `engines`: engines built, loaded again from the cache, and what ``impasto engines`` says of them."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass

import numpy as np

from benchmarks.gpu.findings import Check, Part
from benchmarks.gpu.variants import DEVICE_LOOP, Open, Variant, engine_cache, open_variant
from benchmarks.report import Table
from benchmarks.task import ROOT
from impasto.models.random_weights import random_weights
from impasto.optimize.cache import EngineCache
from impasto.runtime.backends.protocol import Backend, Plan
from impasto.runtime.problem import FloatArray, Problem
from impasto.runtime.recipes import JOHNSON
from impasto.runtime.targets import measure_targets


@dataclass(frozen=True)
class Engines:
    """What making a problem ready took, twice: seconds, and how many engines were new in the cache."""

    what: str
    seconds: tuple[float, float]
    built: tuple[int, int]
    finite: bool


def part(quick: bool) -> Part:
    """Build on the first GPU, for a usual and for an odd size."""
    with engine_cache() as cache:
        found = built(((96, 77),) if quick else ((512, 512), (203, 301)), DEVICE_LOOP, open_variant, cache)
        for command in ("list", "verify"):
            with found.attempt(f"impasto engines {command}"):
                done = subprocess.run(
                    [sys.executable, "-m", "impasto", "engines", command], cwd=ROOT, capture_output=True, text=True
                )
                what = f"impasto engines {command}"
                found.checks.append(Check(what, done.returncode, 0, "exit code"))
                found.body.append(f"`{what}` ends with: {_last_line(done.stdout + done.stderr)}")
    return found


def built(shapes: Iterable[tuple[int, int]], variants: Iterable[Variant], open_: Open, cache: EngineCache) -> Part:
    """Make variants ready for `johnson` at sizes, (height, width), twice each."""
    found = Part("Engines")
    rows = []
    variants = tuple(variants)
    for shape in shapes:
        for variant in variants:
            for plan in variant.plans:
                what = f"{variant} {plan} {shape[1]}×{shape[0]}"
                print(f"  {what} …", file=sys.stderr, flush=True)
                with found.attempt(what):
                    first, second = (_prepared(open_, variant, plan, shape, cache) for _ in range(2))
                    finite = first[2] and second[2]
                    rows.append(Engines(what, (first[0], second[0]), (first[1], second[1]), finite))
                    found.checks += [
                        Check(f"{what}: built again", second[1], 0, "engines"),
                        Check(f"{what}: losses and gradient not finite", float(not finite), 0, ""),
                    ]
    found.body += [
        "From an open backend to the first evaluation, targets included; then once more by a backend opened anew. "
        "Engines that were in the cache before the run count as loaded. Backend `cuda` keeps no graphs, only kernels.",
        Table(
            ("", "s", "new engines", "again, s", "new engines"),
            tuple(
                (r.what, f"{r.seconds[0]:.1f}", str(r.built[0]), f"{r.seconds[1]:.1f}", str(r.built[1])) for r in rows
            ),
        ),
    ]
    found.data["engines"] = [asdict(row) for row in rows]
    return found


def _prepared(
    open_: Open, variant: Variant, plan: Plan, shape: tuple[int, int], cache: EngineCache
) -> tuple[float, int, bool]:
    """Return the seconds to the first evaluation, the number of new engines, and whether its numbers are finite."""
    backend = open_(variant, cache)
    before = {entry.path.name for entry in cache.entries()}
    try:
        start = time.perf_counter()
        problem, image = _problem(backend, shape)
        losses = backend.prepare(problem, plan).evaluate(image)
        seconds = time.perf_counter() - start
    finally:
        backend.close()
    new = {entry.path.name for entry in cache.entries()} - before
    return seconds, len(new), bool(np.isfinite(losses.total) and np.isfinite(losses.gradient).all())


def _problem(backend: Backend, shape: tuple[int, int]) -> tuple[Problem, FloatArray]:
    weights = random_weights("vgg19", 0)
    objective = JOHNSON.objective.canonical(weights)
    stream = np.random.default_rng(0)
    content, style = (stream.random((*shape, 3), np.float32) for _ in range(2))
    targets = measure_targets(backend, weights, objective, content, style)
    image = stream.standard_normal((1, 3, *shape)).astype(np.float32)
    return Problem(objective, weights, targets, shape), image


def _last_line(text: str) -> str:
    return (text.strip().splitlines() or ["nothing"])[-1]
