"""Making a job fit into the memory that it may take, or saying which one would."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from tempfile import gettempdir

from impasto.errors import ImageError, LimitError
from impasto.runtime.backends.graphs import GraphBackend
from impasto.runtime.backends.protocol import Backend
from impasto.runtime.footprint import is_known
from impasto.runtime.forecast import Forecast, forecast
from impasto.runtime.painting import Job
from impasto.runtime.plans.tiling import TILED_MEMORY
from impasto.runtime.scratch import free_room
from impasto.runtime.solvers import LBFGS, LBFGSB, TorchLBFGS

LEAST_HISTORY = 5
"""Pairs below which L-BFGS is no better than cheaper solvers (Nocedal & Wright, 2nd ed., section 7.2: 3 to 20)."""

_TILE_MEMORIES = tuple(TILED_MEMORY >> shift for shift in range(6))
"""What windows are given, the most that fits: steps far apart, so that a checkpoint's job is cut as it was before."""

_SURE_BYTES, _SURE_BYTES_PER_PIXEL = 3 * 10**9, 16_000
"""More than any preset, plan and backend takes: what is below the limit by this need not be foretold."""

_STEP = 16
"""Pixels to which the size that would fit is found."""


@dataclass(frozen=True, eq=False)
class Fitted:
    """A job as it fits: perhaps by another plan, in smaller windows, in files, or with a shorter history.

    ``notes`` say what was changed; ``forecast`` is of the job as it is now, None where nothing had to be foretold.
    """

    job: Job
    forecast: Forecast | None
    notes: tuple[str, ...] = ()


def fit(job: Job, backend: Backend, limit: int | None) -> Fitted:
    """Return the job so that it takes at most ``limit`` bytes above the interpreter's; None is no limit.

    What does not fit is tiled, where no plan was named and the backend can; then everything as large as the picture is
    kept in mapped files, where the disk has room for them; and then L-BFGS's history is shortened, to `LEAST_HISTORY`
    pairs at least. Jobs on a GPU are left as they are. Raises `LimitError` with the size that would fit.
    """
    if limit is None or not is_known(backend) or _is_sure(job, limit):
        return Fitted(job, None)
    found = fitted(job, backend, limit)
    if found is None:
        raise LimitError(_refusal(job, backend, limit))
    return found


def fitted(job: Job, backend: Backend, limit: int) -> Fitted | None:
    """Return what `fit` does, None for a job that cannot be made to fit."""
    whole = _foretold(job, backend)
    if whole is not None and whole.memory_bytes <= limit:
        return Fitted(job, whole)
    least = _with_history(job, LEAST_HISTORY)
    for other in (job, least):
        # With the history as short as may be, what windows leave is given back to it.
        for variant in _variants(other, backend):
            if _fits(variant, backend, limit):
                return _described(job, _lengthened(variant, job, backend, limit), whole, backend, limit)
    return None


def largest_size(job: Job, backend: Backend, limit: int) -> tuple[int, int] | None:
    """Return width and height of the largest result that fits, to `_STEP` pixels; None where none does."""
    low, high = 0, max(job.size)
    while high - low > _STEP:
        middle = (low + high) // 2
        if _fits_somehow(with_long_side(job, middle), backend, limit):
            low = middle
        else:
            high = middle
    return with_long_side(job, low).size if low else None


def with_long_side(job: Job, pixels: int) -> Job:
    """Return the job for a result in the same shape, whose long side has about that many pixels."""
    share = pixels / max(job.size)
    return replace(job, sizing=replace(job.sizing, pixels=max(1, int(job.sizing.pixels * share))))


def _is_sure(job: Job, limit: int) -> bool:
    width, height = job.size
    margin = 2 * job.preset.margin
    return _SURE_BYTES + _SURE_BYTES_PER_PIXEL * (width + margin) * (height + margin) <= limit


def _variants(job: Job, backend: Backend) -> Iterator[Job]:
    """Yield the job by the plans that it may be painted by, in order of preference."""
    if job.plan != "tiled":
        yield job
    if job.plan == "tiled" or may_tile(job, backend):
        # SciPy's vectors are its own.
        for scratch in (False,) if isinstance(job.preset.solver, LBFGSB) else (False, True):
            for memory in _TILE_MEMORIES:
                yield replace(job, plan="tiled", tile_memory=memory, scratch=scratch)


def may_tile(job: Job, backend: Backend) -> bool:
    """Tell whether a job that does not fit may be tiled: no plan was named."""
    return job.plan is None and can_tile(backend)


def can_tile(backend: Backend) -> bool:
    """Tell whether the backend has the plan ``tiled``."""
    return isinstance(backend, GraphBackend) and is_known(backend) and backend.precision != "fp16"


def _foretold(job: Job, backend: Backend) -> Forecast | None:
    """Foretell the job, None for windows that cannot be as small as it asks."""
    try:
        return forecast(job, backend)
    except LimitError:
        return None


def _fits(job: Job, backend: Backend, limit: int) -> bool:
    found = _foretold(job, backend)
    return found is not None and found.memory_bytes <= limit and has_room(found)


def has_room(found: Forecast) -> bool:
    """Tell whether the disk has room for a job's files."""
    return found.scratch_bytes == 0 or found.scratch_bytes <= free_room()


def _fits_somehow(job: Job, backend: Backend, limit: int) -> bool:
    try:
        for variant in reversed(list(_variants(_with_history(job, LEAST_HISTORY), backend))):
            found = _foretold(variant, backend)
            # The smallest windows that there can be take the least.
            if found is not None and has_room(found):
                return found.memory_bytes <= limit
    except ImageError:
        pass
    return False


def _with_history(job: Job, pairs: int) -> Job:
    solver = job.preset.solver
    if not isinstance(solver, LBFGS | TorchLBFGS) or solver.history <= pairs:
        return job
    return replace(job, preset=replace(job.preset, solver=replace(solver, history=pairs)))


def _lengthened(variant: Job, job: Job, backend: Backend, limit: int) -> Job:
    """Return a variant that fits with as long a history, up to the job's own, as still does."""
    low, high = _history(variant), _history(job)
    while low < high:
        middle = (low + high + 1) // 2
        longer = _with_history(replace(variant, preset=job.preset), middle)
        if _fits(longer, backend, limit):
            variant, low = longer, middle
        else:
            high = middle - 1
    return variant


def _history(job: Job) -> int:
    solver = job.preset.solver
    return solver.history if isinstance(solver, LBFGS | TorchLBFGS) else 0


def _described(job: Job, found: Job, whole: Forecast | None, backend: Backend, limit: int) -> Fitted:
    foretold = forecast(found, backend)
    notes = []
    if found.plan != job.plan:
        assert whole is not None
        stage = foretold.stages[-1]
        notes.append(
            f"tiled, since {size_in_words(whole.memory_bytes)} do not fit into {size_in_words(limit)}: "
            f"{stage.windows} windows, {stage.overhead:.2f} times the arithmetic"
        )
    if found.scratch:
        notes.append(
            f"pictures and the solver's vectors are in files, since memory is not enough: "
            f"{size_in_words(foretold.scratch_bytes)} in {gettempdir()}"
        )
    if _history(found) != _history(job):
        notes.append(
            f"history shortened from {_history(job)} to {_history(found)} pairs, to fit into {size_in_words(limit)}"
        )
    return Fitted(found, foretold, tuple(notes))


def _refusal(job: Job, backend: Backend, limit: int) -> str:
    width, height = job.size
    need = _foretold(job, backend)
    needs = "more memory than that in the smallest tiles" if need is None else size_in_words(need.memory_bytes)
    size = largest_size(job, backend, limit)
    remedy = "no size does: free memory" if size is None else f"{size[0]}×{size[1]} would fit (--size {max(size)})"
    if job.plan not in (None, "tiled") and can_tile(backend):
        remedy += ", or leave out --plan, so that it can be tiled"
    in_files = [_foretold(each, backend) for each in _variants(job, backend) if each.scratch]
    room = [each.scratch_bytes for each in in_files if each is not None and each.memory_bytes <= limit]
    if room:
        remedy += f", or {size_in_words(room[0])} of room in {gettempdir()} (TMPDIR) for files"
    return (
        f"a result of {width}×{height} pixels needs {needs} and {size_in_words(limit)} are allowed: {remedy}; "
        "--memory-limit raises what is allowed"
    )


def size_in_words(size: int) -> str:
    """Return a number of bytes as ``1.23 GB``."""
    return f"{size / 1e9:.2f} GB"
