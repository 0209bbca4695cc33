"""Philox4x32-10: random numbers that are the same on every machine and in every version of any library.

A counter-based generator (Salmon, Moraes, Dror & Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011): ten
rounds of multiplications turn a 128-bit counter and a 64-bit key into four 32-bit words, so any number of any stream
can be computed without those before it.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

_MULTIPLIERS = (np.uint64(0xD2511F53), np.uint64(0xCD9E8D57))
_WEYL = (0x9E3779B9, 0xBB67AE85)
_ROUNDS = 10
_LOW = np.uint64(0xFFFFFFFF)
_HALF = np.uint64(32)


def philox(counter: NDArray[np.uint32], key: tuple[int, int]) -> NDArray[np.uint32]:
    """Return four random words for each counter: (N, 4) uint32 from (N, 4) uint32 and a key of two 32-bit words."""
    a, b, c, d = (counter[:, i].astype(np.uint64) for i in range(4))
    for number in range(_ROUNDS):
        first, second = (np.uint64((k + number * w) & 0xFFFFFFFF) for k, w in zip(key, _WEYL, strict=True))
        p, q = a * _MULTIPLIERS[0], c * _MULTIPLIERS[1]
        a, b, c, d = (q >> _HALF) ^ b ^ first, q & _LOW, (p >> _HALF) ^ d ^ second, p & _LOW
    return np.stack([a, b, c, d], axis=1).astype(np.uint32)


def uniform(seed: int, stream: int, count: int) -> NDArray[np.float64]:
    """Return ``count`` numbers of (0, 1), float64: number i of stream s is word i mod 4 of counter (i // 4, s, 0, 0).

    The key is the seed, below 2⁶⁴, low word first; a word w stands for (w + ½) / 2³².
    """
    blocks = -(-count // 4)
    counter = np.zeros((blocks, 4), np.uint32)
    counter[:, 0] = np.arange(blocks, dtype=np.uint32)
    counter[:, 1] = stream
    words = philox(counter, (seed & 0xFFFFFFFF, seed >> 32))
    return (words.reshape(-1)[:count].astype(np.float64) + 0.5) / 2.0**32


def normal(seed: int, stream: int, count: int) -> NDArray[np.float64]:
    """Return ``count`` standard normal numbers, float64, by Box and Muller's transform of pairs of `uniform`."""
    pairs = uniform(seed, stream, count + count % 2).reshape(-1, 2)
    radius, angle = np.sqrt(-2 * np.log(pairs[:, 0])), 2 * np.pi * pairs[:, 1]
    return np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1).reshape(-1)[:count]
