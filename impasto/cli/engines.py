"""``impasto engines``."""

from __future__ import annotations

import re
from typing import Annotated, cast

import typer

from impasto.cli import options
from impasto.cli.console import say, spoken_warnings
from impasto.errors import UsageError

app = typer.Typer(help="Engines: graphs compiled for this machine, kept in the cache.")


@app.callback()
def _engines() -> None:
    """Keep ``build`` a subcommand, though it is the only one."""


@app.command()
def build(
    size: Annotated[
        list[str] | None,
        typer.Option(metavar="WxH", help="Width and height of the pictures to come; repeatable. [default: 512x512]"),
    ] = None,
    preset: options.PresetOption = options.DEFAULT_PRESET,
    weights: options.WeightsOption = None,
    backend: options.BackendOption = "auto",
    plan: options.PlanOption = "fused",
    quiet: options.Quiet = False,
) -> None:
    """Compile what painting pictures of given sizes needs, so that the first job does not wait for it.

    Engines for other sizes are compiled when they are first needed.
    """
    from impasto.runtime.backends.protocol import Plan
    from impasto.runtime.stylizer import Stylizer

    sizes = [_parse(text) for text in size or ["512x512"]]
    with (
        spoken_warnings(quiet),
        Stylizer(preset, weights=weights, backend=backend, plan=cast("Plan", plan)) as stylizer,
    ):
        for width, height in sizes:
            stylizer.warm_up(width, height)
            if not quiet:
                say(f"{stylizer.backend.name} engines for {width}x{height}, preset {stylizer.preset.name!r}: ready")


def _parse(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"([1-9]\d{0,5})x([1-9]\d{0,5})", text)
    if match is None:
        raise UsageError(f"size {text!r}: give width and height in pixels, such as 512x384")
    return int(match[1]), int(match[2])
