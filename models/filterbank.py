"""The filter bank: a backbone without a learned number.

Rectified responses of many random band-pass filters, each above a level of its own and at several scales, describe
the distribution of a picture's patches; two pictures whose responses have the same means and covariances look alike
in texture and stroke (cf. Portilla & Simoncelli 2000; random filters: Ustyuzhaninov et al. 2016).

Level k is the picture halved k times (``level1``, ``level2``, …); ``response<k>`` are its filters' responses, and
``bank<k>`` those rectified.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from impasto.models.layers import IMAGE, Filters, Halve, Layer, Relu
from impasto.models.philox import normal

LEVELS = 10
"""As many as a picture of 8192 px needs; those that an objective does not name cost nothing."""

FILTERS = 128
KERNEL = 5

_QUANTUM = 2.0**-20
"""Tensors are rounded to its multiples, so that the last digits of a machine's logarithm do not show."""


def layers() -> tuple[Layer, ...]:
    """Return the layer table."""
    table: list[Layer] = []
    for level in range(LEVELS):
        source = IMAGE if level == 0 else f"level{level}"
        if level:
            table.append(Halve(source, f"level{level - 1}" if level > 1 else IMAGE))
        table += [
            Filters(f"response{level}", source, 3, FILTERS, KERNEL),
            Relu(f"bank{level}", f"response{level}"),
        ]
    return tuple(table)


def tensors(seed: int) -> dict[str, NDArray[np.float32]]:
    """Draw the filters of every level and their offsets; the same on every machine.

    A filter is white noise times exp(-2r²), r² = x² + y² over [-1, 1]². Three quarters of a level's filters are made
    zero-mean in each colour channel, and so see no flat colour; all have unit norm. Offsets are from N(0, 0.8²).
    Level k draws from streams 2k and 2k + 1 of `impasto.models.philox` with the key ``seed``.
    """
    found = {}
    for level in range(LEVELS):
        shape = (FILTERS, 3, KERNEL, KERNEL)
        noise = normal(seed, 2 * level, FILTERS * 3 * KERNEL**2).reshape(shape)
        filters = noise * _window(KERNEL)
        flat = FILTERS // 4
        filters[flat:] -= filters[flat:].mean(axis=(2, 3), keepdims=True)
        filters /= np.sqrt(np.square(filters).sum(axis=(1, 2, 3), keepdims=True))
        found[f"response{level}.weight"] = _rounded(filters)
        found[f"response{level}.offset"] = _rounded(0.8 * normal(seed, 2 * level + 1, FILTERS))
    return found


def _window(kernel: int) -> NDArray[np.float64]:
    axis = np.linspace(-1, 1, kernel)
    return np.exp(-2 * (axis[:, None] ** 2 + axis[None, :] ** 2))


def _rounded(values: NDArray[np.float64]) -> NDArray[np.float32]:
    return (np.round(values / _QUANTUM) * _QUANTUM).astype(np.float32)
