"""What the preset ``impasto`` stands for: VGG-19 where its weights are, the filter bank until then."""

from __future__ import annotations

from pathlib import Path

from impasto.models.locate import DRAWN, available
from impasto.models.sources import source
from impasto.models.weights import Weights
from impasto.runtime.presets import Preset
from impasto.runtime.recipes import FILTERBANK, IMPASTO, find_preset


def choose(name: str, weights: str | Path | Weights | None = None) -> tuple[Preset, str | None]:
    """Return the preset of that name for the weights that the user names, and a line to tell about the choice.

    ``impasto`` becomes the preset ``filterbank`` for weights of the filter bank; and where no weights are named and
    VGG-19's are not in the cache, which is what the line is about. Raises `UnknownNameError` for an unknown preset.
    """
    if name != IMPASTO.name:
        return find_preset(name), None
    if isinstance(weights, Weights):
        drawn = weights.backbone.name
    else:
        match = DRAWN.fullmatch(str(weights))
        drawn = match[1] if match else ""
    if drawn == FILTERBANK.weights:
        return FILTERBANK, None
    if weights is None and IMPASTO.weights not in available():
        megabytes = source(IMPASTO.weights).max_bytes / 1e6
        return FILTERBANK, (
            f"painting with the filter bank, which needs no weights; VGG-19 paints closer to the style: "
            f"impasto weights fetch {IMPASTO.weights} ({megabytes:.0f} MB, once)"
        )
    return IMPASTO, None
