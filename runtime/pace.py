"""How long an evaluation takes on this machine: measured once, small, and kept in the cache."""

from __future__ import annotations

import hashlib
import json
import math
import time
from pathlib import Path

import numpy as np

from impasto.errors import ImpastoError
from impasto.models.locate import cache_dir
from impasto.optimize.cpus import available_cpus
from impasto.optimize.keys import canonical_json, cpu
from impasto.runtime.backends.protocol import Backend
from impasto.runtime.files import write_atomically
from impasto.runtime.forecast import Forecast
from impasto.runtime.painting import Job
from impasto.runtime.problem import Problem
from impasto.runtime.targets import encoded, measure_targets

FILE = "pace.json"

_SIDE = 256
"""Pixels of the picture that is evaluated: the cost of a pixel is the same in larger ones, within 15%."""

_EVALUATIONS = 2

_TWO_PASSES = 1.5
"""What the plan ``tiled`` computes for each position that a window reads: once forward, and once there and back, where
one graph goes there and back alone."""


def seconds(job: Job, backend: Backend, forecast: Forecast) -> float:
    """Return about how long the evaluations of a forecast take, measured if it is not known yet (a few seconds).

    Solver, reading and measuring are left out: a few percent.
    """
    pace = seconds_per_pixel(job, backend)
    total = 0.0
    for stage in forecast.stages:
        more = _TWO_PASSES * stage.overhead if stage.windows else 1.0
        total += stage.evaluations * stage.pixels * more * pace
    return total


def seconds_per_pixel(job: Job, backend: Backend, folder: Path | None = None) -> float:
    """Return what an evaluation takes over the picture's pixels, by one graph, or by the plan ``sliced``.

    ``folder`` has the file of what was measured before, by default the cache; one that cannot be read or written is
    done without.
    """
    path = (folder or cache_dir()) / FILE
    known = _read(path)
    key = _key(job, backend)
    if key not in known:
        known[key] = _measured(job, backend)
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            write_atomically(path, json.dumps(known, indent=1, sort_keys=True).encode(), overwrite=True)
        except (OSError, ImpastoError):
            pass
    return known[key]


def _measured(job: Job, backend: Backend) -> float:
    plan = "sliced" if job.plan == "sliced" else "fused"
    smallest = max(job.weights.backbone.smallest(tap) for tap in job.preset.objective.taps)
    side = _SIDE
    shape = (side, side)
    objective = job.preset.objective_at(job.weights, shape, shape)
    if any(job.weights.backbone.smallest(tap) > side for tap in objective.taps):
        side = smallest
        shape = (side, side)
        objective = job.preset.objective_at(job.weights, shape, shape)
    pictures = np.random.RandomState(0).random_sample((2, *shape, 3)).astype(np.float32)
    targets = measure_targets(backend, job.weights, objective, *pictures)
    evaluator = backend.prepare(Problem(objective, job.weights, targets, shape), plan)  # type: ignore[arg-type]
    image = encoded(objective, pictures[0])
    evaluator.evaluate(image)  # the first one allocates
    times = []
    for _ in range(_EVALUATIONS):
        start = time.perf_counter()
        evaluator.evaluate(image)
        times.append(time.perf_counter() - start)
    return min(times) / math.prod(shape)


def _key(job: Job, backend: Backend) -> str:
    """Return a name for everything that the pace depends on but the size."""
    objective = job.preset.objective
    facts = {
        "backend": backend.name,
        "precision": backend.precision,
        "plan": "sliced" if job.plan == "sliced" else "fused",
        "backbone": job.weights.backbone.name,
        "content": sorted(objective.content),
        "style": sorted((tap, objective.statistic(tap)) for tap in objective.style),
        "tv": objective.tv_form if objective.tv else None,
        "pooling": objective.pooling,
        "smallest_grid": job.preset.smallest_grid,
        "threads": job.threads or available_cpus(),
        "versions": backend.versions(),
        "cpu": dict(cpu()),
    }
    return hashlib.sha256(canonical_json(facts)).hexdigest()[:16]


def _read(path: Path) -> dict[str, float]:
    try:
        found = json.loads(path.read_bytes())
        return {str(key): float(value) for key, value in found.items() if 0 < float(value) < math.inf}
    except (OSError, ValueError, AttributeError, TypeError):
        return {}
