"""``impasto grid``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from impasto.cli import options
from impasto.cli.console import emit_json, say, spoken_warnings
from impasto.errors import Interrupted, UsageError

if TYPE_CHECKING:
    from impasto.runtime.result import Result


def grid(
    context: typer.Context,
    content: Annotated[Path | None, typer.Argument(metavar="CONTENT", help="Picture whose content is kept.")] = None,
    style: Annotated[Path | None, typer.Argument(metavar="STYLE", help="Picture whose style is taken.")] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", metavar="OUT", help="Sheet to write.")] = None,
    rows: Annotated[str | None, typer.Option(metavar="NAME=V,V,…", help="What goes from top to bottom.")] = None,
    columns: Annotated[str | None, typer.Option(metavar="NAME=V,V,…", help="What goes from left to right.")] = None,
    config: options.Config = None,
    size: Annotated[
        int | None, typer.Option(min=1, help="Long side of each painting in pixels. (default: the preset's)")
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
        str | None, typer.Option(metavar="lbfgs|adam|torch-lbfgs|lbfgs-b|sgd", help="Another solver.")
    ] = None,
    weights: options.WeightsOption = None,
    backend: options.BackendOption = "auto",
    precision: options.PrecisionOption = None,
    threads: options.Threads = None,
    quality: Annotated[int, typer.Option(min=1, max=100, help="Quality of JPEG and WebP.")] = 95,
    json: options.Json = False,
    quiet: options.Quiet = False,
    force: options.Force = False,
    memory_limit: options.MemoryLimit = None,
) -> None:
    """Paint one pair of pictures over one or two settings, as a contact sheet with labels.

    Settings are ratio (α/β: content weight over style weight), layers (the first 1, 2, … style layers, or
    relu1_1+relu2_1), style (pictures), content-weight, style-weight, tv-weight, iterations, seed, init, preset, solver
    and pooling.

    Example: impasto grid a.jpg b.jpg -o sheet.png --rows layers=1,2,3,4,5 --columns ratio=1e-5,1e-4,1e-3,1e-2
    """
    from impasto.runtime.files import check_writable
    from impasto.runtime.grid import Axis, cells, sheet
    from impasto.runtime.write_image import image_format, write_image

    needed = ("content", "output") if any(text and text.startswith("style=") for text in (rows, columns)) else None
    spec = options.make_job(context, config, needed or ("content", "style", "output"))
    output = Path(cast("str", spec.output))
    image_format(output)
    check_writable(output, force)
    down, across = (None if text is None else Axis.parse(text) for text in (rows, columns))
    if down is None and across is None:
        raise UsageError("nothing to go over: give --rows or --columns, such as --columns ratio=1e-5,1e-4,1e-3")
    _, note = spec.recipe()
    if note and not quiet:
        say(note)
    jobs = cells(spec, down, across)

    from impasto.cli.paint import StopRequest, paint, stop_on_signals
    from impasto.runtime.job_spec import JobSpec
    from impasto.runtime.jobs import begin, open_stylizer, read_pictures

    def painted(job: JobSpec, request: StopRequest) -> Result:
        with open_stylizer(job) as stylizer:
            result = paint(begin(job, stylizer), stylizer, request, quiet)
        if result.stop == "interrupted":
            raise Interrupted("interrupted: the sheet was not written")
        return result

    with stop_on_signals() as request, spoken_warnings(quiet):
        for job in (job for row in jobs for job in row):
            # Before any is painted: the last must not fail for what could be known at the start.
            with open_stylizer(job) as stylizer:
                read_pictures(job, stylizer)
        results = [[painted(job, request) for job in row] for row in jobs]
        write_image(output, sheet(results, down, across), quality=spec.quality, overwrite=force)
    if not quiet:
        say(f"wrote {str(output)!r}, {len(results)}×{len(results[0])} paintings")
    if json:
        emit_json({"output": str(output), "cells": [[result.to_json() for result in row] for row in results]})
