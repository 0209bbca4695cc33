"""``impasto presets``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from impasto.cli import options
from impasto.cli.console import columns, emit, emit_json, say

app = typer.Typer(help="Recipes: what is minimised, by which solver, from where.")


@app.command("list")
def list_presets() -> None:
    """List the presets and where each is published, and those that you saved."""
    from impasto.runtime.recipes import PRESETS
    from impasto.runtime.saved_presets import saved_presets

    rows = [(preset.name, preset.source) for preset in PRESETS.values()]
    emit(*columns([*rows, *((name, f"saved in {path}") for name, path in saved_presets().items())]))


@app.command("show")
def show_preset(name: Annotated[str, typer.Argument(metavar="NAME", help="A name of impasto presets list.")]) -> None:
    """Print a preset as JSON, whole."""
    from impasto.runtime.recipes import find_preset

    emit_json(find_preset(name).to_json())


@app.command("save")
def save(
    context: typer.Context,
    name: Annotated[str, typer.Argument(metavar="NAME", help="What --preset is to call it.")],
    config: Annotated[
        Path | None, typer.Option("--config", metavar="JOB", help="A job's file, or what --json printed.")
    ] = None,
    size: Annotated[int | None, typer.Option(min=1, help="Long side of the result in pixels.")] = None,
    iterations: Annotated[int | None, typer.Option(min=1, help="Iterations of the solver.")] = None,
    preset: options.PresetOption = options.DEFAULT_PRESET,
    init: Annotated[str | None, typer.Option(metavar="content|noise|style", help="What to start from.")] = None,
    content_weight: options.ContentWeight = None,
    style_weight: options.StyleWeight = None,
    tv_weight: options.TvWeight = None,
    pooling: options.PoolingOption = None,
    solver: Annotated[
        str | None,
        typer.Option(metavar="lbfgs|adam|torch-lbfgs|lbfgs-b|sgd", help="Another solver, for as many iterations."),
    ] = None,
    force: options.Force = False,
    quiet: options.Quiet = False,
) -> None:
    """Keep a recipe under a name of yours: a preset with the changes that impasto stylize takes.

    It is a JSON file among your settings ($IMPASTO_CONFIG moves them), and can be edited.
    """
    from impasto.runtime.saved_presets import save_preset

    spec = options.make_job(context, config)
    path = save_preset(name, spec.whole_preset(), overwrite=force)
    if not quiet:
        say(f"saved in {str(path)!r}")


@app.command("remove")
def remove(name: Annotated[str, typer.Argument(metavar="NAME", help="A preset that you saved.")]) -> None:
    """Remove a preset that you saved."""
    from impasto.runtime.saved_presets import remove_preset

    remove_preset(name)
