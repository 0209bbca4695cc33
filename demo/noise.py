"""Smooth random fields that do not depend on the resolution they are sampled at.

Both pictures are functions of position in nominal pixels; drawing one smaller samples the same functions more coarsely.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.floating]


def pixels(width: int, height: int, scale: float) -> tuple[Array, Array]:
    """Nominal coordinates (X, Y) of the pixel centres of a picture ``scale`` times ``width`` by ``height``."""
    y, x = np.mgrid[0 : round(height * scale), 0 : round(width * scale)].astype(np.float32)
    return (x + 0.5) / np.float32(scale), (y + 0.5) / np.float32(scale)


def smoothstep(low: float, high: float, x: Array | float) -> Array:
    """Hermite step from 0 at ``low`` to 1 at ``high`` (``low`` > ``high`` gives a falling step)."""
    t = np.clip((np.asarray(x, np.float32) - low) / (high - low), 0, 1).astype(np.float32)
    return t * t * (3 - 2 * t)


def mix(a: Array | tuple[float, ...], b: Array | tuple[float, ...], t: Array | float) -> Array:
    """Blend of colours ``a`` and ``b``: (..., 3) each, weight ``t`` of ``b`` without the channel axis."""
    weight = np.asarray(t, np.float32)[..., None]
    return np.asarray(a, np.float32) * (1 - weight) + np.asarray(b, np.float32) * weight


def gradient_noise(x: Array, y: Array, seed: int) -> Array:
    """Perlin's gradient noise with the quintic fade ("Improving Noise", SIGGRAPH 2002), about -0.7 to 0.7.

    ``x`` and ``y`` have one shape, and one unit is one lattice cell; the field repeats after 256 cells.
    """
    angle = np.random.RandomState(seed).uniform(0, 2 * np.pi, (256, 256))
    gx, gy = np.cos(angle).astype(np.float32), np.sin(angle).astype(np.float32)
    x0, y0 = np.floor(x).astype(np.int32), np.floor(y).astype(np.int32)
    fx, fy = (x - x0).astype(np.float32), (y - y0).astype(np.float32)

    def corner(i: int, j: int) -> Array:
        row, column = (y0 + j) & 255, (x0 + i) & 255
        return gx[row, column] * (fx - i) + gy[row, column] * (fy - j)

    u, v = fx**3 * (fx * (fx * 6 - 15) + 10), fy**3 * (fy * (fy * 6 - 15) + 10)
    top = corner(0, 0) * (1 - u) + corner(1, 0) * u
    bottom = corner(0, 1) * (1 - u) + corner(1, 1) * u
    return top * (1 - v) + bottom * v


def fbm(x: Array, y: Array, seed: int, octaves: int = 5, gain: float = 0.5) -> Array:
    """Fractal sum of gradient noise, each octave twice as fine and ``gain`` times as strong; about -1 to 1."""
    total = np.zeros(np.broadcast(x, y).shape, np.float32)
    for k in range(octaves):
        total += gradient_noise(x * 2**k + 17.3 * k, y * 2**k - 9.1 * k, seed + k) * np.float32(1.4 * gain**k)
    return total


def ridged(x: Array, y: Array, seed: int, octaves: int = 6, gain: float = 0.5) -> Array:
    """Ridged multifractal: sharp crests where the noise crosses zero, detail concentrated on them; 0 to about 1.6.

    After Musgrave, in Ebert et al., "Texturing and Modeling: A Procedural Approach".
    """
    total = np.zeros(np.broadcast(x, y).shape, np.float32)
    weight = np.ones_like(total)
    for k in range(octaves):
        crest = (1 - np.abs(gradient_noise(x * 2**k + 5.7 * k, y * 2**k + 3.1 * k, seed + k) * 1.6)) ** 2
        total += crest * weight * np.float32(gain**k)
        weight = np.clip(crest * 1.6, 0, 1)
    return total * np.float32(0.8)
