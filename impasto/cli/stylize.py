"""``impasto stylize``."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from impasto.cli import options
from impasto.cli.console import emit_json, say, spoken_warnings
from impasto.cli.seeing import Seeing
from impasto.errors import Interrupted, OutputError, UsageError

if TYPE_CHECKING:
    from impasto.runtime.loop import Step
    from impasto.runtime.painting import Painting


_SEEING = "What to look at"


def stylize(
    context: typer.Context,
    content: Annotated[Path | None, typer.Argument(metavar="CONTENT", help="Picture whose content is kept.")] = None,
    style: Annotated[Path | None, typer.Argument(metavar="STYLE", help="Picture whose style is taken.")] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="OUT", help="Picture to write: PNG, JPEG, WebP, TIFF.")
    ] = None,
    config: options.Config = None,
    size: Annotated[
        int | None, typer.Option(min=1, help="Long side of the result in pixels. (default: the preset's)")
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
    save_every: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Also write OUT-0010.png and so on, each N iterations.")
    ] = None,
    checkpoint: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Keep what a killed job needs to go on; removed when the picture is written."
        ),
    ] = None,
    checkpoint_every: Annotated[
        float, typer.Option(min=0, metavar="SECONDS", help="How often; never more than a tenth of the time.")
    ] = 60.0,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on from the checkpoint, if there is one, to the same picture.")
    ] = False,
    preview: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Replace FILE by the best picture so far, again and again.", rich_help_panel=_SEEING
        ),
    ] = None,
    animate: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Write how it came about: .webp, .gif, or .mp4 (PyAV).", rich_help_panel=_SEEING
        ),
    ] = None,
    report: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Write one HTML page: pictures, loss by term, settings.", rich_help_panel=_SEEING
        ),
    ] = None,
    events: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Write what happens while it happens, one JSON object a line."),
    ] = None,
    json: options.Json = False,
    quiet: options.Quiet = False,
    force: options.Force = False,
    max_file_bytes: options.MaxFileBytes = None,
    max_pixels: options.MaxPixels = None,
    max_long_side: options.MaxLongSide = None,
    max_iterations: options.MaxIterations = None,
    max_evaluations: options.MaxEvaluations = None,
    memory_limit: options.MemoryLimit = None,
) -> None:
    """Paint CONTENT in the style of STYLE.

    Ctrl-C stops early and writes the best picture so far. With --checkpoint the same command and --resume goes on.
    What --json prints paints the same picture again with --config.
    """
    spec = options.make_job(context, config, ("content", "style", "output"))
    output = Path(cast("str", spec.output))

    from impasto.runtime.checkpoint import Checkpoint
    from impasto.runtime.files import check_writable
    from impasto.runtime.write_image import image_format

    # Before anything slow: a job must not fail at its end for what could be known at its start.
    image_format(output)
    kept = None
    if checkpoint is not None:
        kept = Checkpoint(checkpoint, checkpoint_every, resume)
        kept.check()
    elif resume:
        raise UsageError("--resume needs the file to go on from: give it as --checkpoint FILE")
    # What an interrupted job has written already, its other half may replace.
    overwrite = force or (kept is not None and kept.resume and kept.exists())
    check_writable(output, overwrite)
    seeing = Seeing(preview, animate, report, overwrite)
    seeing.check()
    recipe, note = spec.recipe()
    if note and not quiet:
        say(note)
    snapshots = None
    if save_every is not None:
        snapshots = Snapshots(output, save_every, spec.quality, overwrite)
        snapshots.check(recipe.total_iterations())

    from impasto.cli.event_log import event_log
    from impasto.cli.paint import paint, stop_on_signals
    from impasto.runtime.jobs import begin, open_stylizer

    with (
        stop_on_signals() as request,
        spoken_warnings(quiet),
        event_log(events, force) as log,
        open_stylizer(spec) as stylizer,
    ):
        painting = begin(spec, stylizer, kept)
        if resume and not quiet:
            at = painting.resumed
            say("no checkpoint yet: from the beginning" if at is None else f"on from iteration {at.iteration}")
        watchers = [log.step, *seeing.of(painting), *([] if snapshots is None else [snapshots.of(painting)])]
        result = options.with_output(paint(painting, stylizer, request, quiet, in_turn(watchers)), spec)
        result.save(output, quality=spec.quality, overwrite=overwrite)
        log.result(result, str(output))
        seeing.write(painting, result)
        if kept is not None and result.stop == "done":
            kept.remove()
    width, height = result.size
    if not quiet:
        for note in result.notes:
            say(f"note: {note}")
        say(
            f"wrote {str(output)!r}, {width}×{height}, loss {result.loss['total']:.4g}, {result.seconds:.1f} s "
            f"by {result.backend} in {result.precision}"
        )
    if json:
        emit_json(result.to_json(str(output)))
    if result.stop == "interrupted":
        more = ", and --resume goes on from the checkpoint" if kept is not None and kept.exists() else ""
        raise Interrupted(
            f"interrupted after {len(result.trace)} evaluations: the best picture so far is in {str(output)!r}{more}"
        )


def in_turn(watchers: Sequence[Callable[[Step], None]]) -> Callable[[Step], None]:
    """Return what calls each of the watchers with a step, one after the other."""

    def each(step: Step) -> None:
        for watch in watchers:
            watch(step)

    return each


@dataclass
class Snapshots:
    """The pictures that ``--save-every`` asks for: ``<stem>-<iteration:04d><suffix>`` beside the output."""

    output: Path
    every: int
    quality: int
    overwrite: bool
    _last: int = field(default=0, init=False)

    def path(self, iteration: int) -> Path:
        """Return where the picture of that iteration goes."""
        return self.output.with_name(f"{self.output.stem}-{iteration:04d}{self.output.suffix}")

    def check(self, iterations: int) -> None:
        """Raise `OutputError` if a job of so many iterations would replace a file and may not."""
        if self.overwrite:
            return
        name = re.compile(re.escape(self.output.stem) + r"-(\d{4,})" + re.escape(self.output.suffix))
        for other in sorted(self.output.parent.iterdir()):
            match = name.fullmatch(other.name)
            if match and int(match[1]) <= iterations and int(match[1]) % self.every == 0:
                raise OutputError(
                    f"output {str(other)!r}, which --save-every would write, exists: choose another name than "
                    f"{str(self.output)!r}, or allow it to be replaced (--force)"
                )

    def of(self, painting: Painting) -> Callable[[Step], None]:
        """Return what is to be called with each step of the painting."""
        self._last = 0 if painting.resumed is None else painting.resumed.iteration // self.every * self.every

        def save(step: Step) -> None:
            due = step.iteration // self.every * self.every
            if due > self._last:
                self._last = due
                painting.result().save(self.path(due), quality=self.quality, overwrite=self.overwrite)

        return save
