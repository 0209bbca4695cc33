"""A job's prospects: what it will take, whether that fits, and what would."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from impasto.errors import ImpastoError, LimitError
from impasto.runtime.backends.protocol import Backend
from impasto.runtime.fitting import LEAST_HISTORY, can_tile, fitted, largest_size, may_tile, size_in_words
from impasto.runtime.footprint import is_known
from impasto.runtime.forecast import Forecast, forecast
from impasto.runtime.memory import Free, free_memory
from impasto.runtime.painting import Job
from impasto.runtime.presets import solver_name
from impasto.runtime.solvers import LBFGS, Adam, TorchLBFGS


@dataclass(frozen=True)
class Prospect:
    """What is known of a job beforehand.

    ``asked`` is the job as it was asked for, ``painted`` as it would be painted, which may be by another plan or with a
    shorter history (``notes``); None where it does not fit, or where nothing is known of the backend's memory.
    ``limit`` is in bytes, None for none; ``free`` is what the machine has. ``remedies`` are what would make a job fit
    that does not, or fit as it was asked for. ``seconds`` is about how long the evaluations take, None where that was
    not asked.
    """

    size: tuple[int, int]
    preset: str
    solver: str
    backend: str
    precision: str
    asked: Forecast | None
    painted: Forecast | None
    limit: int | None
    free: Free
    notes: tuple[str, ...]
    remedies: tuple[str, ...]
    seconds: float | None

    @property
    def fits(self) -> bool:
        """Tell whether it can be painted within the limit, as far as is known."""
        return self.painted is not None or self.asked is None

    def to_json(self) -> dict[str, Any]:
        """Return everything as JSON types."""
        return {
            "size": list(self.size),
            "preset": self.preset,
            "solver": self.solver,
            "backend": self.backend,
            "precision": self.precision,
            "fits": self.fits,
            "limit_bytes": self.limit,
            "free_bytes": self.free.bytes,
            "free_source": self.free.source,
            "asked": None if self.asked is None else self.asked.to_json(),
            "painted": None if self.painted is None else self.painted.to_json(),
            "seconds": self.seconds,
            "notes": list(self.notes),
            "remedies": list(self.remedies),
        }


def foresee(job: Job, backend: Backend, limit: int | None, *, timed: bool) -> Prospect:
    """Return a job's prospects within ``limit`` bytes above the interpreter's, None for any.

    ``timed`` measures how long an evaluation takes, if that is not in the cache. Raises `ImageError` for pictures too
    small for a tap, `LimitError` for a job in tiles of which even the smallest are beyond their memory.
    """
    asked = painted = None
    notes: tuple[str, ...] = ()
    remedies: tuple[str, ...] = ()
    if is_known(backend):
        asked = painted = forecast(job, backend)
        if limit is not None:
            found = fitted(job, backend, limit)
            painted = None if found is None else found.forecast
            notes = () if found is None else found.notes
            if asked.memory_bytes > limit:
                remedies = tuple(_remedies(job, backend, limit))
    shown = painted or asked
    return Prospect(
        size=job.size,
        preset=job.preset.name,
        solver=solver_name(job.preset.solver),
        backend=backend.name,
        precision=backend.precision,
        asked=asked,
        painted=painted,
        limit=limit,
        free=free_memory(),
        notes=notes,
        remedies=remedies,
        seconds=_seconds(job, backend, shown) if timed and shown is not None else None,
    )


def _seconds(job: Job, backend: Backend, found: Forecast) -> float:
    from impasto.runtime.pace import seconds

    return seconds(job, backend, found)


def _remedies(job: Job, backend: Backend, limit: int) -> Iterator[str]:
    """Yield what would make the job fit, in words, with what it then takes."""
    for words, other in _changes(job, backend):
        try:
            needed = forecast(other, backend).memory_bytes
        except LimitError:
            continue
        if needed <= limit:
            yield f"{words}: about {size_in_words(needed)}"
    size = largest_size(replace(job, plan=job.plan or "fused"), backend, limit)
    if size is not None:
        yield f"{size[0]}×{size[1]} px (--size {max(size)}), untiled"
    if may_tile(job, backend):
        tiled = largest_size(job, backend, limit)
        if tiled is not None and tiled != size and max(tiled) + 16 < max(job.size):
            yield f"{tiled[0]}×{tiled[1]} px (--size {max(tiled)}), tiled"


def _changes(job: Job, backend: Backend) -> Iterator[tuple[str, Job]]:
    preset, solver = job.preset, job.preset.solver
    if job.plan not in (None, "fused"):
        yield "the plan fused (--plan fused)", replace(job, plan="fused")
    if job.plan not in (None, "tiled") and can_tile(backend):
        yield "the plan tiled (leave out --plan)", replace(job, plan="tiled")
    if isinstance(solver, LBFGS | TorchLBFGS) and solver.history > LEAST_HISTORY:
        short = replace(preset, solver=replace(solver, history=LEAST_HISTORY))
        yield f"a history of {LEAST_HISTORY} pairs", replace(job, preset=short)
    if not isinstance(solver, Adam):
        try:
            adam = preset.with_solver("adam")
        except ImpastoError:
            return
        yield "Adam (--solver adam)", replace(job, preset=adam)
