"""``impasto weights``."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

import typer

from impasto.cli import options
from impasto.cli.console import columns, emit, human_bytes, say
from impasto.errors import OutputError, UsageError

app = typer.Typer(help="Network weights: what is here, what can be fetched, other people's files.")

Name = Annotated[str, typer.Argument(metavar="NAME", help="A name of impasto weights list.")]


@app.command("list")
def list_weights() -> None:
    """List the weights that --weights knows by name."""
    from impasto.models.locate import available
    from impasto.models.sources import SOURCES

    cached = available()
    here = [(name, f"{path}, {human_bytes(path.stat().st_size)}") for name, path in cached.items()]
    there = [
        (source.name, f"not here yet: impasto weights fetch {source.name} ({human_bytes(source.max_bytes)})")
        for source in SOURCES.values()
        if source.name not in cached
    ]
    drawn = [
        ("filterbank", "drawn, needs no file: the filter bank, seed 0 (filterbank-7: seed 7)"),
        ("random", "drawn, needs no file: VGG-19's shape, seed 0 (random-7: seed 7)"),
    ]
    emit(*columns([*here, *there, *drawn]))


@app.command("fetch")
def fetch_weights(name: Name = "vgg19", quiet: options.Quiet = False) -> None:
    """Download weights into the cache, verified; a download that was cut is resumed."""
    from impasto.cli.progress import progress
    from impasto.models.fetch import fetch
    from impasto.models.sources import source

    wanted = source(name)
    with progress(f"fetching {name}", quiet) as update:
        path = fetch(
            wanted,
            progress=lambda done, total: update(
                done, total, human_bytes(done) + (f" of {human_bytes(total)}" if total else "")
            ),
        )
    emit(str(path))


@app.command("convert")
def convert(
    source: Annotated[Path, typer.Argument(metavar="IN", help="torch .pth, Keras .h5, .npz or safetensors.")],
    output: Annotated[
        Path | None, typer.Argument(metavar="[OUT]", help="Safetensors file to write.", show_default=False)
    ] = None,
    name: Annotated[
        str | None, typer.Option(metavar="NAME", help="Put them into the cache under this name instead.")
    ] = None,
    convention: Annotated[
        str | None,
        typer.Option(metavar="caffe|torchvision", help="Pixels they were trained on, where the format does not tell."),
    ] = None,
    backbone: Annotated[
        str | None, typer.Option(metavar="NAME", help="Backbone, where names and shapes do not tell.")
    ] = None,
    force: options.Force = False,
) -> None:
    """Turn other people's weights into ours; nothing in the file is run."""
    from impasto.models.convert import convert_weights
    from impasto.models.weights import save_weights
    from impasto.runtime.files import check_writable

    if (output is None) == (name is None):
        raise UsageError("give either OUT, a file to write, or --name, for the cache")
    target = output or _cached(name or "")
    check_writable(target, force)
    weights = convert_weights(source, convention, backbone)
    save_weights(weights, target)
    say(f"wrote {str(target)!r}: {weights.backbone.name} up to {weights.last}, {weights.convention.name}")


@app.command("show")
def show(
    name: Annotated[str, typer.Argument(metavar="NAME|PATH", help="A name of impasto weights list, or a file.")],
) -> None:
    """Print what weights are: backbone, convention, digest, and the taps that they reach."""
    from impasto.models.locate import find_weights

    weights = find_weights(name)
    parameters = sum(tensor.size for tensor in weights.tensors.values())
    emit(
        *columns(
            [
                ("name", weights.name),
                ("backbone", weights.backbone.name),
                ("convention", weights.convention.name),
                ("sha256", weights.sha256),
                ("parameters", f"{parameters} ({human_bytes(4 * parameters)})"),
                ("taps", " ".join(weights.taps)),
            ]
        )
    )


def _cached(name: str) -> Path:
    """Return the file of the cache that a name stands for, its folder made."""
    from impasto.models.locate import DRAWN, cache_dir

    # Some names are of drawn weights, and one with a dot or a slash would be taken for a path.
    if not re.fullmatch(r"[A-Za-z0-9][\w-]*", name) or DRAWN.fullmatch(name):
        raise UsageError(f"name {name!r} cannot be used: letters, digits, - and _, and neither random nor filterbank")
    folder = cache_dir() / "weights"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(
            f"cannot make {str(folder)!r}: {error.strerror} (IMPASTO_CACHE names another folder)"
        ) from None
    return folder / f"{name}.safetensors"
