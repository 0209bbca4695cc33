"""Finds weights by name or path, and says where downloads are kept."""

from __future__ import annotations

import os
import re
from pathlib import Path

import platformdirs

from impasto.errors import UnavailableError, UnknownNameError, UsageError
from impasto.models.random_weights import filterbank_weights, random_weights
from impasto.models.sources import SOURCES
from impasto.models.weights import Weights, load_weights

DRAWN = re.compile(r"(filterbank|random)(?:-(\d+))?")
"""Names of weights that are drawn, not read."""


def cache_dir() -> Path:
    """Return the folder for downloads and engines: ``$IMPASTO_CACHE``, or else the user's cache folder of the system.

    It need not exist yet.
    """
    chosen = os.environ.get("IMPASTO_CACHE")
    return Path(chosen).expanduser() if chosen else platformdirs.user_cache_path("impasto")


def available() -> dict[str, Path]:
    """Return the weights in the cache, name to file, sorted by name: each is ``<cache>/weights/<name>.safetensors``."""
    return {path.stem: path for path in sorted((cache_dir() / "weights").glob("[!.]*.safetensors"))}


def find_weights(name_or_path: str | Path) -> Weights:
    """Load weights by the name they have in the cache, by the path of a safetensors file, or draw them.

    ``filterbank`` draws the filter bank and ``random`` VGG-19 weights with seed 0, ``filterbank-7`` and ``random-7``
    with seed 7 (up to 2³²−1). A name is looked up in the cache before the working folder.

    Raises `UnavailableError` for weights that can be fetched but were not, `UnknownNameError` for a name that is
    neither known nor a file, and `WeightsError` for a file that is missing or no good.
    """
    name = str(name_or_path)
    if match := DRAWN.fullmatch(name):
        seed = int(match[2] or 0)
        if seed >= 1 << 32:
            raise UsageError(f"weights {name!r}: the seed must be below {1 << 32}")
        return random_weights("vgg19", seed) if match[1] == "random" else filterbank_weights(seed)
    cached = available()
    if name in cached:
        return load_weights(cached[name], name)
    path = Path(name_or_path)
    if path.is_file() or path.suffix or len(path.parts) > 1:
        return load_weights(path)
    if name in SOURCES:
        raise UnavailableError(
            f"weights {name!r} are not on this machine yet: run impasto weights fetch {name}, or give --weights FILE, "
            "or take --preset filterbank, which needs none"
        )
    error = UnknownNameError("weights", name, [*cached, *SOURCES, "filterbank", "random"])
    error.args = (f"{error} (impasto weights fetch downloads; a safetensors file's path works too)",)
    raise error
