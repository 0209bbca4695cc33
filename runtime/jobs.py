"""Painting a job that is a value: the stylizer it asks for, and its painting."""

from __future__ import annotations

from dataclasses import replace

from impasto.errors import InputError, UsageError
from impasto.optimize.cache import EngineCache
from impasto.runtime.checkpoint import Checkpoint
from impasto.runtime.identity import picture_digest
from impasto.runtime.job_spec import JobSpec
from impasto.runtime.painting import Job, Painting
from impasto.runtime.result import Result
from impasto.runtime.stylizer import Stylizer


def open_stylizer(spec: JobSpec, *, cache: EngineCache | bool = True) -> Stylizer:
    """Return a stylizer as the job asks for it; raises as `Stylizer` and `JobSpec.recipe` do."""
    preset, _ = spec.recipe()
    stylizer = Stylizer(
        preset,
        weights=spec.weights,
        backend=spec.backend,
        plan=spec.plan,
        precision=spec.precision,
        limits=spec.make_limits(),
        cache=cache,
        threads=spec.threads,
        engine_options=spec.engine_options or None,
    )
    try:
        _check_digest(spec, "weights", stylizer.weights.name, stylizer.weights.sha256)
    except InputError:
        stylizer.close()
        raise
    return stylizer


def begin(spec: JobSpec, stylizer: Stylizer, checkpoint: Checkpoint | None = None) -> Painting:
    """Return the painting of a job by a stylizer that was made for it (`open_stylizer`).

    Raises as `read_pictures` and `Stylizer.begin` do.
    """
    return stylizer.painting(read_pictures(spec, stylizer), checkpoint)


def read_pictures(spec: JobSpec, stylizer: Stylizer) -> Job:
    """Return the job with its pictures read, which `Stylizer.painting` paints.

    Raises as `Stylizer.job` does; `UsageError` for a job that names no content or no style, `InputError` for pictures
    that are not those of its digests.
    """
    if spec.content is None or spec.style is None:
        missing = "content" if spec.content is None else "style"
        raise UsageError(f"the job names no {missing}: give the path of a picture")
    scales = "auto" if spec.scales == "preset" else spec.scales
    job = stylizer.job(spec.content, spec.style, size=spec.size, scales=scales, init=spec.init, seed=spec.seed)
    if spec.scales == "preset":
        job = replace(job, preset=replace(job.preset, solver=stylizer.preset.solver, stages=stylizer.preset.stages))
    _check_pictures(spec, job)
    return replace(job, tile_memory=spec.tile_memory)


def paint(spec: JobSpec) -> Result:
    """Paint a job to its end and return the best picture, which is not written; raises as the other two do."""
    with open_stylizer(spec) as stylizer:
        painting = begin(spec, stylizer)
        for _ in painting:
            pass
        return painting.result()


def _check_pictures(spec: JobSpec, job: Job) -> None:
    for name, picture in (("content", job.content), ("style", job.style), ("init", job.start)):
        if picture is not None and name in spec.digests:
            _check_digest(spec, name, picture.name, picture_digest(picture))


def _check_digest(spec: JobSpec, name: str, called: str, digest: str) -> None:
    if spec.digests.get(name, digest) != digest:
        raise InputError(
            f"{name} {called!r} is not what the job was painted with: give that again, or remove {name} from the job's "
            "digests"
        )
