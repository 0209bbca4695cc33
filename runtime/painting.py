"""A painting under way: the stages of one job, step by step."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from impasto.errors import Interrupted, UsageError
from impasto.export.forward import check_size
from impasto.export.objective import Objective
from impasto.models.conventions import pixel_space
from impasto.models.weights import Weights
from impasto.runtime.backends.protocol import Backend, Plan
from impasto.runtime.canvas import image_of, picture_of
from impasto.runtime.checkpoint import Checkpoint, CheckpointWriter
from impasto.runtime.gpu.hosted import HostedEvaluator
from impasto.runtime.gpu.loop import DeviceBest, descend_on_device
from impasto.runtime.identity import check_repeatable, identity
from impasto.runtime.images import Colours, Picture, Sizing, resize, to_uint8
from impasto.runtime.job_spec import described
from impasto.runtime.loop import Best, LoopState, Observation, Step, clock, descend
from impasto.runtime.painting_state import PaintingState
from impasto.runtime.presets import AnySolver, Preset, Stage
from impasto.runtime.problem import Evaluator, FloatArray, Problem
from impasto.runtime.result import Result, Stop, TracePoint, peak_memory, sums
from impasto.runtime.scratch import Allocate, in_memory, mapped
from impasto.runtime.solvers import LBFGS, SGD, Adam
from impasto.runtime.solvers.vectors import chunks
from impasto.runtime.targets import measure_images

AnyBest = Best | DeviceBest


@dataclass(frozen=True, eq=False)
class Job:
    """One request: what to paint, how, and how large.

    ``preset`` is already that of the weights (`Preset.for_weights`); ``sizing`` the rule for the result's size;
    ``start`` a picture to start from instead of what the preset's ``init`` says; ``seed`` draws the noise. A ``plan``
    of None is the backend's choice for each stage. ``tile_memory`` is what the plan ``tiled`` may take in bytes beside
    the pictures and the solver's vectors, None for what it takes by itself. ``threads`` are the backend's, None for
    all that are available. With ``scratch`` everything as large as the result is kept in mapped files, and not in
    memory; that changes no bit of the result. ``settings`` are fields of a `impasto.runtime.job_spec.JobSpec` that say
    how the stylizer was made.
    """

    content: Picture
    style: Picture
    preset: Preset
    weights: Weights
    plan: Plan | None
    sizing: Sizing
    start: Picture | None = None
    seed: int = 0
    tile_memory: int | None = None
    threads: int | None = None
    scratch: bool = False
    notes: tuple[str, ...] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def allocate(self) -> Allocate:
        """What makes arrays as large as the result."""
        return mapped if self.scratch else in_memory

    @property
    def size(self) -> tuple[int, int]:
        """Width and height of the result."""
        return self.sizing.apply(*self.content.size)

    def sizes(self, stage: Stage | None) -> tuple[tuple[int, int], tuple[int, int]]:
        """Width and height that the content and the style picture get in a stage; None is that of the result."""
        sizing = self.sizing if stage is None else _scaled(self.sizing, stage.scale)
        size = sizing.apply(*self.content.size)
        return size, style_size(self.preset, self.style, size, sizing)

    def stages(self) -> list[Stage | None]:
        """The stages to paint, without those, before the last, at which a picture is too small for a tap."""
        stages = self.preset.stages
        return [*filter(self._is_large_enough, stages[:-1]), *stages[-1:]] or [None]

    def objective(self, stage: Stage | None) -> Objective:
        """The objective of a stage: that of the preset for the stage's sizes."""
        return self.preset.objective_at(self.weights, *(size[::-1] for size in self.sizes(stage)))

    def margin(self, stage: Stage | None) -> int:
        """The margin of a stage in pixels, no wider than the picture can be reflected."""
        share = 1.0 if stage is None else stage.scale
        return min(round(self.preset.margin * share), min(self.sizes(stage)[0]) - 1)

    def _is_large_enough(self, stage: Stage) -> bool:
        need = max(self.weights.backbone.smallest(tap) for tap in self.objective(stage).taps)
        return min(min(side) for side in self.sizes(stage)) >= need


_UNTIMED = 3
"""Evaluations of a stage that do not count for how long one takes: the first few load, allocate and capture."""


@dataclass(frozen=True, eq=False)
class _Canvas:
    """What a stage is painted on.

    ``unit`` is what the objective was divided by, ``scale`` the size of an ordinary loss, ``took`` is told what an
    evaluation takes.
    """

    evaluator: Evaluator
    best: AnyBest
    unit: float
    scale: float
    took: Callable[[float], None]


class Painting:
    """An iterator over the steps of one job, which holds the best picture so far.

    Leaving the loop, `close`, and any exception in it (KeyboardInterrupt too) stop between two evaluations or after
    the one under way; `result` then has the best picture up to there.

    With a checkpoint the state is written now and then, and a job that was killed goes on to the same picture, bit for
    bit: ``resumed`` is the last evaluation of those that are not made again, None at the beginning of a job. A failure
    to write is logged and nothing else. Raises `UsageError` for a backend that has no checkpoints, `OutputError` for a
    file that cannot be written, `CheckpointError` for one that cannot be resumed by this job.
    """

    def __init__(self, job: Job, backend: Backend, checkpoint: Checkpoint | None = None) -> None:
        self._job = job
        self._backend = backend
        self._seconds = clock()
        self._loop_seconds: Callable[[], float] | None = None
        self._trace: list[TracePoint] = []
        self._best: AnyBest | None = None
        self._stage: Stage | None = None
        self._plan: Plan | None = None
        self._losses: dict[str, float] = {}
        self._stop: Stop = "stopped"
        self._writer: CheckpointWriter | None = None
        self._saved: PaintingState | None = None
        self.resumed: TracePoint | None = None
        if checkpoint is not None:
            check_repeatable(backend)
            self._writer = CheckpointWriter(checkpoint, identity(job, backend, _versions(backend)))
            self._resume(self._writer)
        self._steps = self._run()

    def __iter__(self) -> Iterator[Step]:
        return self

    def __next__(self) -> Step:
        try:
            return next(self._steps)
        except KeyboardInterrupt:
            self._stop = "interrupted"
            raise

    @property
    def job(self) -> Job:
        """What is painted."""
        return self._job

    def close(self) -> None:
        """Stop; `result` stays available."""
        self._steps.close()

    def result(self) -> Result:
        """Return the best picture so far, at the size of the result; raise `Interrupted` if there is none yet."""
        if self._best is None or not self._losses:
            raise Interrupted("stopped before the first evaluation: there is no picture yet")
        job, preset = self._job, self._job.preset
        picture = resize(self._picture(self._best, self._stage), job.size, job.allocate)
        objective = job.objective(self._stage)
        alpha = job.content.alpha
        return Result(
            image=picture,
            alpha=None if alpha is None else resize(alpha, job.size),
            preset=preset.name,
            backend=self._backend.name,
            precision=self._backend.precision,
            plan=self._plan or "",
            weights={"name": job.weights.name, "sha256": job.weights.sha256},
            taps={"content": list(objective.content), "style": list(objective.style)},
            loss=sums(self._losses),
            terms=self._losses,
            trace=tuple(self._trace),
            seconds=self._seconds(),
            peak_memory_bytes=peak_memory(),
            seed=job.seed,
            versions=_versions(self._backend),
            stop=self._stop,
            notes=(*job.notes, *job.content.notes, *job.style.notes, *self._checkpoint_notes()),
            job=self._described,
        )

    @cached_property
    def _described(self) -> Mapping[str, Any]:
        return described(self._job, self._backend)

    def _resume(self, writer: CheckpointWriter) -> None:
        found = writer.load()
        if found is not None:
            self._saved = PaintingState.from_checkpoint(*found, self._job.allocate)
            self._trace = list(self._saved.trace)
            self._seconds = clock(self._saved.seconds)
            self._loop_seconds = clock(self._trace[-1].seconds)
            self.resumed = self._trace[-1]

    def _checkpoint_notes(self) -> list[str]:
        notes = []
        if self.resumed is not None:
            notes.append(f"resumed after {self.resumed.evaluation} evaluations")
        if self._writer is not None and self._writer.written:
            notes.append(f"{self._writer.written} checkpoints written in {self._writer.seconds:.1f} s")
        return notes

    def _run(self) -> Generator[Step, None, None]:
        for number, stage in enumerate(self._job.stages()):
            if self._saved is None or number == self._saved.stage:
                yield from self._paint(stage, number)
        self._stop = "done"

    def _prepare(self, stage: Stage | None, saved: PaintingState | None) -> _Canvas:
        """Return what a stage is painted on: what was saved, or its start.

        A method of its own, so that pictures which only the targets need are gone while the stage is painted.
        """
        job, preset = self._job, self._job.preset
        size, style_size = job.sizes(stage)
        objective = job.objective(stage)
        # The margin makes no picture large enough; an error names the picture's own size.
        check_size(job.weights, objective.taps, (size[1], size[0]))
        space = pixel_space(objective.pixels)
        style = image_of(space, job.style.pixels, style_size, allocate=job.allocate)
        content = image_of(space, job.content.pixels, size, job.margin(stage), job.allocate)
        by = job.plan or "fused"
        targets = measure_images(self._backend, job.weights, objective, content, style, by, job.tile_memory)
        unit = _unit(objective, preset.solver)
        problem = Problem(objective.scaled(1 / unit), job.weights, targets, (content.shape[2], content.shape[3]))
        plan = job.plan or self._backend.plan_for(problem)
        evaluator = self._backend.prepare(problem, plan, job.tile_memory)
        self._plan = plan
        best: AnyBest
        if saved is not None:
            best = saved.best
        else:
            start = self._start(content, stage)
            best = DeviceBest(start) if _stays_on_device(evaluator, preset.solver) else Best(start)
        took = partial(self._backend.took, problem, plan)
        return _Canvas(evaluator, best, unit, problem.scale(), took)

    def _paint(self, stage: Stage | None, number: int) -> Generator[Step, None, None]:
        preset = self._job.preset
        size, _ = self._job.sizes(stage)
        saved, self._saved = self._saved, None
        canvas = self._prepare(stage, saved)
        best = canvas.best
        self._best, self._stage = best, stage
        began = len(self._trace)
        resume = None
        if saved is not None:
            began, resume = saved.began, saved.loop
            self._losses = _times(best.terms or {}, canvas.unit)
        if self._loop_seconds is None:
            self._loop_seconds = clock()
        seconds = self._loop_seconds
        done = self._trace[began - 1] if began else TracePoint(0, 0, 0.0, 0.0)
        solver = _staged(preset.solver, stage)

        def preview() -> NDArray[np.uint8]:
            if isinstance(best, DeviceBest) and best.is_on_device:
                return best.rgb(pixel_space(preset.objective.pixels), self._job.margin(stage))
            return to_uint8(self._picture(best, stage))

        laps = []
        with closing(_descent(canvas, solver, preset.evaluations, resume)) as descent:
            lap = clock()
            for seen in descent:
                laps.append(lap())
                terms = _times(seen.terms, canvas.unit)
                if best.terms is not None:
                    self._losses = _times(best.terms, canvas.unit)
                step = Step(
                    iteration=done.iteration + seen.iteration,
                    evaluation=done.evaluation + seen.evaluation,
                    seconds=seconds(),
                    loss=float(sum(terms.values())),
                    terms=terms,
                    best=seen.improved,
                    size=size,
                    preview=preview,
                )
                self._trace.append(TracePoint(step.iteration, step.evaluation, step.seconds, step.loss))
                if self._writer is not None and self._writer.due() and seen.state is not None:
                    assert isinstance(best, Best)
                    state = PaintingState(number, began, self._seconds(), self._trace, best, seen.state())
                    self._writer.write(*state.to_checkpoint())
                yield step
                lap = clock()  # what the caller does with a step is not the plan's
        if len(laps) > _UNTIMED:
            canvas.took(float(np.median(laps[_UNTIMED:])))

    def _picture(self, best: AnyBest, stage: Stage | None) -> FloatArray:
        """Return the best picture of a stage without its margin."""
        job = self._job
        return picture_of(pixel_space(job.preset.objective.pixels), best.image, job.margin(stage), job.allocate)

    def _start(self, content: FloatArray, stage: Stage | None) -> FloatArray:
        """Return the image that a stage starts from, perhaps that of the content picture."""
        job, preset = self._job, self._job.preset
        size, style_size = job.sizes(stage)
        picture: Colours
        if self._best is not None:
            picture = self._picture(self._best, self._stage)
        elif job.start is not None:
            picture = job.start.pixels
        elif preset.init == "noise":
            # RandomState's stream is frozen: the same seed starts from the same noise everywhere.
            random, noise = np.random.RandomState(job.seed), job.allocate(content.shape)
            for (part,) in chunks(noise.reshape(-1)):
                part[:] = random.standard_normal(part.size) * preset.noise
            return noise
        elif preset.init == "style":
            picture = resize(job.style.rgb, style_size, job.allocate)
        else:
            return content
        return image_of(pixel_space(preset.objective.pixels), picture, size, job.margin(stage), job.allocate)


def _stays_on_device(evaluator: Evaluator, solver: AnySolver) -> bool:
    return isinstance(evaluator, HostedEvaluator) and isinstance(solver, LBFGS | Adam)


def _descent(
    canvas: _Canvas, solver: AnySolver, evaluations: int | None, resume: LoopState | None
) -> Generator[Observation, None, None]:
    """Descend where the vectors are: on the device if both its evaluator and its solver are there."""
    evaluator, best = canvas.evaluator, canvas.best
    if isinstance(best, DeviceBest):
        assert isinstance(evaluator, HostedEvaluator)
        assert isinstance(solver, LBFGS | Adam)
        return descend_on_device(evaluator.on_device, solver, best, scale=canvas.scale, max_evaluations=evaluations)
    return descend(evaluator, solver, best, scale=canvas.scale, max_evaluations=evaluations, resume=resume)


def style_size(preset: Preset, style: Picture, size: tuple[int, int], sizing: Sizing) -> tuple[int, int]:
    """Return width and height that the style picture gets beside a result of ``size``, sized by ``sizing``."""
    return size if preset.style_fit == "result" else sizing.apply(*style.size)


def _unit(objective: Objective, solver: AnySolver) -> float:
    """Return by what to divide the objective for a solver that its scale does not matter to.

    The largest weight, so that losses and gradients stay well inside float32 whatever the weights are.
    """
    largest = max([*objective.content.values(), *objective.style.values(), objective.tv])
    return largest if isinstance(solver, LBFGS | Adam) and largest > 0 else 1.0


def _times(terms: Mapping[str, float], factor: float) -> dict[str, float]:
    return {name: value * factor for name, value in terms.items()}


def _staged(solver: AnySolver, stage: Stage | None) -> AnySolver:
    if stage is None:
        return solver
    if not isinstance(solver, LBFGS | Adam | SGD):
        raise UsageError("stages need a solver with a number of iterations: lbfgs, adam or sgd")
    return replace(solver, iterations=stage.iterations)


def _scaled(sizing: Sizing, scale: float) -> Sizing:
    return replace(sizing, pixels=max(1, round(sizing.pixels * scale)))


def _versions(backend: Backend) -> dict[str, str]:
    import platform

    from impasto import __version__

    return {
        "impasto": __version__,
        "python": platform.python_version(),
        "numpy": np.__version__,
        **backend.versions(),
    }
