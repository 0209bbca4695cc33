"""``impasto presets``."""

from __future__ import annotations

from typing import Annotated

import typer

from impasto.cli.console import columns, emit, emit_json

app = typer.Typer(help="Recipes: what is minimised, by which solver, from where.")


@app.command("list")
def list_presets() -> None:
    """List the presets and where each is published."""
    from impasto.runtime.recipes import PRESETS

    emit(*columns([(preset.name, preset.source) for preset in PRESETS.values()]))


@app.command("show")
def show_preset(name: Annotated[str, typer.Argument(metavar="NAME", help="A name of impasto presets list.")]) -> None:
    """Print a preset as JSON, whole."""
    from impasto.runtime.recipes import find_preset

    emit_json(find_preset(name).to_json())
