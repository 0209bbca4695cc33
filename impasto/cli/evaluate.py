"""``impasto evaluate``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from impasto.cli import options
from impasto.cli.console import columns, emit, emit_json, say, spoken_warnings

if TYPE_CHECKING:
    from impasto.runtime.backends.protocol import Plan


def evaluate(
    image: Annotated[Path, typer.Argument(metavar="IMAGE", help="Picture to evaluate; its size is the result's.")],
    content: Annotated[Path, typer.Option("--content", metavar="C", help="Picture whose content is kept.")],
    style: Annotated[Path, typer.Option("--style", metavar="S", help="Picture whose style is taken.")],
    preset: options.PresetOption = options.DEFAULT_PRESET,
    content_weight: options.ContentWeight = None,
    style_weight: options.StyleWeight = None,
    tv_weight: options.TvWeight = None,
    pooling: options.PoolingOption = None,
    weights: options.WeightsOption = None,
    backend: options.BackendOption = "auto",
    plan: options.PlanOption = None,
    precision: options.PrecisionOption = None,
    engine_option: options.EngineOptions = None,
    threads: options.Threads = None,
    gradient: Annotated[
        Path | None,
        typer.Option(
            metavar="OUT.npy", help="Also write the gradient, (3, H, W) float32 in the preset's pixel space, as NumPy."
        ),
    ] = None,
    json: options.Json = False,
    force: options.Force = False,
    max_file_bytes: options.MaxFileBytes = None,
    max_pixels: options.MaxPixels = None,
    max_long_side: options.MaxLongSide = None,
) -> None:
    """Print every loss term of IMAGE as a painting of content C in style S.

    IMAGE gives the size; C is resized to it.
    """
    from impasto.runtime.files import check_writable, write_atomically

    if gradient is not None:
        check_writable(gradient, force)
    recipe = options.make_preset(
        preset, weights, pooling=pooling, content_weight=content_weight, style_weight=style_weight, tv_weight=tv_weight
    )
    limits = options.make_limits(max_file_bytes=max_file_bytes, max_pixels=max_pixels, max_long_side=max_long_side)

    from impasto.runtime.evaluate import evaluate as evaluate_picture
    from impasto.runtime.stylizer import Stylizer

    with (
        spoken_warnings(),
        Stylizer(
            recipe,
            weights=weights,
            backend=backend,
            plan=cast("Plan | None", plan),
            precision=precision,
            limits=limits,
            threads=threads,
            engine_options=options.make_engine_options(engine_option),
        ) as stylizer,
    ):
        evaluated = evaluate_picture(stylizer, image, content, style)
    if gradient is not None:
        import numpy as np

        write_atomically(gradient, lambda file: np.save(file, evaluated.gradient), force)
    for note in evaluated.notes:
        say(f"note: {note}")
    if json:
        emit_json(evaluated.to_json())
        return
    terms = [(name, f"{value:.6g}") for name, value in evaluated.terms.items()]
    sums = [(name, f"{value:.6g}") for name, value in evaluated.loss.items()]
    emit(*columns([("term", "weighted loss"), *terms, *sums]))
