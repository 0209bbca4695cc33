"""Pictures in memory: sRGB values in 0–1, their sizes, and the sRGB profile that goes with them."""

from __future__ import annotations

import functools
import math
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageCms

from impasto.errors import ImageError, UnknownNameError, UsageError
from impasto.runtime.scratch import Allocate, in_memory, release

FloatArray = NDArray[np.float32]
ByteArray = NDArray[np.uint8]
Pixels = NDArray[np.floating] | ByteArray
Colours = FloatArray | ByteArray

Box = tuple[float, float, float, float]

_STRIPE = 1 << 20
"""Pixels that are worked on at a time; a picture of fewer is resampled whole."""
_LANCZOS = 3
"""Pixels that the filter reaches to each side."""

Edge = Literal["long", "short", "height", "stretch"]
_EDGES = ("long", "short", "height", "stretch")


@dataclass(frozen=True, eq=False)
class Picture:
    """A picture as it was read.

    ``pixels`` are (H, W, 3), sRGB-encoded, upright, with transparent areas laid over white, so that they can be painted
    as they are: uint8 where that is what was stored, else float32 in 0–1. ``alpha`` is the opacity that the picture
    had, (H, W) float32 in 0–1, for an output that is to carry it, or ``None`` where every pixel is opaque. ``name`` is
    what messages call the picture. ``notes`` are sentences on whatever was not taken at face value (an unusable colour
    profile, bits that were dropped).
    """

    pixels: Colours
    alpha: FloatArray | None
    name: str
    notes: tuple[str, ...] = ()

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in pixels."""
        return self.pixels.shape[1], self.pixels.shape[0]

    @property
    def rgb(self) -> FloatArray:
        """The pixels as float32 in 0–1."""
        return to_unit(self.pixels)

    @property
    def nbytes(self) -> int:
        """The memory that the picture takes."""
        return self.pixels.nbytes + (0 if self.alpha is None else self.alpha.nbytes)


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


def resize(picture: FloatArray, size: tuple[int, int], allocate: Allocate = in_memory) -> FloatArray:
    """Resample a picture, or a single plane such as its alpha, to a (width, height).

    ``picture`` is (H, W, C) or (H, W), float32 in 0–1, and so is the result, which ``allocate`` makes. The filter is
    Lanczos with three lobes, widened when reducing so that nothing aliases; its overshoot is clipped to 0–1. Values are
    resampled as encoded, not in linear light, as the published recipes do. A picture that has the size already is
    itself returned.
    """
    width, height = size
    if picture.shape[:2] == (height, width):
        return picture
    whole = allocate((height, width, *picture.shape[2:]))
    for top, rows in resized(picture, size):
        whole[top : top + len(rows)] = rows
        release(whole)
    return whole


def resized(picture: Colours, size: tuple[int, int]) -> Iterator[tuple[int, FloatArray]]:
    """Yield a picture at a (width, height), as `resize` makes it, in stripes: the first row's number and the rows.

    A picture of uint8 becomes float32 in 0–1. Each stripe is resampled by itself, from the rows that it needs; only
    their place, a float32 in Pillow, is rounded otherwise than that of a whole.
    """
    width, height = size
    high, wide = picture.shape[:2]
    shrinks = max(1.0, high / height)
    lines = max(1, int(_STRIPE / max(width, wide) / shrinks))
    for top in range(0, height, lines):
        bottom = min(top + lines, height)
        if (high, wide) == (height, width):
            yield top, to_unit(picture[top:bottom])
        else:
            # Fractions of whole numbers, so that the last row is exactly the end.
            begin, end = top * high / height, bottom * high / height
            reach = _LANCZOS * shrinks + 1
            first, last = max(0, int(begin - reach)), min(high, math.ceil(end + reach))
            box = (0.0, begin - first, float(wide), end - first)
            yield top, _resize(to_unit(picture[first:last]), (width, bottom - top), box)
        release(picture)


def to_unit(pixels: Colours) -> FloatArray:
    """Return pixels as float32 in 0–1; those that are floats already themselves."""
    if pixels.dtype == np.uint8:
        values: FloatArray = pixels.astype(np.float32) / np.float32(255)
        return values
    return pixels.astype(np.float32, copy=False)


def to_uint8(picture: Pixels) -> ByteArray:
    """Quantise values in 0–1 to 0–255: clipped, times 255, rounded to the nearest, halves to even.

    The shape stays; uint8 is returned as it is. Raises `ImageError` when a value is NaN or infinite.
    """
    if picture.dtype == np.uint8:
        return picture.astype(np.uint8, copy=False)
    levels = np.empty(picture.shape, np.uint8)
    lines = max(1, _STRIPE // max(1, math.prod(picture.shape[1:])))
    for top in range(0, len(picture), lines):
        stripe = picture[top : top + lines]
        if not np.isfinite(stripe).all():
            raise ImageError("the picture holds values that are not finite (NaN or infinity): it cannot be encoded")
        levels[top : top + lines] = np.rint(np.clip(stripe, 0.0, 1.0) * 255.0)
        release(picture)
    return levels


@functools.cache
def srgb_profile() -> bytes:
    """Return an ICC profile of sRGB, the same bytes at every call and on every day."""
    profile = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    # The header (ICC.1:2022, 7.2) holds the moment of its making, and at 40 the platform; both would make files differ.
    profile[24:36] = struct.pack(">6H", 2000, 1, 1, 0, 0, 0)
    profile[40:44] = bytes(4)
    return bytes(profile)


def _resize(rows: FloatArray, size: tuple[int, int], box: Box) -> FloatArray:
    if rows.ndim == 2:
        return _resize_plane(rows, size, box)
    return np.stack([_resize_plane(rows[..., c], size, box) for c in range(rows.shape[2])], axis=2)


def _resize_plane(plane: FloatArray, size: tuple[int, int], box: Box) -> FloatArray:
    image = Image.fromarray(np.ascontiguousarray(plane, dtype=np.float32))
    found = np.asarray(image.resize(size, Image.Resampling.LANCZOS, box), dtype=np.float32)
    return np.clip(found, 0.0, 1.0)
