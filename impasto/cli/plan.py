"""``impasto plan``."""

from __future__ import annotations

import re
from pathlib import Path
from tempfile import gettempdir
from typing import TYPE_CHECKING, Annotated, cast

import typer

from impasto.cli import options
from impasto.cli.console import columns, emit, emit_json, human_bytes, spoken_warnings
from impasto.errors import UsageError

if TYPE_CHECKING:
    from impasto.runtime.backends.protocol import Plan
    from impasto.runtime.forecast import Forecast
    from impasto.runtime.prospect import Prospect
    from impasto.runtime.read_image import Source

_SIZE = re.compile(r"([1-9]\d*)(?:[x×]([1-9]\d*))?")


def plan(
    content: Annotated[Path | None, typer.Argument(metavar="[CONTENT]", help="Picture to be painted.")] = None,
    style: Annotated[Path | None, typer.Argument(metavar="[STYLE]", help="Picture whose style is taken.")] = None,
    size: Annotated[
        str | None,
        typer.Option(metavar="N|WxH", help="Long side of the result in pixels; without pictures, width and height."),
    ] = None,
    iterations: Annotated[
        int | None, typer.Option(min=1, help="Iterations of the solver. (default: the preset's)")
    ] = None,
    scales: options.ScalesOption = "auto",
    preset: options.PresetOption = options.DEFAULT_PRESET,
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
    threads: options.Threads = None,
    no_time: Annotated[
        bool, typer.Option("--no-time", help="Do not foretell the time, for which an evaluation is timed once.")
    ] = False,
    json: options.Json = False,
    max_file_bytes: options.MaxFileBytes = None,
    max_pixels: options.MaxPixels = None,
    max_long_side: options.MaxLongSide = None,
    memory_limit: options.MemoryLimit = None,
) -> None:
    """Tell what painting CONTENT in the style of STYLE would take, and whether it fits; nothing is painted.

    Without pictures, --size WxH stands for both. The answer is in what is printed ("fits", in JSON): the exit code is
    0 either way.
    """
    recipe = options.make_preset(preset, weights, quiet=json, solver=solver, pooling=pooling, tv_weight=tv_weight)
    limits = options.make_limits(
        max_file_bytes=max_file_bytes, max_pixels=max_pixels, max_long_side=max_long_side, memory=memory_limit
    )
    pictures, long_side = _pictures(content, style, size)

    from impasto.runtime.scales import parse_scales
    from impasto.runtime.stylizer import Stylizer

    sizes = parse_scales(scales)

    with (
        spoken_warnings(json),
        Stylizer(
            recipe,
            weights=weights,
            backend=backend,
            plan=cast("Plan | None", plan),
            precision=precision,
            limits=limits,
            threads=threads,
        ) as stylizer,
    ):
        found = stylizer.foresee(*pictures, size=long_side, iterations=iterations, scales=sizes, timed=not no_time)
    if json:
        emit_json(found.to_json())
    else:
        emit(*_lines(found))


def _pictures(content: Path | None, style: Path | None, size: str | None) -> tuple[tuple[Source, Source], int | None]:
    """Return both pictures, blank ones where there are none, and the long side that was asked for."""
    match = None if size is None else _SIZE.fullmatch(size)
    if size is not None and match is None:
        raise UsageError(f"--size is {size!r}: give the long side in pixels, or width and height as 1920x1080")
    if content is not None and style is not None:
        if match is not None and match[2]:
            raise UsageError(f"--size {size} with pictures: give the long side alone, the picture has the shape")
        return (content, style), None if match is None else int(match[1])
    if content is not None or style is not None:
        raise UsageError("one picture is not enough: give CONTENT and STYLE, or none and --size WxH")
    if match is None or not match[2]:
        raise UsageError("nothing to plan: give CONTENT and STYLE, or --size WxH without pictures")

    import numpy as np

    width, height = int(match[1]), int(match[2])
    blank = np.zeros((height, width, 3), np.uint8)
    return (blank, blank), max(width, height)


def _lines(found: Prospect) -> list[str]:
    width, height = found.size
    lines = [f"{width}×{height} px, preset {found.preset}, solver {found.solver}, {found.backend} in {found.precision}"]
    shown = found.painted or found.asked
    if shown is None:
        return [*lines, "memory of this backend is not foretold: it is the device's"]
    lines += _memory(found, shown)
    if found.seconds is not None:
        lines.append(f"time: about {_duration(found.seconds)} for {shown.evaluations} evaluations")
    lines += [f"note: {note}" for note in found.notes]
    if found.remedies:
        lines.append("would fit as it is:" if found.fits else "would fit:")
        lines += [f"  {remedy}" for remedy in found.remedies]
    elif not found.fits:
        lines.append("no size would fit: free memory, or raise --memory-limit")
    return lines


def _memory(found: Prospect, shown: Forecast) -> list[str]:
    if found.limit is None:
        allowed = "no limit"
    elif found.free.bytes is None:
        allowed = f"{human_bytes(found.limit)} allowed"
    else:
        allowed = f"{human_bytes(found.limit)} allowed; {human_bytes(found.free.bytes)} free: {found.free.source}"
    verdict = "fits" if found.fits else "does not fit"
    lines = [f"memory: about {human_bytes(shown.memory_bytes)} at most, {verdict} ({allowed})"]
    parts = sorted(shown.largest.components.items(), key=lambda item: -item[1])
    lines += columns([(f"  {name}", human_bytes(size)) for name, size in parts])
    stages = [f"{w}×{h}" for w, h in (stage.size for stage in shown.stages)]
    if len(stages) > 1:
        lines.append(f"scales: {', '.join(stages)}")
    if shown.scratch_bytes:
        lines.append(f"files: {human_bytes(shown.scratch_bytes)} in {gettempdir()} (TMPDIR), while it is painted")
    last = shown.stages[-1]
    tiles = f"{last.windows} windows, {last.overhead:.2f} times the arithmetic" if last.windows else "none"
    lines.append(f"plan: {shown.plan}, tiles: {tiles}")
    return lines


def _duration(seconds: float) -> str:
    """Return a time to two digits: ``40 s``, ``3.5 min``, ``12 h``."""
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            count = seconds / length
            return f"{count:.0f} {unit}" if count >= 10 else f"{count:.1f} {unit}"
    return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.1f} s"
