"""Pictures on the device: 8-bit RGB pixels to a pixel space and back."""

from __future__ import annotations

import numpy as np

from impasto.errors import UsageError
from impasto.models.conventions import PixelSpace
from impasto.runtime.gpu.protocol import Address, Argument, Device

_THREADS = 256


class ImageKernels:
    """Between uint8 RGB, (height, width, 3), and planar float32 in a pixel space, (3, height, width).

    Both directions give the bits that `PixelSpace.encode` and `PixelSpace.decode` give on the host.
    """

    def __init__(self, device: Device, space: PixelSpace) -> None:
        """Take the device and the space of the planar pictures."""
        self._to_planar = device.kernel("image", "image_to_planar")
        self._to_rgb = device.kernel("image", "image_to_rgb")
        self._space: list[Argument] = [np.float64(space.scale)]
        for colour in "rgb":
            plane = space.order.index(colour)
            self._space += [np.int32(plane), np.float64(space.mean[plane]), np.float64(space.std[plane])]

    def to_planar(self, rgb: Address, planar: Address, height: int, width: int) -> None:
        """Enqueue turning levels, each over 255, into the space: ``(scale·rgb - mean) / std``."""
        pixels = height * width
        self._to_planar(_blocks(pixels), _THREADS, rgb, planar, np.int64(pixels), *self._space)

    def to_rgb(self, planar: Address, rgb: Address, height: int, width: int, margin: int = 0) -> None:
        """Enqueue turning a planar picture, (3, height, width), into levels, cutting ``margin`` pixels off each edge.

        ``rgb`` gets (height - 2·margin, width - 2·margin, 3). Values are clipped to 0–1, multiplied by 255 and rounded
        to the nearest, halves to even, as `impasto.runtime.images.to_uint8` does; but NaN, which that refuses, is 0.

        Raises `UsageError` for a margin that is negative or leaves nothing.
        """
        if not 0 <= 2 * margin < min(height, width):
            raise UsageError(f"a margin of {margin} pixels leaves nothing of {width} × {height}: give less, at least 0")
        pixels = (height - 2 * margin) * (width - 2 * margin)
        size = (np.int64(height), np.int64(width), np.int64(margin))
        self._to_rgb(_blocks(pixels), _THREADS, planar, rgb, *size, *self._space)


def _blocks(pixels: int) -> tuple[int, int]:
    return -(-pixels // _THREADS), 1
