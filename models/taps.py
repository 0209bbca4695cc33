"""Tap names: the paper's, and the aliases under which other tools know the same tensors.

Canonical names are the paper's: ``relu4_2`` is after the ReLU, ``conv4_2`` before it, ``pool4`` after the pooling.
Aliases: Keras (``block4_conv2`` includes the ReLU: ``relu4_2``; ``block4_pool``), torchvision (``features.21``, the
module's own output: ``conv4_2``) and the PyTorch tutorial (``conv_4``, the 4th convolution, before its ReLU). The
filter bank's taps (`impasto.models.filterbank`) have no others.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from impasto.errors import UnknownNameError
from impasto.models.backbones import Backbone
from impasto.models.layers import Conv, Pool, Relu


def aliases(backbone: Backbone) -> dict[str, str]:
    """Return every accepted alias of the backbone's taps with the canonical name it stands for."""
    return dict(_aliases(backbone))


def resolve_tap(backbone: Backbone, name: str) -> str:
    """Return the canonical name of a tap; raise `UnknownNameError` with the near ones if there is none."""
    if name in backbone.taps:
        return name
    known = aliases(backbone)
    if name in known:
        return known[name]
    raise UnknownNameError(f"tap of {backbone.name}", name, [*backbone.taps, *known])


def resolve_taps(backbone: Backbone, names: Iterable[str]) -> tuple[str, ...]:
    """Return the canonical names, each once, in the order of the data."""
    resolved = {resolve_tap(backbone, name) for name in names}
    return tuple(tap for tap in backbone.taps if tap in resolved)


def _aliases(backbone: Backbone) -> Iterator[tuple[str, str]]:
    conv = pool = 0
    chain = [layer for layer in backbone.layers if isinstance(layer, Conv | Relu | Pool)] if backbone.convs else []
    for index, layer in enumerate(chain):
        yield f"features.{index}", layer.name
        if isinstance(layer, Conv):
            conv += 1
            yield f"conv_{conv}", layer.name
        elif isinstance(layer, Relu):
            yield f"relu_{conv}", layer.name
            block, position = layer.name.removeprefix("relu").split("_")
            yield f"block{block}_conv{position}", layer.name
        else:
            pool += 1
            yield f"pool_{pool}", layer.name
            yield f"block{pool}_pool", layer.name
