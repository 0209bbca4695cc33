"""Backbones as layer tables, from which both the ONNX graph and the torch reference are made.

The VGG table is Simonyan & Zisserman, "Very Deep Convolutional Networks for Large-Scale Image Recognition"
(arXiv:1409.1556), table 1, configurations A to E, without the classifier.
"""

from __future__ import annotations

from dataclasses import dataclass

from impasto.errors import UnknownNameError


@dataclass(frozen=True)
class Conv:
    """A convolution, stride 1, zero-padded so that height and width stay."""

    name: str
    in_channels: int
    out_channels: int
    kernel: int = 3


@dataclass(frozen=True)
class Relu:
    """max(x, 0)."""

    name: str


@dataclass(frozen=True)
class Pool:
    """2×2 pooling, stride 2, floor mode; the maximum or the average, as the export says."""

    name: str


Layer = Conv | Relu | Pool


@dataclass(frozen=True)
class Backbone:
    """A named sequence of layers; each layer's name is also the name of the tap on its output."""

    name: str
    layers: tuple[Layer, ...]

    @property
    def convs(self) -> tuple[Conv, ...]:
        """The layers that have weights, in order."""
        return tuple(layer for layer in self.layers if isinstance(layer, Conv))

    @property
    def taps(self) -> tuple[str, ...]:
        """Every tap's canonical name, in the order of the data."""
        return tuple(layer.name for layer in self.layers)

    def index(self, tap: str) -> int:
        """Return the position of the layer that the canonical tap name stands for."""
        return self.taps.index(tap)

    def channels(self, tap: str) -> int:
        """Return the number of channels of a tap."""
        above = self.layers[: self.index(tap) + 1]
        return next(layer.out_channels for layer in reversed(above) if isinstance(layer, Conv))

    def stride(self, tap: str) -> int:
        """Return how many pixels of the picture, along one side, one position of the tap spans."""
        above = self.layers[: self.index(tap) + 1]
        return 1 << sum(isinstance(layer, Pool) for layer in above)


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
    channels = 3
    for block, (kernels, width) in enumerate(zip(_VGG_BLOCKS[name], _VGG_WIDTHS, strict=True), 1):
        for position, kernel in enumerate(kernels, 1):
            layers.append(Conv(f"conv{block}_{position}", channels, width, kernel))
            layers.append(Relu(f"relu{block}_{position}"))
            channels = width
        layers.append(Pool(f"pool{block}"))
    return Backbone(name, tuple(layers))


BACKBONES = {name: _vgg(name) for name in _VGG_BLOCKS}


def backbone(name: str) -> Backbone:
    """Return the backbone of that name; raise `UnknownNameError` if there is none."""
    if name not in BACKBONES:
        raise UnknownNameError("backbone", name, BACKBONES)
    return BACKBONES[name]
