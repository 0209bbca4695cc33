"""A layer to paint polygons on, in nominal pixel coordinates, and the way a finished picture is written."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from noise import Array
from PIL import Image, ImageDraw

Point = tuple[float, float]
Colour = Sequence[float] | Array
FINER = 3  # a polygon's stencil is drawn this much finer than the canvas


class Canvas:
    """Premultiplied colour ``rgb`` (rows, columns, 3) and coverage ``alpha`` (rows, columns), both 0 to 1.

    ``scale`` is how many of its pixels make one nominal pixel.
    """

    def __init__(self, rgb: Array, alpha: Array, scale: float) -> None:
        self.rgb, self.alpha, self.scale = rgb, alpha, scale

    def blank(self) -> Canvas:
        """An empty layer of the same size."""
        return Canvas(np.zeros_like(self.rgb), np.zeros_like(self.alpha), self.scale)

    def polygon(self, points: Sequence[Point], colour: Colour, opacity: float = 1.0) -> None:
        """Fill a polygon; its corners are nominal (X, Y)."""
        corners = np.asarray(points, np.float64) * self.scale
        rows, columns = self.alpha.shape
        left, top = np.clip(np.floor(corners.min(0)).astype(int), 0, (columns, rows))
        right, bottom = np.clip(np.ceil(corners.max(0)).astype(int) + 1, 0, (columns, rows))
        if right <= left or bottom <= top:
            return
        # Pillow's corners are pixel centres and its outlines are filled, which would fatten every leaf: hence the
        # half pixel, and a finer stencil.
        stencil = Image.new("L", (FINER * int(right - left), FINER * int(bottom - top)))
        fine = (corners - (left, top)) * FINER - 0.5
        ImageDraw.Draw(stencil).polygon([(x, y) for x, y in fine.tolist()], fill=255)
        mask = np.asarray(stencil.reduce(FINER), np.float32) * np.float32(opacity / 255)
        window = np.s_[top:bottom, left:right]
        self.rgb[window] += mask[..., None] * (np.asarray(colour, np.float32) - self.rgb[window])
        self.alpha[window] += mask * (1 - self.alpha[window])

    def disc(self, centre: Point, radius: float, colour: Colour, flatness: float = 1.0, opacity: float = 1.0) -> None:
        """Fill an ellipse whose height is ``flatness`` times its width."""
        angle = np.linspace(0, 2 * np.pi, 14, endpoint=False)
        ring = np.stack([centre[0] + radius * np.cos(angle), centre[1] + radius * flatness * np.sin(angle)], 1)
        self.polygon(ring.tolist(), colour, opacity)

    def limb(self, start: Point, end: Point, widths: tuple[float, float], colour: Colour, opacity: float = 1.0) -> None:
        """Fill a straight tapering bar."""
        along = np.subtract(end, start)
        side = np.array([-along[1], along[0]]) / max(float(np.hypot(*along)), 1e-6) / 2
        p, q = np.asarray(start), np.asarray(end)
        corners = [p + side * widths[0], q + side * widths[1], q - side * widths[1], p - side * widths[0]]
        self.polygon([(float(c[0]), float(c[1])) for c in corners], colour, opacity)

    def cover(self, layer: Canvas, strength: Array | float = 1.0) -> None:
        """Lay ``layer`` over this one, at ``strength`` (0 to 1, one number or one a pixel)."""
        strength = np.asarray(strength, np.float32)
        self.rgb = self.rgb * (1 - strength * layer.alpha)[..., None] + layer.rgb * strength[..., None]
        self.alpha = self.alpha + strength * layer.alpha * (1 - self.alpha)


def save_picture(rgb: Array, path: Path, size: tuple[int, int], quality: int) -> None:
    """Reduce ``rgb`` (rows, columns, 3; 0 to 1) to ``size`` (width, height) and write it as an sRGB JPEG."""
    full = Image.fromarray(np.round(np.clip(rgb, 0, 1) * 255).astype(np.uint8))
    small = full.resize(size, Image.Resampling.BOX)
    small.save(path, "JPEG", quality=quality, subsampling="4:4:4", optimize=True)
