"""Pictures as images of an objective and back, some rows at a time, wherever they are kept.

What is painted may have a margin around it, which is cut off at the end: at the rim a pixel is seen by fewer filters
than inside, and what is painted there may come out as it likes; with a few pixels of reflected content around the
picture, the rim that shows is inside.
"""

from __future__ import annotations

import numpy as np

from impasto.models.conventions import PixelSpace
from impasto.runtime.images import Colours, FloatArray, resized
from impasto.runtime.scratch import Allocate, in_memory, release

_STRIPE = 1 << 20
"""Pixels that are turned back into a picture at a time."""


def image_of(
    space: PixelSpace, picture: Colours, size: tuple[int, int], margin: int = 0, allocate: Allocate = in_memory
) -> FloatArray:
    """Return a picture, (h, w, 3) float32 in 0–1 or uint8, at a (width, height), with its reflection around it.

    The image is (1, 3, height + 2·margin, width + 2·margin) float32 in the pixel space. The margin is smaller than both
    sides.
    """
    width, height = size
    image = allocate((1, 3, height + 2 * margin, width + 2 * margin))
    for top, rows in resized(picture, size):
        wide = np.pad(rows, ((0, 0), (margin, margin), (0, 0)), mode="reflect")
        image[0, :, margin + top : margin + top + len(rows)] = space.encode(wide)
        release(image)
    for row in range(1, margin + 1):
        image[:, :, margin - row] = image[:, :, margin + row]
        image[:, :, margin + height - 1 + row] = image[:, :, margin + height - 1 - row]
    return image


def picture_of(space: PixelSpace, image: FloatArray, margin: int = 0, allocate: Allocate = in_memory) -> FloatArray:
    """Return an image, (1, 3, H, W), without its margin as a picture: (h, w, 3) float32 RGB, clipped to 0–1."""
    _, _, height, width = image.shape
    inside = image[0, :, margin : height - margin, margin : width - margin]
    picture = allocate((*inside.shape[1:], 3))
    rows = max(1, _STRIPE // width)
    for top in range(0, len(picture), rows):
        stripe = slice(top, top + rows)
        picture[stripe] = space.decode(inside[:, stripe]).clip(0, 1)
        release(image, picture)
    return picture
