"""``impasto export`` and ``impasto verify``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from impasto.cli import options
from impasto.cli.console import columns, emit, say
from impasto.errors import GraphError, UsageError


def export(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder to write; made if it does not exist.")],
    backbone: Annotated[
        str | None, typer.Option(metavar="NAME", help="Backbone to export. (default: that of the weights)")
    ] = None,
    weights: options.WeightsOption = None,
    slices: Annotated[
        bool, typer.Option("--slices", help="Also each slice with its gradient, for the sliced plan.")
    ] = False,
    preset: options.PresetOption = options.DEFAULT_PRESET,
    size: Annotated[
        int | None,
        typer.Option(
            min=1, help="Short side of the pictures to come, by which a filter bank has levels. (default: the preset's)"
        ),
    ] = None,
    pooling: options.PoolingOption = None,
) -> None:
    """Write ONNX graphs and a manifest: what runs where Python does not."""
    recipe = options.make_preset(preset, weights or backbone, pooling=pooling)

    from impasto.export.bundle import export_bundle
    from impasto.models.backbones import backbone as find_backbone
    from impasto.models.locate import find_weights

    if backbone is not None:
        find_backbone(backbone)
    found = find_weights(weights or backbone or recipe.weights)
    if backbone not in (None, found.backbone.name):
        raise UsageError(
            f"weights {found.name!r} are those of {found.backbone.name}, not of {backbone}: give one of the two"
        )
    side = size or recipe.sizing.pixels
    objective = recipe.for_weights(found).objective_at(found, (side, side))
    export_bundle(folder, found, objective, preset_name=recipe.name, slices=slices)
    say(f"wrote {str(folder)!r}; impasto verify {folder} compares it with torch")


def verify(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder that impasto export wrote.")],
) -> None:
    """Compare exported graphs with the torch reference, and print how far they differ."""
    from impasto.runtime.verify import verify_bundle

    checks = verify_bundle(folder)
    rows = [(c.name, f"{c.error:.2e}", f"{c.tolerance:.0e}", "ok" if c.passed else "FAILED") for c in checks]
    emit(*columns([("check", "error", "tolerance", ""), *rows]))
    failed = [check.name for check in checks if not check.passed]
    if failed:
        raise GraphError(
            f"{str(folder)!r}: {len(failed)} of {len(checks)} checks failed, {failed[0]} first: export it anew"
        )
