"""``impasto batch``."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from impasto.cli import options
from impasto.cli.console import emit_json, say, spoken_warnings
from impasto.errors import BatchError, Interrupted

if TYPE_CHECKING:
    from impasto.runtime.batch import BatchJson, Outcome


def batch(
    context: typer.Context,
    images: Annotated[list[str], typer.Argument(metavar="IMAGES…", help="Pictures, folders of them, and patterns.")],
    out: Annotated[Path, typer.Option("--out", "-o", metavar="DIR", help="Folder for the paintings; made if need be.")],
    style: Annotated[Path | None, typer.Option(metavar="STYLE", help="Picture whose style is taken.")] = None,
    config: options.Config = None,
    format: Annotated[str, typer.Option(metavar="png|jpg|webp|tiff", help="Of the paintings.")] = "png",
    jobs: Annotated[
        int | None,
        typer.Option(min=1, metavar="N", help="Pictures at the same time. (default: as CPUs and memory allow)"),
    ] = None,
    size: Annotated[
        int | None, typer.Option(min=1, help="Long side of the results in pixels. (default: the preset's)")
    ] = None,
    iterations: Annotated[
        int | None, typer.Option(min=1, help="Iterations of the solver. (default: the preset's)")
    ] = None,
    scales: options.ScalesOption = "auto",
    preset: options.PresetOption = options.DEFAULT_PRESET,
    init: Annotated[
        str | None,
        typer.Option(metavar="content|noise|style|PATH", help="What to start from. (default: the preset's)"),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, max=2**32 - 1, help="Seed of the noise.")] = 0,
    content_weight: options.ContentWeight = None,
    style_weight: options.StyleWeight = None,
    tv_weight: options.TvWeight = None,
    pooling: options.PoolingOption = None,
    solver: Annotated[
        str | None,
        typer.Option(
            metavar="lbfgs|adam|torch-lbfgs|lbfgs-b|sgd",
            help="Another solver, for as many iterations. (default: the preset's)",
            rich_help_panel="How it is computed",
        ),
    ] = None,
    weights: options.WeightsOption = None,
    backend: options.BackendOption = "auto",
    plan: options.PlanOption = None,
    precision: options.PrecisionOption = None,
    engine_option: options.EngineOptions = None,
    threads: options.Threads = None,
    quality: Annotated[int, typer.Option(min=1, max=100, help="Quality of JPEG and WebP.")] = 95,
    events: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write what becomes of each picture, one JSON object a line.")
    ] = None,
    json: options.Json = False,
    quiet: options.Quiet = False,
    force: Annotated[bool, typer.Option("--force", help="Replace files of other jobs.")] = False,
    max_file_bytes: options.MaxFileBytes = None,
    max_pixels: options.MaxPixels = None,
    max_long_side: options.MaxLongSide = None,
    max_iterations: options.MaxIterations = None,
    max_evaluations: options.MaxEvaluations = None,
    memory_limit: options.MemoryLimit = None,
) -> None:
    """Paint many pictures in the style of STYLE into DIR: lake.jpg becomes DIR/lake.png.

    The same command again paints what is missing: a painting carries the fingerprint of its job, so what is there of
    the same job stays as it is. A picture that fails is told of at the end, and does not stop the others; the exit code
    is then 6. Ctrl-C ends after the evaluations under way.
    """
    from impasto.cli.event_log import event_log
    from impasto.cli.paint import stop_on_signals
    from impasto.cli.progress import progress
    from impasto.runtime.batch import Batch

    spec = options.make_job(context, config, ("style",))
    _, note = spec.recipe()
    if note and not quiet:
        say(note)
    work = Batch(images, out, spec, format=format, jobs=jobs, overwrite=force)
    total = len(work.items)
    outcomes: list[Outcome] = []
    with (
        stop_on_signals() as request,
        spoken_warnings(quiet),
        event_log(events, force) as log,
        progress("painting", quiet) as update,
    ):
        # Whatever is painted by then is kept.
        request.armed = True
        for outcome in work.run(lambda: request.asked):
            outcomes.append(outcome)
            log.write(outcome.to_json())
            update(len(outcomes), total, f"{len(outcomes)} of {total}, {outcome.content!r} {outcome.status}")
    told = summary(outcomes, total)
    if json:
        emit_json(told)
    failures = [outcome for outcome in outcomes if outcome.error is not None]
    for failure in failures:
        say(f"failed: {failure.error}")
    if not quiet:
        say(f"{told['painted']} painted into {str(out)!r}, {told['present']} there already, {told['failed']} failed")
    if told["stopped"]:
        raise Interrupted(f"interrupted: {told['stopped']} of {total} pictures are left for the same command")
    if failures:
        raise BatchError(f"{len(failures)} of {total} pictures failed: mend them, and the same command paints those")


def summary(outcomes: list[Outcome], total: int) -> BatchJson:
    """Return what became of so many pictures, as JSON types."""
    count = Counter(outcome.status for outcome in outcomes)
    return {
        "painted": count["painted"],
        "present": count["present"],
        "failed": count["failed"],
        "stopped": total - len(outcomes),
        "pictures": [outcome.to_json() for outcome in outcomes],
    }
