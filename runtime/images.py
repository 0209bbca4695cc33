"""Pictures in memory: sRGB values in 0–1, their sizes, and the sRGB profile that goes with them."""

from __future__ import annotations

import functools
import struct
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageCms

from impasto.errors import ImageError, UnknownNameError, UsageError

FloatArray = NDArray[np.float32]
ByteArray = NDArray[np.uint8]
Pixels = NDArray[np.floating] | ByteArray

Edge = Literal["long", "short", "height", "stretch"]
_EDGES = ("long", "short", "height", "stretch")


@dataclass(frozen=True, eq=False)
class Picture:
    """A picture as it was read.

    ``rgb`` is (H, W, 3) float32 in 0–1, sRGB-encoded, upright, with transparent areas laid over white, so that it
    can be painted as it is. ``alpha`` is the opacity that the picture had, (H, W) float32 in 0–1, for an output that
    is to carry it, or ``None`` where every pixel is opaque. ``name`` is what messages call the picture. ``notes``
    are sentences on whatever was not taken at face value (an unusable colour profile, bits that were dropped).
    """

    rgb: FloatArray
    alpha: FloatArray | None
    name: str
    notes: tuple[str, ...] = ()

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in pixels."""
        return self.rgb.shape[1], self.rgb.shape[0]


@dataclass(frozen=True)
class Sizing:
    """A rule for the size of the result: which edge gets how many pixels.

    ``edge`` is ``long``, ``short`` or ``height``, which keep the aspect ratio, or ``stretch``, a square of
    ``pixels`` × ``pixels`` whatever the picture's shape. Pictures are enlarged as well as reduced. Raises
    `UnknownNameError` for another edge, `UsageError` unless ``pixels`` is a positive whole number.
    """

    edge: Edge
    pixels: int

    def __post_init__(self) -> None:
        if self.edge not in _EDGES:
            raise UnknownNameError("sizing edge", str(self.edge), _EDGES)
        if isinstance(self.pixels, bool) or not isinstance(self.pixels, int) or self.pixels < 1:
            raise UsageError(f"size {self.pixels!r} pixels: give a positive whole number")

    def apply(self, width: int, height: int) -> tuple[int, int]:
        """Return the (width, height) that a picture of this width and height gets.

        The edge named gets exactly ``pixels``, the other is rounded to the nearest, halves up, and is at least 1.
        """
        if self.edge == "stretch":
            return self.pixels, self.pixels
        reference = {"long": max(width, height), "short": min(width, height), "height": height}[self.edge]
        # Whole numbers throughout: floor(n·pixels/reference + ½) without a rounding of its own.
        scaled = [max(1, (2 * side * self.pixels + reference) // (2 * reference)) for side in (width, height)]
        return scaled[0], scaled[1]

    def with_size(self, pixels: int) -> Sizing:
        """Return the rule for a size that the user gives: the long side's, unless this is a square."""
        return Sizing("stretch" if self.edge == "stretch" else "long", pixels)


def resize(picture: FloatArray, size: tuple[int, int]) -> FloatArray:
    """Resample a picture, or a single plane such as its alpha, to a (width, height).

    ``picture`` is (H, W, C) or (H, W), float32 in 0–1, and so is the result. The filter is Lanczos with three lobes,
    widened when reducing so that nothing aliases; its overshoot is clipped to 0–1. Values are resampled as encoded,
    not in linear light, as the published recipes do. A picture that has the size already is itself returned.
    """
    width, height = size
    if picture.shape[:2] == (height, width):
        return picture
    if picture.ndim == 2:
        return _resize_plane(picture, size)
    return np.stack([_resize_plane(picture[..., c], size) for c in range(picture.shape[2])], axis=2)


def to_uint8(picture: Pixels) -> ByteArray:
    """Quantise values in 0–1 to 0–255: clipped, times 255, rounded to the nearest, halves to even.

    The shape stays; uint8 is returned as it is. Raises `ImageError` when a value is NaN or infinite.
    """
    if picture.dtype == np.uint8:
        return picture.astype(np.uint8, copy=False)
    if not np.isfinite(picture).all():
        raise ImageError("the picture holds values that are not finite (NaN or infinity): it cannot be encoded")
    levels: ByteArray = np.rint(np.clip(picture, 0.0, 1.0) * 255.0).astype(np.uint8)
    return levels


@functools.cache
def srgb_profile() -> bytes:
    """Return an ICC profile of sRGB, the same bytes at every call and on every day."""
    profile = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    # The header (ICC.1:2022, 7.2) holds the moment of its making, and at 40 the platform; both would make files differ.
    profile[24:36] = struct.pack(">6H", 2000, 1, 1, 0, 0, 0)
    profile[40:44] = bytes(4)
    return bytes(profile)


def _resize_plane(plane: FloatArray, size: tuple[int, int]) -> FloatArray:
    image = Image.fromarray(np.ascontiguousarray(plane, dtype=np.float32))
    resized = np.asarray(image.resize(size, Image.Resampling.LANCZOS), dtype=np.float32)
    return np.clip(resized, 0.0, 1.0)
