"""The library's entrance: a stylizer holds what is slow to make, and paints one job after the other."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from impasto.errors import UnknownNameError, UsageError
from impasto.models.locate import find_weights
from impasto.models.taps import resolve_tap
from impasto.models.weights import Weights
from impasto.optimize.cache import EngineCache
from impasto.runtime.asynchronous import astylize
from impasto.runtime.backends.protocol import PLANS, Plan
from impasto.runtime.backends.select import open_automatic, open_backend
from impasto.runtime.checkpoint import Checkpoint
from impasto.runtime.default import choose
from impasto.runtime.fitting import fit
from impasto.runtime.job_spec import is_path
from impasto.runtime.limits import DEFAULT_LIMITS, Limits
from impasto.runtime.loop import Step
from impasto.runtime.memory import free_memory
from impasto.runtime.painting import Job, Painting
from impasto.runtime.presets import INITS, Preset
from impasto.runtime.prospect import Prospect, foresee
from impasto.runtime.read_image import Source, read_image
from impasto.runtime.result import Result
from impasto.runtime.scales import Scales, with_scales

_TIMED = 8
"""Iterations by which a plan is timed: the first few capture graphs and fill caches."""


class Stylizer:
    """Paints pictures; weights and compiled sessions stay warm from job to job. A context manager.

    ``preset`` is a name or a `Preset`; ``weights`` a name, a path or a `Weights`, by default the preset's. The preset
    ``impasto`` paints with VGG-19 if that is in the cache, else with the filter bank (`impasto.runtime.default`).
    ``backend`` is ``auto`` or one of `impasto.runtime.backends.select.BACKENDS`; ``plan`` is ``fused`` or ``sliced``,
    by default the backend's; ``precision`` is ``fp32``, ``tf32``, ``fp16`` or ``bf16``, by default the backend's.
    ``cache`` keeps engines between processes (False: do not), ``threads`` is the number of CPU threads (all that are
    available), ``engine_options`` are those of `open_backend`.

    ``notes`` is what every result has to tell about these choices; ``passed_over`` says why ``auto`` did not take the
    backends that it prefers.

    One job at a time: a second thread that asks meanwhile gets a `UsageError`. Raises `UnknownNameError` for unknown
    names, `MissingTapError` for a preset that needs more than the weights have, `UnavailableError` for weights that
    were not fetched or a backend that is not installed, `WeightsError` for weights that are no good.
    """

    def __init__(
        self,
        preset: str | Preset = "impasto",
        *,
        weights: str | Path | Weights | None = None,
        backend: str = "auto",
        plan: Plan | None = None,
        precision: str | None = None,
        limits: Limits | None = None,
        cache: EngineCache | bool = True,
        threads: int | None = None,
        engine_options: Mapping[str, object] | None = None,
    ) -> None:
        if plan is not None and plan not in PLANS:
            raise UnknownNameError("plan", plan, PLANS)
        if threads is not None and threads < 1:
            raise UsageError(f"threads is {threads}: give at least 1")
        asked, note = choose(preset, weights) if isinstance(preset, str) else (preset, None)
        self.limits = limits or Limits()
        self._threads = threads
        self.weights = weights if isinstance(weights, Weights) else find_weights(weights or asked.weights)
        self.preset = asked.for_weights(self.weights)
        # Last of what can fail, for a GPU that is open must be closed again.
        self._owned = EngineCache() if cache is True else None
        engines = self._owned if isinstance(cache, bool) else cache
        self.passed_over: dict[str, str] = {}
        if backend == "auto":
            self.backend, self.passed_over = open_automatic(engines, threads, precision, engine_options)
        else:
            self.backend = open_backend(backend, engines, threads, precision, engine_options)
        self.plan = plan
        self.backend.settle(self.weights, self.preset.objective, plan)
        reached = self.weights.taps
        left_out = [t for t in asked.objective.taps if resolve_tap(self.weights.backbone, t) not in reached]
        notes = [note] if note else []
        if asked.adapt and left_out:
            notes.append(
                f"weights {self.weights.name!r} do not reach {', '.join(left_out)}: preset {asked.name!r} does without"
            )
        self.notes = tuple(notes)
        self._settings = _settings(weights or asked.weights, self.limits, engine_options)
        self._busy = threading.Lock()

    def __enter__(self) -> Stylizer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Free sessions and temporary engines; the object can still be used, and starts cold."""
        self.backend.close()
        if self._owned is not None:
            self._owned.close()

    def stylize(
        self,
        content: Source,
        style: Source,
        *,
        size: int | None = None,
        iterations: int | None = None,
        scales: Scales = "auto",
        init: Source | str | None = None,
        seed: int = 0,
        checkpoint: Checkpoint | None = None,
    ) -> Result:
        """Paint ``content`` in the style of ``style`` to the end and return the best picture; see `steps`."""
        painting = self.begin(
            content, style, size=size, iterations=iterations, scales=scales, init=init, seed=seed, checkpoint=checkpoint
        )
        for _ in self._exclusively(painting):
            pass
        return painting.result()

    def steps(
        self,
        content: Source,
        style: Source,
        *,
        size: int | None = None,
        iterations: int | None = None,
        scales: Scales = "auto",
        init: Source | str | None = None,
        seed: int = 0,
        checkpoint: Checkpoint | None = None,
    ) -> Iterator[Step]:
        """Paint step by step: yields a `Step` for each evaluation; leave the loop to stop.

        Pictures are paths, bytes, Pillow images or arrays, as `read_image` takes them. ``size`` is the long side of
        the result in pixels (the preset's own size if it is not given; a picture already of that size is not
        resampled). ``iterations`` replaces the preset's. ``scales`` are the sizes to paint
        at, one after the other (`impasto.runtime.scales`): ``auto``, a number of them, or their shares of the result's.
        ``init`` is ``content``, ``noise``, ``style`` or a picture to start from. ``seed`` draws the noise.
        ``checkpoint`` is where the painting's state is kept, and whether to go on from there.

        A job that does not fit into the memory that the limits leave is tiled, unless a plan was named, and its L-BFGS
        keeps fewer pairs; the result's notes say so.

        Raises `ImageError` for pictures that cannot be read or are too small, `LimitError` for a job beyond the
        limits, `DivergenceError` when the loss stops being finite and shorter steps do not help; and for a checkpoint
        as `Painting` does.
        """
        painting = self.begin(
            content, style, size=size, iterations=iterations, scales=scales, init=init, seed=seed, checkpoint=checkpoint
        )
        return self._exclusively(painting)

    async def astylize(
        self,
        content: Source,
        style: Source,
        *,
        deadline: float | None = None,
        each: Callable[[Step], None] | None = None,
        **options: Any,
    ) -> Result:
        """Paint from asyncio; see `impasto.runtime.asynchronous.astylize`."""
        return await astylize(self, content, style, deadline=deadline, each=each, **options)

    def health(self) -> dict[str, Any]:
        """Return what a service tells of itself, as JSON types, at once: whether a job is painted, and by what."""
        return {
            "painting": self._busy.locked(),
            "preset": self.preset.name,
            "weights": {"name": self.weights.name, "sha256": self.weights.sha256},
            "backend": self.backend.name,
            "precision": self.backend.precision,
            "versions": self.backend.versions(),
            "passed_over": dict(self.passed_over),
            "free_memory_bytes": free_memory().bytes,
            "notes": list(self.notes),
        }

    def warm_up(self, width: int, height: int) -> None:
        """Compile what painting a picture of that size needs, so that the first job does not wait for it.

        A backend whose faster plan is to be found out does some iterations by each. Raises as `stylize` does;
        `ImageError` for a size that is too small.
        """
        ramp = np.linspace(0, 1, height * width * 3, dtype=np.float32).reshape(height, width, 3)
        compared = self.backend.plans if self.plan is None and len(self.backend.plans) > 1 else ()
        job = self.job(ramp, ramp[::-1], size=max(width, height))
        iterations = max(1, len(job.preset.stages)) * (_TIMED if compared else 1)
        job = replace(job, preset=job.preset.with_iterations(iterations))
        for plan in compared or (self.plan,):
            for _ in self._exclusively(self.painting(replace(job, plan=plan))):
                pass

    def begin(
        self,
        content: Source,
        style: Source,
        *,
        size: int | None = None,
        iterations: int | None = None,
        scales: Scales = "auto",
        init: Source | str | None = None,
        seed: int = 0,
        checkpoint: Checkpoint | None = None,
    ) -> Painting:
        """Return a `Painting`: the steps of `steps`, and `Painting.result` at any time.

        Paintings of one stylizer must be run one after the other.
        """
        job = self.job(content, style, size=size, iterations=iterations, scales=scales, init=init, seed=seed)
        return self.painting(job, checkpoint)

    def foresee(
        self,
        content: Source,
        style: Source,
        *,
        size: int | None = None,
        iterations: int | None = None,
        scales: Scales = "auto",
        init: Source | str | None = None,
        timed: bool = True,
    ) -> Prospect:
        """Return what a job would take, whether that fits into the memory that is allowed, and what would.

        Nothing is painted. With ``timed`` an evaluation is timed at a small size, unless that was done before. Raises
        as `begin` does, but for memory.
        """
        job = self.job(content, style, size=size, iterations=iterations, scales=scales, init=init)
        with self.exclusive():
            return foresee(job, self.backend, self._memory(job), timed=timed)

    def job(
        self,
        content: Source,
        style: Source,
        *,
        size: int | None = None,
        iterations: int | None = None,
        scales: Scales = "auto",
        init: Source | str | None = None,
        seed: int = 0,
    ) -> Job:
        """Return the job that `begin` would paint if memory did not matter, its pictures read; raises as `begin`."""
        if size is not None and size < 1:
            raise UsageError(f"size is {size}: give at least 1 pixel")
        if not 0 <= seed < 2**32:
            raise UsageError(f"seed is {seed}: give a whole number from 0 to 2³²-1")
        asked = self.preset if iterations is None else self.preset.with_iterations(iterations)
        picture = read_image(content, self.limits)
        sizing = asked.sizing if size is None else asked.sizing.with_size(size)
        preset = with_scales(asked, scales, max(sizing.apply(*picture.size)))
        job = Job(
            content=picture,
            style=read_image(style, self.limits),
            preset=preset,
            weights=self.weights,
            plan=self.plan,
            sizing=sizing,
            seed=seed,
            threads=self._threads,
            notes=self.notes,
            settings=self._settings,
        )
        self.limits.check_long_side(*job.size)
        self.limits.check_iterations(preset.total_iterations())
        self.limits.check_evaluations(preset.evaluations or preset.total_iterations())
        return _with_init(job, init, self.limits)

    def painting(self, job: Job, checkpoint: Checkpoint | None = None) -> Painting:
        """Return the painting of a job that `job` made, fitted into memory; raises as `begin` does."""
        found = fit(job, self.backend, self._memory(job))
        return Painting(replace(found.job, notes=(*job.notes, *found.notes)), self.backend, checkpoint)

    def _memory(self, job: Job) -> int | None:
        """Return the memory that the job may take in bytes, which counts what it holds already."""
        tensors = sum(tensor.nbytes for tensor in self.weights.tensors.values())
        return self.limits.memory_bytes(tensors + job.content.nbytes + job.style.nbytes)

    def _exclusively(self, painting: Painting) -> Iterator[Step]:
        with self.exclusive():
            yield from painting

    @contextmanager
    def exclusive(self, *, wait: bool = False) -> Iterator[None]:
        """Hold the stylizer for one job; raise `UsageError` if another thread does, or wait for its turn."""
        if not self._busy.acquire(blocking=wait):
            raise UsageError("this Stylizer is painting already: make one for each thread, or wait for it to end")
        try:
            yield
        finally:
            self._busy.release()


def _settings(
    weights: str | Path | Weights, limits: Limits, engine_options: Mapping[str, object] | None
) -> dict[str, Any]:
    """Return what a `JobSpec` says of how a stylizer was made, beside what the job and the backend know."""
    named: str | None = None
    if not isinstance(weights, Weights):
        named = os.fspath(weights)
        named = str(Path(named).resolve()) if is_path(named) else named
    changed = {name: value for name, value in limits.to_json().items() if value != getattr(DEFAULT_LIMITS, name)}
    return {"weights": named, "limits": changed, "engine_options": dict(engine_options or {})}


def _with_init(job: Job, init: Source | str | None, limits: Limits) -> Job:
    if init is None:
        return job
    if isinstance(init, str) and init in INITS:
        return replace(job, preset=replace(job.preset, init=init))
    if isinstance(init, str) and not Path(init).exists():
        raise UnknownNameError("init", init, [*INITS, "a picture's path"])
    return replace(job, start=read_image(init, limits))
