"""What a job will take, told before it begins: memory by component, and evaluations."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from impasto.models.layers import Filters
from impasto.runtime.backends.protocol import Backend, Plan
from impasto.runtime.footprint import Footprint, footprint
from impasto.runtime.painting import Job
from impasto.runtime.presets import AnySolver
from impasto.runtime.solvers import LBFGS, LBFGSB, SGD, Adam, TorchLBFGS
from impasto.runtime.solvers.vectors import CHUNK

_LINE_SEARCH = 1.05
"""Evaluations of an iteration of L-BFGS, of which most steps are taken at the first trial."""

_VECTORS = 3
"""Vectors as large as the image beside the solver's: the best, a gradient that is not the session's own, and the
content picture, which the plan ``tiled`` measures again."""

_BAND = 3
"""Images of which a row of windows is in memory, where they are in files: the iterate, its gradient, the content."""

_STRIPES = 130_000_000
"""Bytes that take turning a picture into an image and back, stripe by stripe."""

_READING = 10
"""Bytes a pixel of a picture that take reading it: its file, as Pillow holds it, and as bytes."""

_WRITING = 7
"""Bytes a pixel of the result that take writing it: as bytes, and as Pillow holds them."""

_SCIPY_PAIRS = 10
"""Pairs that SciPy's L-BFGS-B keeps where nothing is said."""


@dataclass(frozen=True)
class StageForecast:
    """One size: (width, height), evaluations, and what is held there.

    ``components`` are bytes by what holds them, at the moment that takes the most; they add up to ``memory_bytes``.
    ``scratch_bytes`` are the mapped files that a job in files has.
    ``windows`` and ``overhead`` are those of `Footprint`.
    """

    size: tuple[int, int]
    pixels: int
    evaluations: int
    components: Mapping[str, int]
    windows: int = 0
    overhead: float = 1.0
    scratch_bytes: int = 0

    @property
    def memory_bytes(self) -> int:
        """The sum of the components."""
        return sum(self.components.values())


@dataclass(frozen=True)
class Forecast:
    """A job foretold, stage by stage; all memory is above what the interpreter takes once everything is imported."""

    plan: Plan
    stages: tuple[StageForecast, ...]

    @property
    def largest(self) -> StageForecast:
        """The stage that takes the most memory."""
        return max(self.stages, key=lambda stage: stage.memory_bytes)

    @property
    def memory_bytes(self) -> int:
        """The largest resident size, above the interpreter's."""
        return self.largest.memory_bytes

    @property
    def scratch_bytes(self) -> int:
        """The most that mapped files take at once."""
        return max(stage.scratch_bytes for stage in self.stages)

    @property
    def evaluations(self) -> int:
        """Of all stages."""
        return sum(stage.evaluations for stage in self.stages)

    def to_json(self) -> dict[str, Any]:
        """Return the forecast as JSON types."""
        return {
            "plan": self.plan,
            "memory_bytes": self.memory_bytes,
            "scratch_bytes": self.scratch_bytes,
            "components": dict(self.largest.components),
            "evaluations": self.evaluations,
            "stages": [
                {
                    "size": list(stage.size),
                    "evaluations": stage.evaluations,
                    "memory_bytes": stage.memory_bytes,
                    "windows": stage.windows,
                    "overhead": stage.overhead,
                }
                for stage in self.stages
            ],
        }


def forecast(job: Job, backend: Backend) -> Forecast:
    """Foretell a job on a backend whose memory is known (`impasto.runtime.footprint.is_known`), with no graph built.

    Raises as `footprint` does.
    """
    plan = job.plan or "fused"
    stages: list[StageForecast] = []
    earlier = 0
    for stage in job.stages():
        (width, height), style = job.sizes(stage)
        margin = 2 * job.margin(stage)
        shape = (height + margin, width + margin)
        found = footprint(backend, job.weights, job.objective(stage), shape, style[::-1], plan, job.tile_memory)
        solver = job.preset.solver
        if stage is not None and isinstance(solver, LBFGS | Adam | SGD):
            solver = replace(solver, iterations=stage.iterations)
        stages.append(_stage(job, found, (width, height), shape, style, solver, earlier))
        # The backend keeps its last sessions (`GraphBackend`): beside the one that measures, those of the size before.
        kept = backend.name != "torch" and (plan == "tiled" or not _calibrates(job))
        earlier = found.session if kept else 0
    return Forecast(plan, tuple(stages))


def _stage(
    job: Job,
    found: Footprint,
    size: tuple[int, int],
    shape: tuple[int, int],
    style: tuple[int, int],
    solver: AnySolver,
    earlier: int,
) -> StageForecast:
    image = 12 * math.prod(shape)
    pictures = [job.content, job.style, *([job.start] if job.start is not None else [])]
    held = {
        "weights": sum(tensor.nbytes for tensor in job.weights.tensors.values()) + found.weights,
        "pictures": sum(picture.nbytes for picture in pictures),
        "targets": found.targets,
    }
    vectors = solver_vectors(solver, job.preset.evaluations)
    other, before = 12 * math.prod(style), {"earlier stage": earlier}
    session = {"windows" if found.windows else "session": found.session}
    if job.scratch:
        # What a stage before has left is a plan of windows, too, and closed before this one's is made.
        largest = max(math.prod(picture.size) for picture in pictures)
        moments = [
            {"pictures": held["pictures"], "reading": _READING * largest},
            {**held, **before, "stripes": _STRIPES},
            {**held, **before, "bands": 12 * found.band, "measuring": found.measuring},
            {**held, **session, "bands": _BAND * 12 * found.band},
            {**held, **session, "stripes": max(_STRIPES, 4 * CHUNK * vectors)},
            {**held, **session, "writing": _WRITING * math.prod(job.size)},
        ]
        scratch = (vectors + _VECTORS + 1) * image + other + found.arrays
    else:
        left = {} if found.windows else before
        moments = [
            {**held, **before, "images": image + other, "measuring": found.measuring},
            {**held, **left, "images": _VECTORS * image, "solver": vectors * image, **session},
        ]
        scratch = 0
    components = max(moments, key=lambda held: sum(held.values()))
    return StageForecast(
        size,
        math.prod(shape),
        evaluations(solver, job.preset.evaluations),
        {name: size for name, size in components.items() if size},
        found.windows,
        found.overhead,
        scratch,
    )


def solver_vectors(solver: AnySolver, budget: int | None) -> int:
    """Return how many float32 vectors a solver comes to hold; ``budget`` is the preset's number of evaluations."""
    match solver:
        case LBFGS():
            return 2 * (min(solver.history, solver.iterations) + 1) + 6
        case TorchLBFGS():
            return 2 * (min(solver.history, budget or solver.history) + 1) + 7
        case LBFGSB():
            # Float64 takes two each: SciPy's pairs and 5 vectors, x and gradients before and after, ours.
            return 2 * (2 * _SCIPY_PAIRS + 5 + 8)
        case Adam():
            return 5
        case SGD():
            return 4


def evaluations(solver: AnySolver, budget: int | None) -> int:
    """Return about how many evaluations a solver makes; ``budget`` is the preset's number of them, if it has one."""
    match solver:
        case LBFGS():
            count = round(_LINE_SEARCH * solver.iterations) + 1
        case Adam() | SGD():
            count = solver.iterations + 1
        case LBFGSB():
            count = solver.rounds * solver.maxfun
        case TorchLBFGS():
            assert budget is not None
            count = budget
    return count if budget is None else min(count, budget)


def _calibrates(job: Job) -> bool:
    return any(isinstance(layer, Filters) for layer in job.weights.backbone.needed(job.preset.objective.taps))
