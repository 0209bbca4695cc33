"""The filter bank: a backbone without a learned number.

Rectified responses of many band-pass filters, each above a level of its own and at several scales, describe the
distribution of a picture's patches; two pictures whose responses have the same means and covariances look alike in
texture and stroke (cf. Portilla & Simoncelli 2000; random filters: Ustyuzhaninov et al. 2016).

Level k is the picture halved k times (``level1``, ``level2``, …); ``response<k>`` are its filters' responses, and
``bank<k>`` those rectified. A level has *strokes*, elongated gratings of every orientation, which tell parallel brush
strokes from others, and *grains*, windowed noise, which sees colour, blobs and everything else.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from impasto.models.layers import IMAGE, Filters, Halve, Layer, Relu
from impasto.models.philox import normal, uniform

LEVELS = 10
"""As many as a picture of 8192 px needs; those that an objective does not name cost nothing."""

STROKES = (48, 64, 48)
GRAINS = (24, 48, 96)
"""Filters of the finest levels; those after them have no strokes, and as many grains as the last of these."""

STROKE_KERNEL, GRAIN_KERNEL = 7, 5

FREQUENCIES = (0.33, 0.22)
"""Of strokes, in cycles a position."""

_LENGTH = 2.0
_COLOUR = 0.4
_OFFSET = 0.8
_QUANTUM = 2.0**-20
"""Tensors are rounded to its multiples, so that the last digits of a machine's logarithm do not show."""

_Array = NDArray[np.float64]


def layers() -> tuple[Layer, ...]:
    """Return the layer table."""
    table: list[Layer] = []
    for level in range(LEVELS):
        source = IMAGE if level == 0 else f"level{level}"
        if level:
            table.append(Halve(source, f"level{level - 1}" if level > 1 else IMAGE))
        strokes, grains = _counts(level)
        kernel = STROKE_KERNEL if strokes else GRAIN_KERNEL
        table += [
            Filters(f"response{level}", source, 3, strokes + grains, kernel),
            Relu(f"bank{level}", f"response{level}"),
        ]
    return tuple(table)


def tensors(seed: int) -> dict[str, NDArray[np.float32]]:
    """Draw the filters of every level, strokes first, and their offsets; the same on every machine.

    All filters have unit norm. Offsets are from N(0, 0.8²). Level k draws from streams 4k (grains), 4k + 1 (offsets),
    4k + 2 (the strokes' shapes) and 4k + 3 (their colours) of `impasto.models.philox`, with the key ``seed``.
    """
    found = {}
    for level in range(LEVELS):
        strokes, grains = _counts(level)
        filters = _grains(normal(seed, 4 * level, grains * 3 * GRAIN_KERNEL**2), grains)
        if strokes:
            shapes = uniform(seed, 4 * level + 2, 3 * strokes).reshape(3, strokes)
            colours = normal(seed, 4 * level + 3, 3 * strokes).reshape(strokes, 3)
            rim = (STROKE_KERNEL - GRAIN_KERNEL) // 2
            surrounded = np.pad(filters, ((0, 0), (0, 0), (rim, rim), (rim, rim)))
            filters = np.concatenate([_strokes(shapes, colours), surrounded])
        filters /= np.sqrt(np.square(filters).sum(axis=(1, 2, 3), keepdims=True))
        found[f"response{level}.weight"] = _rounded(filters)
        found[f"response{level}.offset"] = _rounded(_OFFSET * normal(seed, 4 * level + 1, strokes + grains))
    return found


def _counts(level: int) -> tuple[int, int]:
    """Return how many strokes and grains a level has."""
    return (STROKES[level], GRAINS[level]) if level < len(STROKES) else (0, GRAINS[-1])


def _grains(noise: _Array, count: int) -> _Array:
    """Make filters, (N, 3, 5, 5), of white noise times exp(-2r²), r² = x² + y² over [-1, 1]².

    All but the first quarter are made zero-mean in each colour channel, and so see no flat colour.
    """
    axis = np.linspace(-1, 1, GRAIN_KERNEL)
    window = np.exp(-2 * (axis[:, None] ** 2 + axis[None, :] ** 2))
    filters = noise.reshape(count, 3, GRAIN_KERNEL, GRAIN_KERNEL) * window
    filters[count // 4 :] -= filters[count // 4 :].mean(axis=(2, 3), keepdims=True)
    return filters


def _strokes(shapes: _Array, colours: _Array) -> _Array:
    """Make filters, (N, 3, 7, 7), of gratings cos(2πfu + φ) in a Gaussian window, u across the stroke and v along it.

    The window's standard deviations are ½/f across and 2 positions along. Filter i of N has one of two frequencies f,
    times 2^±0.2, and an orientation out of the i-th share of the half circle, so that each frequency has all of them.
    Orientation, frequency and phase φ come from ``shapes``, (3, N) in (0, 1); the colour is grey plus 0.4 times
    ``colours``, (N, 3) normal. Every filter is zero-mean.
    """
    count, kinds = shapes.shape[1], len(FREQUENCIES)
    index = np.arange(count)
    angle = np.pi * (kinds * (index + shapes[0]) / count % 1)
    frequency = np.asarray(FREQUENCIES)[index % kinds] * 2 ** (0.4 * shapes[1] - 0.2)
    axis = np.arange(STROKE_KERNEL) - STROKE_KERNEL // 2
    y, x = np.meshgrid(axis, axis, indexing="ij")
    angle, frequency, phase = (a.reshape(-1, 1, 1) for a in (angle, frequency, 2 * np.pi * shapes[2]))
    across, along = x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)
    window = np.exp(-2 * (across * frequency) ** 2 - along**2 / (2 * _LENGTH**2))
    gratings = window * np.cos(2 * np.pi * frequency * across + phase)
    gratings -= window * (gratings.sum(axis=(1, 2), keepdims=True) / window.sum(axis=(1, 2), keepdims=True))
    tint = 1 / np.sqrt(3) + _COLOUR * colours
    strokes: _Array = tint[:, :, None, None] * gratings[:, None]
    return strokes


def _rounded(values: _Array) -> NDArray[np.float32]:
    return (np.round(values / _QUANTUM) * _QUANTUM).astype(np.float32)
