"""``impasto demo``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from impasto.cli import options
from impasto.cli.console import say, spoken_warnings
from impasto.errors import Interrupted, OutputError

if TYPE_CHECKING:
    from impasto.runtime.images import FloatArray

DEMO_SIZE = 512

_GAP = 8


def demo(
    folder: Annotated[
        Path, typer.Option("--output", "-o", metavar="DIR", help="Folder for the pictures; made if it does not exist.")
    ] = Path("impasto-demo"),
    quiet: options.Quiet = False,
) -> None:
    """Paint the pictures that come with Impasto; needs no download, and takes about a minute.

    It paints with the filter bank, as impasto stylize does before weights are fetched. Writes painting.png and
    side-by-side.png (content, style, painting) into DIR, over those of an earlier demo.
    """
    from importlib import resources

    from impasto.cli.paint import paint, stop_on_signals
    from impasto.runtime.files import check_writable
    from impasto.runtime.read_image import read_image
    from impasto.runtime.recipes import FILTERBANK
    from impasto.runtime.stylizer import Stylizer
    from impasto.runtime.write_image import write_image

    painting_path, contact_path = folder / "painting.png", folder / "side-by-side.png"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(
            f"cannot make the folder {str(folder)!r} ({error.strerror}): choose another with -o"
        ) from None
    check_writable(painting_path, overwrite=True)
    check_writable(contact_path, overwrite=True)
    pictures = resources.files("impasto") / "demo"
    content = read_image((pictures / "content.jpg").read_bytes())
    style = read_image((pictures / "style.jpg").read_bytes())
    with stop_on_signals() as request, spoken_warnings(quiet), Stylizer(FILTERBANK) as stylizer:
        painting = stylizer.begin(content.rgb, style.rgb, size=DEMO_SIZE)
        result = paint(painting, stylizer, request, quiet)
        result.save(painting_path, overwrite=True)
        write_image(contact_path, side_by_side([content.rgb, style.rgb, result.image]), overwrite=True)
    if not quiet:
        say(f"wrote {str(painting_path)!r} and {str(contact_path)!r}, {result.seconds:.0f} s")
    if result.stop == "interrupted":
        raise Interrupted(f"interrupted: the painting so far is in {str(folder)!r}")


def side_by_side(pictures: Sequence[FloatArray]) -> FloatArray:
    """Return pictures in a row with thin white gaps, all at the last one's height; each is (H, W, 3) float32 in 0–1."""
    import numpy as np

    from impasto.runtime.images import resize

    height = pictures[-1].shape[0]
    row = []
    for picture in pictures:
        width = max(1, round(picture.shape[1] * height / picture.shape[0]))
        row += [resize(picture, (width, height)), np.ones((height, _GAP, 3), np.float32)]
    return np.concatenate(row[:-1], axis=1)
