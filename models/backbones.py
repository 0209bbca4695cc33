"""Backbones as layer tables, from which both the ONNX graph and the torch reference are made.

The VGG table is Simonyan & Zisserman, "Very Deep Convolutional Networks for Large-Scale Image Recognition"
(arXiv:1409.1556), table 1, configurations A to E, without the classifier. The filter bank's is
`impasto.models.filterbank`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from impasto.errors import UnknownNameError
from impasto.models.filterbank import layers as filterbank_layers
from impasto.models.layers import IMAGE, Conv, Filters, Layer, Pool, Relu


@dataclass(frozen=True)
class Backbone:
    """A named set of layers in the order of the data; each layer's name is also the name of the tap on its output."""

    name: str
    layers: tuple[Layer, ...]

    @property
    def convs(self) -> tuple[Conv, ...]:
        """The convolutions, in order."""
        return tuple(layer for layer in self.layers if isinstance(layer, Conv))

    @property
    def taps(self) -> tuple[str, ...]:
        """Every tap's canonical name, in the order of the data."""
        return tuple(layer.name for layer in self.layers)

    def layer(self, tap: str) -> Layer:
        """Return the layer that the canonical tap name stands for."""
        return self.layers[self.taps.index(tap)]

    def needed(self, taps: Iterable[str]) -> tuple[Layer, ...]:
        """Return the layers that the taps, given by canonical names, depend on, themselves included, in order."""
        wanted = set(taps)
        needed: list[Layer] = []
        for layer in reversed(self.layers):
            if layer.name in wanted:
                needed.append(layer)
                wanted.add(layer.source)
        return tuple(reversed(needed))

    def channels(self, tap: str) -> int:
        """Return the number of channels of a tap."""
        widths = {IMAGE: 3}
        for layer in self.needed([tap]):
            widths[layer.name] = layer.out_channels if isinstance(layer, Conv | Filters) else widths[layer.source]
        return widths[tap]

    def stride(self, tap: str) -> int:
        """Return how many pixels of the picture, along one side, one position of the tap spans."""
        stride = 1
        for layer in self._chain(tap):
            stride *= layer.stride
        return stride

    def grid(self, tap: str, shape: tuple[int, int]) -> tuple[int, int]:
        """Return height and width of a tap for a picture of ``shape`` (H, W)."""
        height, width = shape
        for layer in reversed(self._chain(tap)):
            height, width = layer.side(height), layer.side(width)
        return height, width

    def smallest(self, tap: str) -> int:
        """Return the smallest height and width of a picture that reaches the tap."""
        side = 1
        for layer in self._chain(tap):
            side = layer.smallest(side)
        return side

    def _chain(self, tap: str) -> list[Layer]:
        """Return the layers from the tap down to the picture."""
        chain = [self.layer(tap)]
        while chain[-1].source != IMAGE:
            chain.append(self.layer(chain[-1].source))
        return chain


_VGG_WIDTHS = (64, 128, 256, 512, 512)
# Kernel sizes of the convolutions of each block.
_VGG_BLOCKS: dict[str, tuple[tuple[int, ...], ...]] = {
    "vgg11": ((3,), (3,), (3, 3), (3, 3), (3, 3)),  # A
    "vgg13": ((3, 3),) * 5,  # B
    "vgg16c": ((3, 3), (3, 3), (3, 3, 1), (3, 3, 1), (3, 3, 1)),  # C
    "vgg16": ((3, 3), (3, 3), (3, 3, 3), (3, 3, 3), (3, 3, 3)),  # D
    "vgg19": ((3, 3), (3, 3), (3,) * 4, (3,) * 4, (3,) * 4),  # E
}


def _vgg(name: str) -> Backbone:
    layers: list[Layer] = []
    source, channels = IMAGE, 3
    for block, (kernels, width) in enumerate(zip(_VGG_BLOCKS[name], _VGG_WIDTHS, strict=True), 1):
        for position, kernel in enumerate(kernels, 1):
            conv, relu = f"conv{block}_{position}", f"relu{block}_{position}"
            layers += [Conv(conv, source, channels, width, kernel), Relu(relu, conv)]
            source, channels = relu, width
        layers.append(Pool(f"pool{block}", source))
        source = f"pool{block}"
    return Backbone(name, tuple(layers))


BACKBONES = {name: _vgg(name) for name in _VGG_BLOCKS} | {"filterbank": Backbone("filterbank", filterbank_layers())}


def backbone(name: str) -> Backbone:
    """Return the backbone of that name; raise `UnknownNameError` if there is none."""
    if name not in BACKBONES:
        raise UnknownNameError("backbone", name, BACKBONES)
    return BACKBONES[name]
