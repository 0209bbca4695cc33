"""Pixel spaces: how a picture's RGB values become the numbers that a network or a recipe works on.

Weights carry the space that they were trained in (their *convention*); a preset says in which space its iterate
lives. Every space is ``x = (scale · rgb[order] - mean) / std`` per channel, with rgb in 0–1, so any two are related
by a channel permutation, a scale and an offset.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from impasto.errors import UnknownNameError

Triple = tuple[float, float, float]
FloatArray = NDArray[np.float32]


@dataclass(frozen=True)
class Affine:
    """A map between two pixel spaces: ``y[c] = scale[c] · x[permutation[c]] + offset[c]``, in float64."""

    permutation: tuple[int, int, int]
    scale: Triple
    offset: Triple


@dataclass(frozen=True)
class PixelSpace:
    """One way of writing a picture as numbers; ``mean`` and ``std`` are in this space's channel order."""

    name: str
    order: str
    scale: float
    mean: Triple
    std: Triple = (1.0, 1.0, 1.0)

    @property
    def _rgb_index(self) -> tuple[int, int, int]:
        red, green, blue = ("rgb".index(channel) for channel in self.order)
        return red, green, blue

    def encode(self, rgb: FloatArray) -> FloatArray:
        """Turn an RGB picture, (H, W, 3) float32 in 0–1, into this space, (3, H, W) float32."""
        planes = np.moveaxis(rgb, 2, 0)[list(self._rgb_index)].astype(np.float64)
        encoded = (planes * self.scale - _column(self.mean)) / _column(self.std)
        return np.ascontiguousarray(encoded, dtype=np.float32)

    def decode(self, planes: FloatArray) -> FloatArray:
        """Turn an array of this space, (3, H, W), into RGB, (H, W, 3) float32, not clipped to 0–1."""
        rgb = (planes.astype(np.float64) * _column(self.std) + _column(self.mean)) / self.scale
        ordered = rgb[[self.order.index(channel) for channel in "rgb"]]
        return np.ascontiguousarray(np.moveaxis(ordered, 0, 2), dtype=np.float32)

    def bounds(self) -> tuple[Triple, Triple]:
        """Lowest and highest value of each channel that a displayable picture (rgb in 0–1) takes here."""
        low = tuple(-m / s for m, s in zip(self.mean, self.std, strict=True))
        high = tuple((self.scale - m) / s for m, s in zip(self.mean, self.std, strict=True))
        return (low[0], low[1], low[2]), (high[0], high[1], high[2])

    def affine_to(self, other: PixelSpace) -> Affine:
        """Return the exact map from this space to ``other``."""
        permutation = tuple(self.order.index(channel) for channel in other.order)
        ratio = other.scale / self.scale
        scale = tuple(ratio * self.std[source] / other.std[target] for target, source in enumerate(permutation))
        offset = tuple(
            (ratio * self.mean[source] - other.mean[target]) / other.std[target]
            for target, source in enumerate(permutation)
        )
        return Affine(
            (permutation[0], permutation[1], permutation[2]),
            (scale[0], scale[1], scale[2]),
            (offset[0], offset[1], offset[2]),
        )


CAFFE = PixelSpace("caffe", "bgr", 255.0, (103.939, 116.779, 123.68))
"""BGR, 0–255, minus the ImageNet means: Simonyan & Zisserman's own VGG weights."""

TORCHVISION = PixelSpace("torchvision", "rgb", 1.0, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
"""RGB, 0–1, minus the ImageNet means, over their standard deviations: torchvision's weights."""

UNIT = PixelSpace("unit", "rgb", 1.0, (0.0, 0.0, 0.0))
"""RGB, 0–1, as is."""

RGB255 = PixelSpace("rgb255", "rgb", 255.0, (123.675, 116.28, 103.53))
"""RGB, 0–255, minus torchvision's means, not divided by their standard deviations."""

PIXEL_SPACES = {space.name: space for space in (CAFFE, TORCHVISION, UNIT, RGB255)}
CONVENTIONS = {space.name: space for space in (CAFFE, TORCHVISION, UNIT)}
"""The pixel spaces that weights may be in."""


def pixel_space(name: str) -> PixelSpace:
    """Return the pixel space of that name; raise `UnknownNameError` if there is none."""
    if name not in PIXEL_SPACES:
        raise UnknownNameError("pixel space", name, PIXEL_SPACES)
    return PIXEL_SPACES[name]


def smallest_deviation(space: PixelSpace) -> float:
    """Return the least standard deviation that a filter's response is divided by: a grey level.

    A response that varies less over a whole picture is the rounding of its 8 bits, or, for a picture of one colour,
    that of the arithmetic.
    """
    return space.scale / max(space.std) / 255


def _column(values: Triple) -> NDArray[np.float64]:
    return np.asarray(values, dtype=np.float64).reshape(3, 1, 1)
